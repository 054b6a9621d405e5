"""Storing and searching: `LocalIndex` beside Qdrant's engine, on the same token vectors."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import corpora
from benchmarks.cold_start import child
from benchmarks.machine import installed
from benchmarks.report import Plan, Table
from benchmarks.stores import DIM, EDGE, ENGINES, QUERY_ROWS, Engine, Found, K, Store
from benchmarks.timing import interleave
from colbert_rag import TokenEmbeddings
from colbert_rag.index import Document

SIZES = ((2_000, 40), (10_000, 80), (50_000, 120))
"""Passages, and passages of a quick run."""

BATCH = 256
QUERIES, JUDGED = 16, 3
"""Queries that are asked in turn, and how many of them are compared with the definition."""

TOLERANCE = 0.004
"""Half the step between float16 numbers at 8, which is about the best sum of 32 random rows."""

CHARACTERS = 4.4
"""Of English text for one token, so that a file holds what it would hold in use."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling the stores gave.

    Attributes:
        size: For titles.
        tokens: Rows in each store.
        true: Scores by the definition, `(JUDGED, passages)`, float64.
        seconds: Building time by engine, until everything is on disk.
        disk: Bytes by engine, of those that use a disk.
    """

    size: str
    tokens: int
    true: Tensor
    seconds: dict[str, float]
    disk: dict[str, int]


def run(plan: Plan) -> Iterator[Table]:
    """Fill all stores, compare what they find, then time them, at every size."""
    for full, quick in SIZES:
        count = plan.size(full, quick)
        engines, notes = runnable(count)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = {engine: folder / str(place) for place, engine in enumerate(engines)}
            stores = {name: engine.open(paths[name]) for name, engine in engines.items()}
            filled = fill(engines, stores, paths, count)
            yield _searched(plan, filled, stores, notes)
            for store in stores.values():
                store.close()
            stores.clear()
            yield _stored(plan, filled, engines, paths)


def runnable(count: int) -> tuple[dict[str, Engine], list[str]]:
    """Engines that can be measured at a size, and a sentence about each of the others."""
    found, notes = {}, []
    for name, engine in ENGINES.items():
        if installed(engine.program.package) is None:
            notes.append(f"Left out: {name}: not installed")
        elif count > engine.most:
            notes.append(f"Left out: {name}, above {engine.most:,} passages: Python, and slow")
        else:
            found[name] = engine
    return found, notes


def passages(count: int) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
    """Random unit vectors in float16 for texts of log-normal length: mean about 149 tokens."""
    drawn = np.random.default_rng(0).lognormal(np.log(corpora.MEDIAN_TOKENS), corpora.SPREAD, count)
    lengths = drawn.round().clip(corpora.SHORTEST_TOKENS, corpora.LONGEST_TOKENS).astype(np.int64)
    english = " ".join(corpora.docstrings())
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, BATCH):
        some = lengths[start : start + BATCH].tolist()
        offsets = torch.tensor([0, *itertools.accumulate(some)])
        values = normalize(torch.randn(int(offsets[-1]), DIM, generator=generator), dim=1).half()
        documents = [
            Document(
                str(number),
                english[(place := number * 997 % 10**6) : place + int(CHARACTERS * length)],
                {"source": "docstrings", "page": number % 100},
            )
            for number, length in enumerate(some, start)
        ]
        yield documents, TokenEmbeddings(values, offsets)


def questions() -> list[Tensor]:
    """Unit vectors that float16 holds exactly, so that no engine is given others."""
    drawn = torch.randn(QUERIES, QUERY_ROWS, DIM, generator=torch.Generator().manual_seed(1))
    return list(normalize(drawn, dim=2).half().float())


def reference(queries: Sequence[Tensor], vectors: TokenEmbeddings) -> Tensor:
    """The definition in float64, `(queries, documents)`; `vectors` has no text without rows."""
    products = vectors.values.double() @ torch.cat(list(queries)).double().T
    maxima = np.maximum.reduceat(products.numpy(), vectors.offsets[:-1].numpy())
    sums = maxima.reshape(len(vectors), len(queries), -1).sum(2)
    return torch.from_numpy(sums).T


def fill(
    engines: dict[str, Engine], stores: dict[str, Store], paths: dict[str, Path], count: int
) -> Filled:
    """Put every batch into every store in turn; those on disk are closed and opened again."""
    seconds = dict.fromkeys(stores, 0.0)
    disk: dict[str, int] = {}
    true, tokens = [], 0
    judged = questions()[:JUDGED]
    for documents, vectors in passages(count):
        for name, store in stores.items():
            seconds[name] += _seconds(partial(store.add, documents, vectors))
        true.append(reference(judged, vectors))
        tokens += len(vectors.values)
    for name, engine in engines.items():
        if engine.on_disk:
            seconds[name] += _seconds(stores[name].close)
            disk[name] = _allocated(paths[name])
            stores[name] = engine.open(paths[name])
    size = f"{count:,} passages ({tokens:,} rows of {DIM}, float16)"
    return Filled(size, tokens, torch.cat(true, dim=1), seconds, disk)


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _allocated(path: Path) -> int:
    """Bytes the file system gave to a folder, or to a file and those beside it with its name."""
    files = (file for file in path.parent.rglob("*") if file.is_file())
    return sum(file.stat().st_blocks * 512 for file in files if str(file).startswith(str(path)))


def _searched(plan: Plan, filled: Filled, stores: dict[str, Store], notes: Sequence[str]) -> Table:
    table = Table(
        "index",
        f"Exact search of {filled.size}: {QUERY_ROWS} rows a query, best {K}",
        notes=[
            *notes,
            f"{EDGE} {installed(EDGE)} (searches a segment by one thread, and keeps one), "
            f"qdrant-client {installed('qdrant-client')}. p50 and p95: of all searches, disturbed "
            "ones too.",
            f"right: the fewest of the true best {K} that were found; largest error: of their "
            f"scores, against float64; over {JUDGED} queries.",
        ],
        baseline=EDGE,
    )
    asked = questions()
    judged = {name: compare(store.search, asked, filled.true) for name, store in stores.items()}
    spent: dict[str, list[float]] = {name: [] for name in stores}
    jobs = {
        name: partial(_search, store.search, itertools.cycle(asked), spent[name])
        for name, store in stores.items()
    }
    timings = interleave(jobs, repeats=plan.size(4 * plan.repeats, 1))
    for name, timing in timings.items():
        right, error, same = judged[name]
        p50, p95 = (1000 * float(np.percentile(spent[name], part)) for part in (50, 95))
        cells = {
            "p50 ms": p50,
            "p95 ms": p95,
            "searches": len(spent[name]),
            "ns/row": 1e9 * timing.seconds / filled.tokens,
            "right": right,
            "largest error": error,
        }
        baseline = timings[EDGE].seconds if EDGE in timings else None
        table.timed(name, timing, baseline if same else None, cells)
    return table


def _search(search: Callable[[Tensor], Found], turn: Iterator[Tensor], spent: list[float]) -> None:
    spent.append(_seconds(partial(search, next(turn))))


def compare(
    search: Callable[[Tensor], Found], asked: Sequence[Tensor], true: Tensor
) -> tuple[int, float, bool]:
    """How many of the true best were found, the largest error, and whether it is rounding.

    Documents may change places where their true scores are nearer than the tolerance.
    """
    least, error, agrees = K, 0.0, True
    for query, scores in zip(asked, true, strict=False):
        found = search(query)
        best = scores.topk(min(K, len(scores)))
        ids = [int(name) for name, _ in found]
        least = min(least, len(set(ids) & set(best.indices.tolist())))
        given = torch.tensor([score for _, score in found], dtype=torch.float64)
        error = max(error, float((given - scores[ids]).abs().max()))
        agrees &= len(ids) == len(best.values)
        agrees &= bool((scores[ids] >= best.values[-1] - TOLERANCE).all())
    return least, error, agrees and error <= TOLERANCE


def _stored(
    plan: Plan, filled: Filled, engines: dict[str, Engine], paths: dict[str, Path]
) -> Table:
    table = Table(
        "index",
        f"Storing {filled.size}",
        notes=[
            f"build: batches of {BATCH} in turn, in one process, then flushed and closed. disk: "
            f"blocks in use after that, with texts of {CHARACTERS} characters a token and metadata "
            f"(and the log that {EDGE} keeps); the vectors alone are {2 * DIM} bytes a token.",
            "open: a new process, imports done, files in the page cache, until its first search is "
            "answered; median. peak: the whole process, which opens and searches, or where nothing "
            "can be opened builds and searches; own: less what the imports took. Pages of mapped "
            f"files count, which the system can take back: most of {EDGE}'s, and the vectors of "
            "LocalIndex, whose processes share a copy that disk does not count.",
        ],
    )
    measured = _processes(engines, paths, plan.size(3, 1))
    for name, engine in engines.items():
        runs = measured[name]
        peak = max(run["peak_mib"] for run in runs)
        disk = filled.disk.get(name)
        opened = sorted(run["job_seconds"] for run in runs)[len(runs) // 2]
        table.rows.append(
            {
                "peer": name,
                "build seconds": filled.seconds[name],
                "disk MiB": None if disk is None else disk / 2**20,
                "disk bytes/token": None if disk is None else disk / filled.tokens,
                "open seconds": opened if engine.on_disk else None,
                "peak MiB": peak,
                "own MiB": peak - runs[0]["loaded_mib"],
            }
        )
    return table


def _processes(
    engines: dict[str, Engine], paths: dict[str, Path], repeats: int
) -> dict[str, list[dict[str, float]]]:
    """What new processes measure of themselves; those that must build do it once."""
    ours = next(iter(paths.values()))
    query, nothing = ours.with_name("query.npy"), ours.with_name("texts.json")
    np.save(query, questions()[0].numpy())
    nothing.write_text("[]", encoding="utf-8")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for turn in range(repeats):
        for name, engine in engines.items():
            if engine.on_disk or turn == 0:
                folder = paths[name] if engine.on_disk else ours
                program = engine.program
                found[name].append(child(program, program.rerank, folder, str(query), nothing))
    return found
