"""Asking engines of `benchmarks.scale` the same, in processes that need not have torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Query = TypeVar("Query")
Numbers = np.ndarray[Any, Any]

BEST, DEPTH = 10, 100
PASS_SECONDS, LEAST = 15.0, 3
"""A slow engine is asked fewer queries: no more once so long is over, but so many at least."""


def give(
    folder: Path,
    chunks: Iterator[tuple[Numbers, Numbers]],
    queries: Numbers,
    truth: Sequence[Sequence[int]],
) -> None:
    """Write what peers are given.

    Args:
        folder: Where.
        chunks: Vectors, `(tokens, dim)` in float16, and tokens of each passage; passages are
            numbered in this order.
        queries: `(queries, rows, dim)`, float32.
        truth: Numbers of the exact best of the first queries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (vectors, lengths) in enumerate(chunks):
        np.save(folder / f"vectors-{number}.npy", vectors)
        np.save(folder / f"lengths-{number}.npy", lengths)
    np.save(folder / "truth.npy", np.asarray(truth))
    np.save(folder / "queries.npy", queries)  # the last: with it, everything is there


def given(folder: Path) -> Iterator[tuple[int, Numbers, Numbers]]:
    """Chunks that were given: number of the first passage, vectors, and offsets of the passages."""
    first = 0
    for number in range(len(list(folder.glob("lengths-*.npy")))):
        lengths = np.load(folder / f"lengths-{number}.npy")
        yield (
            first,
            np.load(folder / f"vectors-{number}.npy", mmap_mode="r"),
            np.concatenate([[0], np.cumsum(lengths)]),
        )
        first += len(lengths)


def measured(
    search: Callable[[Query, int], list[int]],
    queries: Sequence[Query],
    truth: Sequence[Sequence[int]],
) -> dict[str, object]:
    """Cells of one way to search: times of the best ten, warm, and what is found.

    The best hundred of the same queries come first, so that what the timed ones read is in memory.
    """
    deep = list(_asked(search, queries, DEPTH))
    best = list(_asked(search, queries, BEST))
    p50, p95 = np.percentile([1e3 * seconds for seconds, _, _ in best], [50, 95])
    return {
        "p50 ms": round(float(p50), 1),
        "p95 ms": round(float(p95), 1),
        "CPU ms": round(1e3 * float(np.median([cpu for _, cpu, _ in best])), 1),
        "recall@10": recall([found for *_, found in best], truth, BEST),
        "recall@100": recall([found for *_, found in deep], truth, DEPTH),
        "queries": len(best),
    }


def _asked(
    search: Callable[[Query, int], list[int]], queries: Sequence[Query], k: int
) -> Iterator[tuple[float, float, list[int]]]:
    """Seconds, CPU seconds of all threads, and what was found, query by query."""
    begun = time.perf_counter()
    for number, query in enumerate(queries):
        start, cpu = time.perf_counter(), time.process_time()
        if number >= LEAST and start - begun > PASS_SECONDS:
            return
        found = search(query, k)
        yield time.perf_counter() - start, time.process_time() - cpu, found


def spent(job: Callable[[], object]) -> Numbers:
    """Seconds that a job takes, and CPU seconds of all threads."""
    start, cpu = time.perf_counter(), time.process_time()
    job()
    return np.array([time.perf_counter() - start, time.process_time() - cpu])


def building(job: str, took: Numbers | None) -> dict[str, object]:
    """Cells of a job of building; None for one that was not timed."""
    return {
        f"{job} {unit}": None if took is None else round(float(took[place]), 1)
        for place, unit in enumerate(("s", "CPU s"))
    }


def recall(found: Sequence[Sequence[int]], truth: Sequence[Sequence[int]], k: int) -> float:
    """Share of the true best `k` that were found, of the queries that both have."""
    parts = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(found, truth, strict=False)]
    return round(float(np.mean(parts)), 4)


def status(name: str) -> int:
    """Bytes of this process: VmRSS, of that RssAnon without pages of files, VmHWM at the most."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
