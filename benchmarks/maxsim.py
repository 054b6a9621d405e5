"""MaxSim alone, on vectors that are there already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.machine import installed
from benchmarks.peers import ST, TOLERANCE
from benchmarks.report import Plan, Table
from benchmarks.timing import interleave
from colbert_rag import TokenEmbeddings
from colbert_rag.device import computes_bfloat16
from colbert_rag.maxsim import maxsim_many

DIM, QUERY_ROWS = 128, 32
JOBS = (
    # queries, documents, documents in a quick run, whether all have 180 rows
    (1, 1000, 40, True),
    (1, 1000, 40, False),
    (1, 10000, 80, False),
    (8, 1000, 40, False),
)


def run(plan: Plan) -> Iterator[Table]:
    """Time every job with all scorers."""
    for queries, full, quick, uniform in JOBS:
        yield _score(plan, queries, plan.size(full, quick), uniform)


def embeddings(count: int, *, uniform: bool = False, seed: int = 0) -> TokenEmbeddings:
    """Random unit vectors: 180 rows each, or log-normal lengths with mean 170 and at most 512."""
    lengths = np.random.default_rng(seed).lognormal(np.log(143), 0.593, count)
    rows = np.full(count, 180) if uniform else lengths.round().clip(4, 512)
    offsets = np.concatenate([[0], rows.cumsum()]).astype(np.int64)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(int(offsets[-1]), DIM, generator=generator)
    return TokenEmbeddings(normalize(values, dim=1), torch.from_numpy(offsets))


def reference(queries: list[Tensor], documents: list[Tensor]) -> Tensor:
    """The definition, one pair at a time, in float64."""
    return torch.stack(
        [
            torch.stack(
                [(q.double() @ document.double().T).amax(dim=1).sum() for document in documents]
            )
            for q in queries
        ]
    )


def scorers(
    queries: TokenEmbeddings, documents: TokenEmbeddings
) -> dict[str, Callable[[], Tensor]]:
    """Every scorer that runs here, its input prepared in the form it wants."""
    inputs = {"float32": (queries, documents)}
    if computes_bfloat16("cpu"):
        half = torch.bfloat16
        inputs["bfloat16"] = queries.to(dtype=half), documents.to(dtype=half)
    jobs: dict[str, Callable[[], Tensor]] = {}
    for dtype, (asked, stored) in inputs.items():
        jobs[f"colbert_rag {dtype}"] = partial(maxsim_many, asked, stored)
        if installed(ST):
            from sentence_transformers.util import maxsim as st_maxsim

            jobs[f"{ST} {dtype}"] = partial(st_maxsim, asked.to_list(), stored.to_list())
    if installed("maxsim-cpu"):
        import maxsim_cpu

        arrays = [document.numpy() for document in documents]

        def rust() -> Tensor:
            scores = [maxsim_cpu.maxsim_scores_variable(q.numpy(), arrays) for q in queries]
            return torch.from_numpy(np.stack(scores))

        jobs["maxsim-cpu float32"] = rust
    return jobs


def _score(plan: Plan, count: int, documents: int, uniform: bool) -> Table:
    stored = embeddings(documents, uniform=uniform)
    asked = TokenEmbeddings.from_list(
        list(normalize(torch.randn(count, QUERY_ROWS, DIM, generator=_generator()), dim=2))
    )
    rows = int(stored.offsets[-1])
    lengths = "180 rows each" if uniform else "ragged"
    table = Table(
        "maxsim",
        f"MaxSim {count} x {documents:,} documents ({lengths}, {rows:,} rows of {DIM}): "
        f"{QUERY_ROWS} rows a query",
    )
    jobs = scorers(asked, stored)
    some = list(range(0, documents, max(documents // 50, 1)))
    true = reference(asked.to_list(), stored[some].to_list())
    errors = {label: float((job()[:, some] - true).abs().max()) for label, job in jobs.items()}
    timings = interleave(jobs, repeats=plan.repeats)
    baseline = timings[f"{ST} float32"].seconds if f"{ST} float32" in timings else None
    work = 2 * count * QUERY_ROWS * rows * DIM
    for label, timing in timings.items():
        same = errors[label] <= TOLERANCE[label.rsplit(" ", 1)[1]]
        table.timed(
            label,
            timing,
            baseline if same else None,
            {"GFLOP/s": work / timing.seconds / 1e9, "largest error": errors[label]},
        )
    return table


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
