"""What a search will read of a disk, asked for all at once.

Whoever reads one place after another waits for each, about a tenth of a millisecond; a disk gives
many in that time. All of this changes when something is there, and never what: it reads what others
read after it, and throws it away.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from colbert_rag.forks import no_fork_unless_waiting
from colbert_rag.index.local.descriptors import spare

if sys.platform == "linux":
    import resource

Row = TypeVar("Row")

# Documents that are read before it is known whether a disk must be waited for; then twice as many.
_FIRST = 64

# A thread waits for one place at a time, so they are many more than processors.
_THREADS = 16

# Each thread opens the file, and SQLite keeps it open as long as the index is. So many are left for
# everybody else: what is read ahead must not be why something fails.
_KEPT = 32

# The comparison makes SQLite read all of a row; a row for each document would need Python's lock.
_READ = (
    "SELECT count(*) FROM vectors WHERE position IN (SELECT value FROM json_each(?)) "
    "AND embeddings IS zeroblob(0)"
)


def faults() -> int:
    """Pages of mapped files that this thread waited for a disk to read; 0 where none counts."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def reads() -> tuple[int, int]:
    """Blocks that a disk read for this thread, and how often it waited; zeros where none counts."""
    if sys.platform != "linux":
        return 0, 0
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_inblock, used.ru_nvcsw


def _waits(before: tuple[int, int]) -> int:
    """How often this thread has waited for a disk since.

    Neither number is enough: the system reads on behind what is asked for, and nobody waits for
    that; and a lock that threads share is waited for as well.
    """
    return min(now - then for now, then in zip(reads(), before, strict=True))


def found_scattered(
    find: Callable[[Sequence[int]], list[Row]], positions: Sequence[int], path: str
) -> list[Row]:
    """`find(positions)`, of documents that lie scattered over the file of the index at `path`."""
    found: list[Row] = []
    rest, size = positions, _FIRST
    while rest:
        before = reads()
        found += find(rest[:size])
        rest = rest[size:]
        if rest and _waits(before) > size // 4:
            read_vectors(path, rest)
            size = len(rest)
        size *= 2
    return found


def read_vectors(path: str, positions: Sequence[int]) -> None:
    """Have the vectors of some documents in the system's memory, from the index at `path`."""
    threads = min(_THREADS, _THREADS if (left := spare()) is None else left - _KEPT)
    if threads < 1:
        return
    share = -(-len(positions) // threads)
    parts = [positions[first : first + share] for first in range(0, len(positions), share)]
    # Without locks and without the log, so that it can neither wait, nor write, nor replay anything
    # where another file was put in this one's place.
    target = f"{Path(path).as_uri()}?mode=ro&immutable=1"
    ended = []
    with contextlib.suppress(RuntimeError):  # Python is ending, or there are too many threads
        for part in parts:
            end = threading.Event()
            threading.Thread(target=_read, args=(target, part, end), daemon=True).start()
            ended.append(end)
    # Not by `join`: an interrupt of it makes a thread that runs on seem ended (Python 3.11).
    for end in ended:
        end.wait()


def _read(target: str, positions: Sequence[int], end: threading.Event) -> None:
    try:
        # The caller keeps forks away from SQLite as well, but an interrupt ends its wait for this.
        # And what somebody writes meanwhile may look damaged.
        with no_fork_unless_waiting() as free, contextlib.suppress(sqlite3.Error):
            if free:
                _touch(target, positions)
    finally:
        end.set()


def _touch(target: str, positions: Sequence[int]) -> None:
    with contextlib.closing(sqlite3.connect(target, uri=True)) as connection:
        connection.execute(_READ, (json.dumps(positions),)).fetchone()


def read_pages(mapped: mmap.mmap, begins: NDArray[np.int64], size: int) -> None:
    """Ask for places of a mapped file, each of `size` bytes, rising; nothing is waited for."""
    if not hasattr(mapped, "madvise"):  # Windows
        return
    first, last = begins // mmap.PAGESIZE, (begins + size - 1) // mmap.PAGESIZE
    # Pages side by side are one call.
    new = np.concatenate([[True], first[1:] > last[:-1] + 1])
    starts = first[new]
    ends = last[np.concatenate([np.flatnonzero(new)[1:] - 1, [-1]])] + 1
    with contextlib.suppress(OSError):  # a search reads them all the same
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            mapped.madvise(mmap.MADV_WILLNEED, start * mmap.PAGESIZE, (end - start) * mmap.PAGESIZE)
