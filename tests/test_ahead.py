"""Reading ahead: it changes when something is there, and never what."""

from __future__ import annotations

import mmap
import os
import signal
import sqlite3
import sys
import threading
import time
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_rag import forks
from colbert_rag.forks import is_torn
from colbert_rag.index.local import ahead
from colbert_rag.index.local.ahead import found_scattered, read_pages, read_vectors, reads
from colbert_rag.index.local.level.pages import PAGE, DamagedPageError, Pages, page_sums

ROWS, BYTES = 2_000, 10_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the table that is read, of 20 MB."""
    path = tmp_path / "index.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA page_size = 1024")
    connection.execute("CREATE TABLE vectors (position INTEGER PRIMARY KEY, embeddings BLOB)")
    rows = ((position, os.urandom(BYTES)) for position in range(1, ROWS + 1))
    connection.executemany("INSERT INTO vectors VALUES (?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def forget(path: Path) -> None:
    """Have the system drop a file from its memory, or skip where it does not."""
    if sys.platform != "linux":
        pytest.skip("only Linux counts what a thread reads of a disk")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before, _ = reads()
        file.read(1)
        read = reads()[0] - before
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not read:
        pytest.skip("files lie in memory here, or what is read of a disk is not counted")


def read(path: Path, positions: list[int]) -> list[tuple[int, int]]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    query = "SELECT position, embeddings FROM vectors WHERE position = ?"
    found = [connection.execute(query, (position,)).fetchone() for position in positions]
    connection.close()
    return [(position, zlib.crc32(blob)) for position, blob in found]


def test_what_was_read_ahead_needs_no_disk(path: Path) -> None:
    positions = list(range(5, ROWS, 9))
    forget(path)

    read_vectors(str(path), positions)

    before, _ = reads()
    read(path, positions)
    assert reads()[0] == before


def test_without_it_the_disk_is_waited_for(path: Path) -> None:
    """Or the test before proves nothing."""
    forget(path)
    before, _ = reads()

    read(path, list(range(5, ROWS, 9)))

    assert reads()[0] > before


def test_scattered_documents_are_read_ahead_once_the_disk_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = list(range(5, ROWS, 3))
    expected = read(path, positions)
    asked: list[list[int]] = []
    monkeypatch.setattr(ahead, "read_vectors", lambda _, some: asked.append(list(some)))

    assert found_scattered(lambda some: read(path, [*some]), positions, str(path)) == expected
    assert asked == []  # all of it was in memory

    forget(path)
    assert found_scattered(lambda some: read(path, [*some]), positions, str(path)) == expected
    assert asked == [positions[64:]]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 192, 193, 1_000])
@pytest.mark.parametrize("waits", [0, 1, 3])
def test_all_are_found_in_their_order(
    count: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the disk is waited for, and at whichever piece."""
    moments = iter([0] * 2 * waits + list(range(0, 10**6, 100)))
    monkeypatch.setattr(ahead, "reads", lambda: (moment := next(moments), moment))
    monkeypatch.setattr(ahead, "read_vectors", lambda *_: None)

    found = found_scattered(lambda some: [3 * one for one in some], range(count), "index")

    assert found == [3 * one for one in range(count)]


def test_documents_that_are_missing_end_it() -> None:
    assert found_scattered(lambda some: list(some)[1:], range(1_000), "index") != []


@pytest.mark.parametrize("content", [None, b"", b"no database" * 1000, "folder"])
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, content: object) -> None:
    path = tmp_path / "index.sqlite"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())

    read_vectors(str(path), [1, 2, 3])

    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("left", "threads"), [(None, 16), (1_000, 16), (48, 16), (37, 5), (33, 1), (32, 0), (0, 0)]
)
def test_it_leaves_files_to_be_opened_by_others(
    path: Path, monkeypatch: pytest.MonkeyPatch, left: int | None, threads: int
) -> None:
    parts: list[list[int]] = []
    monkeypatch.setattr(ahead, "spare", lambda: left)
    monkeypatch.setattr(ahead, "_touch", lambda _, part: parts.append(list(part)))

    read_vectors(str(path), range(320))

    assert len(parts) == threads
    assert sorted(position for part in parts for position in part) == [*range(320 * bool(threads))]


def test_it_waits_for_nobody_and_leaves_nothing(path: Path) -> None:
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    files = sorted(path.parent.iterdir())

    read_vectors(str(path), [1, 2, 3])

    assert sorted(path.parent.iterdir()) == files
    writer.close()


class Asked:
    """In place of a mapping, notes what is asked for."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def madvise(self, option: int, start: int, length: int) -> None:
        assert option == mmap.MADV_WILLNEED
        assert start % mmap.PAGESIZE == 0
        self.ranges.append((start, start + length))


@given(
    st.lists(st.integers(0, 400), min_size=1, unique=True).map(sorted), st.sampled_from([0, 512])
)
def test_pages_are_asked_for_once_and_neighbours_together(pages: list[int], begin: int) -> None:
    mapped = Asked()

    read_pages(mapped, begin + 1024 * np.array(pages), 1024)  # type: ignore[arg-type]

    size = mmap.PAGESIZE
    starts = [begin + 1024 * page for page in pages]
    wanted = {part for start in starts for part in (start // size, (start + 1023) // size)}
    asked = [part for low, high in mapped.ranges for part in range(low // size, high // size)]
    assert asked == sorted(wanted)
    assert all(first[1] < second[0] for first, second in pairwise(mapped.ranges))


@pytest.fixture
def mapped(tmp_path: Path) -> mmap.mmap:
    path = tmp_path / "level"
    path.write_bytes(os.urandom(4_000 * PAGE))
    forget(path)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@pytest.mark.parametrize("begin", [0, 512, 5 * PAGE])
def test_many_pages_are_checked_from_a_disk_as_from_memory(mapped: mmap.mmap, begin: int) -> None:
    data = np.frombuffer(mapped, np.uint8)[begin : begin + 3_900 * PAGE]
    sums = page_sums(data.copy())
    begins = PAGE * np.arange(0, 3_900, 7)

    Pages(data, sums, mapped, begin).check(begins, begins + 10)

    sums[7 * 300] ^= np.uint64(1)
    with pytest.raises(DamagedPageError):
        Pages(data, sums, mapped, begin).check(begins, begins + 10)


@pytest.mark.parametrize("begin", [0, 512, 5 * PAGE])
def test_pages_of_a_cold_file_are_asked_for_where_they_stand_in_it(
    mapped: mmap.mmap, begin: int
) -> None:
    data = np.frombuffer(mapped, np.uint8)[begin : begin + 3_900 * PAGE]
    asked = Asked()
    begins = PAGE * np.arange(0, 3_900, 40)

    with pytest.raises(DamagedPageError):
        Pages(data, np.zeros(3_900, np.uint64), asked, begin).check(begins, begins + 10)  # type: ignore[arg-type]

    size = mmap.PAGESIZE
    covered = {part for low, high in asked.ranges for part in range(low // size, high // size)}
    places = begin + begins
    assert covered == {*(places // size).tolist(), *((places + PAGE - 1) // size).tolist()}


def test_an_interrupted_reader_leaves_nothing_that_a_fork_does_not_wait_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's locks would be copied as taken, and the child would wait for them for ever."""
    inside, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(ahead, "_touch", lambda *_: (inside.set(), go_on.wait(5)))

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            read_vectors(str(path), [1, 2, 3])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert inside.is_set()

    threading.Timer(0.5, go_on.set).start()
    start = time.monotonic()
    child = os.fork()
    if not child:
        os._exit(0 if not is_torn() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert time.monotonic() - start > 0.4


def test_nothing_is_read_ahead_where_a_fork_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork waits for who asked for it, who would wait for this."""
    monkeypatch.setattr(ahead, "_touch", lambda *_: pytest.fail("read"))
    with forks._door:
        read_vectors_in = threading.Thread(target=read_vectors, args=(str(path), [1, 2, 3]))
        read_vectors_in.start()
        read_vectors_in.join(5)
    assert not read_vectors_in.is_alive()
