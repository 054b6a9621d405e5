"""What a search takes while another process adds, deletes and optimises, beside an exact search.

Eight readers in four processes, each thread with a connection of its own, look for passages that
nobody removes by the first of their own vectors: a best hit that is another one, or whose score is
not that of its own vectors, is wrong. The writer adds passages, looks for one of them, removes
those it added before, and at times brings the level up to date. First all readers search exactly,
then all by way of the level, under the same changes; and once more.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from benchmarks import scale
from benchmarks.report import Plan, Table
from colbert_rag import LocalIndex, TokenEmbeddings
from colbert_rag.index import Document

PASSAGES, SECONDS, ROUNDS = (24_000, 2_000), (30, 2), 2
PROCESSES, THREADS = 4, 2
ADDED, BETWEEN, EVERY = 100, 0.5, 5
"""Passages a commit, seconds between them, and commits between levels."""

TOLERANCE = 0.01
"""Of a sum over 32 rows."""

Passages = tuple[list[Document], TokenEmbeddings]


@dataclass(frozen=True, slots=True)
class Search:
    """One search: when it began and ended, by a clock that all processes share."""

    begun: float
    ended: float

    @property
    def ms(self) -> float:
        """How long it took."""
        return 1e3 * (self.ended - self.begun)


@dataclass(slots=True)
class Read:
    """What one reader did: its searches, and what was wrong."""

    searches: list[Search] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Written:
    """What the writer did: when each commit and each level was there, and what was lost."""

    commits: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


Part = tuple[list[Read], Written]


def run(plan: Plan) -> Iterator[Table]:
    """One table: exact readers, then approximate ones."""
    size, seconds = plan.size(*PASSAGES), plan.size(*SECONDS)
    found = scale.pool(plan.collections or scale.COLLECTIONS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.sqlite"
        tokens = _filled(path, found, size)
        table = Table(
            "changes",
            f"{PROCESSES * THREADS} readers in {PROCESSES} processes, {ROUNDS} x {seconds} s each "
            f"way, while one process changes {size:,} passages, {tokens:,} tokens of width "
            f"{scale.DIM}",
            notes=[
                f"The writer adds {ADDED} passages, removes the {ADDED} before, and brings the "
                f"level up to date after each {EVERY}. First after a commit, or a level: of each "
                "reader, the first search that began after it.",
            ],
        )
        documents, vectors = found.chunk(size // scale.CHUNK)
        more = documents[:ADDED], vectors[:ADDED]
        parts: dict[bool, list[Part]] = {True: [], False: []}
        for number in range(2 * ROUNDS):  # in turn, so that a slow minute meets both
            exact = number % 2 == 0
            copy = Path(folder) / f"{number}.sqlite"
            for end in ("", "-level"):
                shutil.copy(f"{path}{end}", f"{copy}{end}")
            parts[exact].append(_measured(copy, exact, seconds, more))
            for file in Path(folder).glob(f"{copy.name}*"):
                file.unlink()
        for exact, measured in parts.items():
            table.rows += _rows("exact" if exact else "approximate", measured)
    yield table


def _filled(path: Path, found: scale.Pool, size: int) -> int:
    """Fill an index and make its level; how many vectors it has."""
    with LocalIndex(path, like=scale.INFO) as index:
        for number in range(size // scale.CHUNK):
            index.add_encoded(*found.chunk(number))
        index.optimize()
        return index.stats().tokens or 0


def _measured(path: Path, exact: bool, seconds: float, more: Passages) -> Part:
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(PROCESSES + 1)  # what starting takes is no search
    readers = [
        scale.started(read, path, exact, seconds, number, ready, threads=1)
        for number in range(PROCESSES)
    ]
    _, writer = scale.started(write, path, seconds, more, ready, threads=1)
    reads = [part for _, pipe in readers for part in pipe.recv()]
    written: Written = writer.recv()
    with LocalIndex(path) as index:
        index.verify()
    return reads, written


def _rows(readers: str, parts: Sequence[Part]) -> Iterator[dict[str, object]]:
    """Of all searches, and of those that were the first behind a commit or a level."""
    wrong = [bad for reads, _ in parts for some in reads for bad in some.wrong]
    wrong += [bad for _, written in parts for bad in written.wrong]
    for bad in wrong[:10]:
        print(bad, flush=True)
    kinds: dict[str, Callable[[Written], Sequence[float] | None]] = {
        "all": lambda written: None,
        "first after a commit": lambda written: written.commits,
        "first after a level": lambda written: written.levels,
    }
    for name, moments in kinds.items():
        times = [
            search.ms
            for reads, written in parts
            for some in reads
            for search in _first_after(some.searches, moments(written))
        ]
        if not times:  # the writer had no time for a level
            continue
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        yield {
            "readers": readers,
            "searches": name,
            "count": len(times),
            "p50 ms": round(float(p50), 1),
            "p95 ms": round(float(p95), 1),
            "p99 ms": round(float(p99), 1),
            "slowest ms": round(max(times), 1),
            "commits": sum(len(written.commits) for _, written in parts),
            "levels": sum(len(written.levels) for _, written in parts),
            "wrong or lost": len(wrong),
        }


def _first_after(searches: Sequence[Search], moments: Sequence[float] | None) -> list[Search]:
    if moments is None:
        return list(searches)
    places = np.searchsorted([search.begun for search in searches], moments)
    return [searches[at] for at in np.unique(places) if at < len(searches)]


def read(path: Path, exact: bool, seconds: float, number: int, ready: Barrier) -> list[Read]:
    """Search in several threads."""
    indexes = [LocalIndex(path, read_only=True) for _ in range(THREADS)]
    for index in indexes:
        _search(index, "p0", exact, Read())
    ready.wait()
    ends = [time.monotonic() + seconds] * THREADS
    seeds = [THREADS * number + at for at in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(_search_until, indexes, [exact] * THREADS, ends, seeds))


def _search_until(index: LocalIndex, exact: bool, end: float, seed: int) -> Read:
    random, found = np.random.default_rng(seed), Read()
    size = index.count() - ADDED
    while time.monotonic() < end:
        _search(index, f"p{random.integers(size)}", exact, found)
    return found


def _search(index: LocalIndex, name: str, exact: bool, found: Read) -> None:
    """Look for a passage by its own first vectors."""
    query = TokenEmbeddings.from_list([index.embeddings([name])[0][: scale.ROWS].float()])
    begun = time.monotonic()
    (hits,) = index.search_embeddings(query, 10, exact=exact)
    found.searches.append(Search(begun, time.monotonic()))
    own = float(query.values.square().sum())
    # Some passages begin alike, or are the same.
    if abs(hits[0].score - own) > TOLERANCE:
        found.wrong.append(f"{name}: {own:.4f} is its own score, {hits[0]} was best")


def write(path: Path, seconds: float, more: Passages, ready: Barrier) -> Written:
    """Add, look for what was added, remove what was added before, and make levels."""
    documents, vectors = more
    done, before, rounds = Written(), list[str](), 0
    with LocalIndex(path, busy_timeout=60) as index:
        kept = index.count()
        ready.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            added = [Document(f"{rounds}/{one.id}", f"{rounds} {one.text}") for one in documents]
            index.add_encoded(added, vectors)
            done.commits.append(time.monotonic())
            asked = TokenEmbeddings.from_list([vectors[rounds % ADDED].float()])
            best = index.search_embeddings(asked, 1, exact=False)[0][0]
            if abs(best.score - float(asked.values.square().sum())) > TOLERANCE:
                done.wrong.append(f"{added[rounds % ADDED].id} was added, {best} was best")
            index.delete(before)
            before, rounds = [one.id for one in added], rounds + 1
            done.commits.append(time.monotonic())
            if rounds % EVERY == 0:
                index.optimize()
                done.levels.append(time.monotonic())
            time.sleep(BETWEEN)
        if index.count() != kept + ADDED:
            done.wrong.append(f"{index.count()} passages, expected {kept + ADDED}")
    return done
