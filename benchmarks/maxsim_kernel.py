"""MaxSim on the CPU, taken apart: the scorer beside its peers, and the parts it could be made of.

`python -m benchmarks.maxsim_kernel [--threads 2] [--documents 10000] [--repeats 9]`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.machine import available_cpus, installed, restart_with
from benchmarks.maxsim import DIM, QUERY_ROWS, embeddings
from benchmarks.timing import interleave
from colbert_rag import TokenEmbeddings
from colbert_rag.maxsim import maxsim, torch_kernel

BLOCK_ROWS = 16384
PACKAGES = ("torch", "numpy", "sentence-transformers", "maxsim-cpu")


def one_product_per_document(query: Tensor, documents: TokenEmbeddings) -> Tensor:
    """The obvious torch: a Python loop over documents."""
    return torch.stack([(rows @ query.T).amax(0).sum() for rows in documents])


def scorers(query: Tensor, documents: TokenEmbeddings) -> dict[str, Callable[[], Tensor]]:
    """Scorers of one query; all must agree."""
    jobs: dict[str, Callable[[], Tensor]] = {
        "colbert_rag": partial(maxsim, query, documents),
        "torch, one product per document": partial(one_product_per_document, query, documents),
    }
    if installed("maxsim-cpu"):
        from maxsim_cpu import maxsim_scores_variable

        arrays = [rows.numpy() for rows in documents]
        jobs["maxsim-cpu"] = lambda: torch.from_numpy(maxsim_scores_variable(query.numpy(), arrays))
    if installed("sentence-transformers"):
        from sentence_transformers.util import maxsim as st_maxsim

        listed = documents.to_list()
        jobs["sentence-transformers"] = lambda: st_maxsim([query], listed)[0]
    return jobs


def parts(query: Tensor, documents: TokenEmbeddings) -> dict[str, Callable[[], Tensor]]:
    """The product of one block, and ways to take each document's maxima of it."""
    count = int(torch.searchsorted(documents.offsets, BLOCK_ROWS, right=True)) - 1
    bounds, lengths = documents.offsets[: count + 1], documents.lengths[:count]
    block = documents.values[: bounds[-1]]
    products = torch.mm(block, query.T)
    maxima_by_product = partial(torch_kernel.maxima_by_product, products, bounds)
    return {
        "product, rows first": partial(torch.mm, block, query.T, out=products.clone()),
        "product, query first": partial(torch.mm, query, block.T),
        "maxima, sparse product (ours)": maxima_by_product,
        "maxima, scatter_reduce_": partial(torch_kernel.maxima_by_scatter, products, bounds),
        "maxima, segment_reduce": partial(
            torch.segment_reduce, products, "max", lengths=lengths, unsafe=True
        ),
        "maxima, sparse product, bfloat16": partial(
            torch_kernel.maxima_by_product, products.bfloat16(), bounds
        ),
    }


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=len(available_cpus()))
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    restart_with(options.threads)
    torch.set_num_threads(options.threads)
    print({name: installed(name) for name in PACKAGES}, torch.backends.cpu.get_cpu_capability())

    documents = embeddings(options.documents)
    query = normalize(torch.randn(QUERY_ROWS, DIM, generator=torch.Generator().manual_seed(1)))
    rows = len(documents.values)
    print(f"1 x {len(documents):,} documents, {rows:,} rows, {options.threads} threads")

    jobs = scorers(query, documents)
    expected = jobs["colbert_rag"]()
    for job in jobs.values():
        torch.testing.assert_close(job(), expected, atol=1e-4, rtol=0)
    timings = interleave(jobs, repeats=options.repeats)
    ours = timings["colbert_rag"]
    print(f"{'scorer':34}{'median ms':>11}{'best ms':>10}{'x ours':>8}{'best':>7}  disturbed")
    for name, timing in timings.items():
        ratios = timing.seconds / ours.seconds, timing.best / ours.best
        times = f"{1e3 * timing.seconds:11.1f}{1e3 * timing.best:10.1f}"
        print(f"{name:34}{times}{ratios[0]:8.2f}{ratios[1]:7.2f}  {timing.disturbed}")

    print(f"{'part of one block':34}{'median':>11}{'best':>10}  ns per row")
    for name, timing in interleave(parts(query, documents), repeats=options.repeats).items():
        per_row = 1e9 / min(BLOCK_ROWS, rows)
        print(f"{name:34}{timing.seconds * per_row:11.1f}{timing.best * per_row:10.1f}")


if __name__ == "__main__":
    main()
