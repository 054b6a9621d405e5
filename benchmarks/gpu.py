"""One CUDA device: its measured ceilings, and what encoding, MaxSim and reranking reach of them.

Needs the repository, torch, transformers and sentence-transformers; no network, no data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import checkpoints, corpora, peers
from benchmarks.machine import installed
from benchmarks.maxsim import DIM, QUERY_ROWS, reference
from benchmarks.report import Plan, Table
from benchmarks.roofline import encoding_work
from benchmarks.timing import interleave
from colbert_rag import ColBERT, TokenEmbeddings
from colbert_rag.device import resolve_dtype
from colbert_rag.maxsim import maxsim, maxsim_many

MEMORY_SHARE = 0.6
"""Of the free memory that stored vectors may take; scores and scratch need room too."""

LARGEST_ERROR = 1e-3
"""Of a MaxSim sum against float64 on the same bfloat16 vectors: only the order of sums differs."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        models: Checkpoints.
        products: Rows, inner and outer width of GEMMs: a large square, and a full batch of
            32,768 tokens through the widest layers of a base model.
        copied: Bytes of the copy.
        compared: Documents encoded by all peers.
        bulk: Documents encoded by us alone.
        stored: Documents scored, at most; memory may allow fewer.
        listed: Documents scored by sentence-transformers too.
        queries: Queries scored at once.
        candidates: Documents of a rerank.
        reranks: Repetitions of a rerank.
    """

    models: tuple[str, ...] = ("bert-base", "modernbert-base")
    products: tuple[tuple[int, int, int], ...] = (
        (8192, 8192, 8192),
        (32768, 768, 3072),
        (32768, 3072, 768),
    )
    copied: int = 2**32
    compared: int = 4096
    bulk: int = 20480
    stored: int = 1_000_000
    listed: int = 10_000
    queries: int = 64
    candidates: int = 100
    reranks: int = 25


TOY = Sizes(("tiny",), ((64, 64, 64),), 2**20, 4, 6, 60, 20, 3, 5, 2)


def run(plan: Plan) -> Iterator[Table]:
    """Measure the first CUDA device."""
    yield from measure("cuda:0", TOY if plan.quick else Sizes(), plan.repeats)


def measure(device: str, sizes: Sizes, repeats: int) -> Iterator[Table]:
    """All tables, the ceilings first; a CPU as the device only shows that the code runs."""
    ceilings, rates = _ceilings(device, sizes, repeats)
    yield ceilings
    yield from _maxsim(device, sizes, repeats, rates)
    for name in sizes.models:
        yield from _model(device, name, sizes, repeats, rates)


def device_seconds(job: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Time between two events on the device, once per repetition, after two warm-up calls."""
    for _ in range(2):
        job()
    seconds = []
    for _ in range(repeats):
        if not device.startswith("cuda"):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
            continue
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize()
        events[0].record()
        job()
        events[1].record()
        torch.cuda.synchronize()
        seconds.append(events[0].elapsed_time(events[1]) / 1000)
    return seconds


def _finish(device: str) -> Callable[[], object]:
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def _ceilings(device: str, sizes: Sizes, repeats: int) -> tuple[Table, dict[str, float]]:
    """Matrix products per second by dtype, and bytes copied per second: the best seen."""
    table = Table("gpu", "Ceilings of the device: best of the repetitions")
    rates: dict[str, float] = {}
    for dtype in ("bfloat16", "float32"):
        for rows, inner, outputs in sizes.products:
            # Random data: products of zeros run faster than real ones.
            left = torch.randn(rows, inner, device=device).to(getattr(torch, dtype))
            right = torch.randn(outputs, inner, device=device).to(getattr(torch, dtype))
            job = partial(torch.nn.functional.linear, left, right)
            best = min(device_seconds(job, device, max(repeats, 10)))
            rate = 2 * rows * inner * outputs / best
            rates[dtype] = max(rates.get(dtype, 0.0), rate)
            what = f"GEMM {dtype} {rows} x {inner} x {outputs}"
            table.rows.append({"what": what, "rate": rate / 1e12, "unit": "TFLOP/s"})
    block = torch.randn(sizes.copied // 4, device=device)
    copy = partial(torch.empty_like(block).copy_, block)
    rates["copy"] = 2 * block.nbytes / min(device_seconds(copy, device, max(repeats, 10)))
    what = f"copy {block.nbytes / 2**20:,.0f} MiB (read and written)"
    table.rows.append({"what": what, "rate": rates["copy"] / 1e9, "unit": "GB/s"})
    return table, rates


def _model(
    device: str, name: str, sizes: Sizes, repeats: int, rates: dict[str, float]
) -> Iterator[Table]:
    folder = checkpoints.build(name)
    tokenizer = checkpoints.open_tokenizer(folder)
    title = checkpoints.title(name, folder)
    opened, skipped = peers.open_peers(
        folder,
        device=device,
        only=("colbert_rag", peers.ST, peers.ST_LARGE_BATCHES.name),
        table=(*peers.PEERS, peers.ST_LARGE_BATCHES),
    )
    texts = corpora.documents(max(sizes.bulk, sizes.compared), tokenizer)
    query = corpora.questions(1)[0]
    candidates = texts[: sizes.candidates]
    agreements = peers.compare({x: peer.rerank(query, candidates) for x, peer in opened.items()})
    exact = "colbert_rag float32"
    # Told by its switch to take a type that the device is slow in, "auto" is left out above.
    auto = f"colbert_rag {resolve_dtype('auto', device)}"
    fast = auto if auto in opened else exact
    encoders = {x: peer.encode for x, peer in opened.items() if peer.encode is not None}
    # Exact mode is for parity, and would only hold up the others in bulk.
    compared = {x: encode for x, encode in encoders.items() if x != exact or x == fast}
    notes = [f"Left out: {reason}" for reason in skipped]
    for count, chosen in ((sizes.compared, compared), (sizes.bulk, {fast: encoders[fast]})):
        some = texts[:count]
        table = _encode(device, folder, some, chosen, repeats, rates, agreements)
        table.title = f"Encode {count:,} documents, text to vectors, {table.title}: {title}"
        table.notes += [*notes, _tokenizing(fast, folder, device, some)]
        yield table
    tokens = checkpoints.count_tokens(candidates, folder)
    job = f"1 query x {len(candidates)} documents, {tokens:,} tokens: {title}"
    cold = {x: partial(peer.rerank, query, candidates) for x, peer in opened.items()}
    warm = {
        x: partial(peer.remember(candidates), query)
        for x, peer in opened.items()
        if peer.remember is not None
    }
    for kind, jobs in (("cold", cold), ("warm (documents' vectors kept)", warm)):
        table = Table("gpu", f"Rerank {kind}, text in, scores out, {job}")
        _rerank(table, device, jobs, sizes.reranks, agreements)
        yield table


def _encode(
    device: str,
    folder: Path,
    texts: list[str],
    encoders: dict[str, Callable[[list[str]], list[Tensor]]],
    repeats: int,
    rates: dict[str, float],
    agreements: dict[str, peers.Agreement],
) -> Table:
    lengths = checkpoints.lengths(texts, folder)
    work, tokens = encoding_work(folder, lengths), sum(lengths)
    jobs = {label: partial(encode, texts) for label, encode in encoders.items()}
    for job in jobs.values():
        job()
    timings = interleave(jobs, repeats=repeats, least_seconds=0, finish=_finish(device))
    table = Table("gpu", f"{tokens:,} tokens of {corpora.source()}")
    baseline = timings.get(peers.BASELINE)
    for label, timing in timings.items():
        comparable = baseline is not None and agreements[label].same
        rate = rates["bfloat16" if "bfloat16" in label else "float32"]
        table.timed(
            label,
            timing,
            baseline.seconds if baseline is not None and comparable else None,
            {
                "documents/s": len(texts) / timing.seconds,
                "tokens/s": tokens / timing.seconds,
                "TFLOP/s": work / timing.seconds / 1e12,
                "of the GEMM rate": work / timing.seconds / rate,
                "largest score difference": agreements[label].difference,
            },
        )
    table.compare_best()
    table.notes.append(
        "Real tokens only. Tokenising and transfers to the device are included; vectors stay there."
    )
    return table


def _tokenizing(label: str, folder: Path, device: str, texts: list[str]) -> str:
    """What tokenising alone takes: it runs ahead of the device, but not faster than it can."""
    model = ColBERT.from_pretrained(folder, device=device)
    start = time.perf_counter()
    tokens = int(model.tokenizer.documents(texts).offsets[-1])
    seconds = time.perf_counter() - start
    return f"{label}: tokenising alone takes {seconds:.3g} s, {tokens / seconds:,.0f} tokens/s"


def _rerank(
    table: Table,
    device: str,
    jobs: Mapping[str, Callable[[], list[float]]],
    repeats: int,
    agreements: dict[str, peers.Agreement],
) -> None:
    for job in jobs.values():
        job()
        job()
    timings = interleave(jobs, repeats=repeats, least_seconds=0, finish=_finish(device))
    baseline = timings.get(peers.BASELINE)
    for label, timing in timings.items():
        seconds = [repetition.seconds for repetition in timing.repetitions]
        comparable = baseline is not None and agreements[label].same
        table.timed(
            label,
            timing,
            baseline.seconds if baseline is not None and comparable else None,
            {
                "p50 ms": 1000 * statistics.median(seconds),
                "p95 ms": 1000 * float(np.quantile(seconds, 0.95)),
                "largest score difference": agreements[label].difference,
                "shared top 10": agreements[label].shared_top,
            },
        )
    table.compare_best()


def stored_vectors(count: int, device: str) -> TokenEmbeddings:
    """Random unit vectors of ragged documents, about 180 rows each and at most 512, bfloat16."""
    lengths = np.random.default_rng(0).lognormal(np.log(153), 0.593, count).round().clip(4, 512)
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
    values = torch.empty(int(offsets[-1]), DIM, dtype=torch.bfloat16, device=device)
    for part in values.split(2**22):
        part.copy_(normalize(torch.randn(part.shape, device=device), dim=1))
    return TokenEmbeddings(values, offsets)


def _maxsim(device: str, sizes: Sizes, repeats: int, rates: dict[str, float]) -> Iterator[Table]:
    count = sizes.stored
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        count = min(count, int(MEMORY_SHARE * free / (180 * DIM * 2)))
    documents = stored_vectors(count, device)
    asked = torch.randn(sizes.queries, QUERY_ROWS, DIM, device=device)
    queries = TokenEmbeddings.from_list(list(normalize(asked, dim=2).bfloat16()))
    rows = int(documents.offsets[-1])
    table = Table(
        "gpu",
        f"MaxSim over {count:,} documents ({rows:,} rows of {DIM}, bfloat16, "
        f"{documents.values.nbytes / 2**30:.1f} GiB): {QUERY_ROWS} rows a query",
    )
    for many in (1, sizes.queries):
        few = queries[:many]
        job = (
            partial(maxsim_many, few, documents) if many > 1 else partial(maxsim, few[0], documents)
        )
        error = _error(job().reshape(many, -1), few, documents)
        if not error <= LARGEST_ERROR:  # also when it is NaN
            table.notes.append(f"{many} queries: scores are wrong by {error:.2g}; not timed")
            continue
        seconds = statistics.median(device_seconds(job, device, max(repeats, 7)))
        read = documents.values.nbytes / rates["copy"]
        product = 2 * many * QUERY_ROWS * rows * DIM / rates["bfloat16"]
        table.rows.append(
            {
                "peer": "colbert_rag bfloat16",
                "queries": many,
                "milliseconds": 1000 * seconds,
                "per query": 1000 * seconds / many,
                "of the copy bandwidth": read / seconds,
                "of the GEMM rate": product / seconds,
                "of the floor": max(read, product) / seconds,
                "largest error": error,
            }
        )
    table.notes.append(
        "Medians of the time between events on the device. Floor: vectors read once at the copy "
        "rate, or the products at the GEMM rate, whichever is longer."
    )
    yield table
    if installed(peers.ST):
        yield _listed(device, sizes, repeats, queries, documents[: min(sizes.listed, count)])


def _listed(
    device: str, sizes: Sizes, repeats: int, queries: TokenEmbeddings, documents: TokenEmbeddings
) -> Table:
    """The same scores by sentence-transformers, which takes one tensor per document."""
    from sentence_transformers.util import maxsim as st_maxsim

    table = Table(
        "gpu",
        f"MaxSim over {len(documents):,} documents ({len(documents.values):,} rows of {DIM}, "
        f"bfloat16): {QUERY_ROWS} rows a query",
        baseline=f"{peers.ST} bfloat16",
    )
    listed = documents.to_list()
    for many in (1, sizes.queries):
        few = queries[:many]
        jobs: dict[str, Callable[[], Tensor]] = {
            "colbert_rag bfloat16": partial(maxsim_many, few, documents),
            table.baseline: partial(st_maxsim, few.to_list(), listed),
        }
        errors = {label: _error(job(), few, documents) for label, job in jobs.items()}
        timings = interleave(jobs, repeats=repeats, least_seconds=0, finish=_finish(device))
        baseline = timings[table.baseline].seconds
        for label, timing in timings.items():
            cells = {"queries": many, "largest error": errors[label]}
            same = errors[label] <= peers.TOLERANCE["bfloat16"]
            table.timed(label, timing, baseline if same else None, cells)
    return table


def _error(scores: Tensor, queries: TokenEmbeddings, documents: TokenEmbeddings) -> float:
    """Largest error on some documents, the first and the last among them, against float64."""
    places = sorted({*range(0, len(documents), max(len(documents) // 16, 1)), len(documents) - 1})
    true = reference(queries.to_list(), documents[places].to_list())
    found = scores[:, torch.tensor(places, device=scores.device)]
    return float((found - true).abs().max())
