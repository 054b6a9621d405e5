"""Processes that are killed, run out of disk, may not write, or read while another one writes."""

from __future__ import annotations

import random
import stat
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Changes, Document, LocalIndex
from tests.helpers.index_fakes import WordEncoder
from tests.helpers.index_processes import (
    BATCH,
    DOCUMENTS,
    TEXTS,
    add_everything,
    add_with_a_file_limit,
    answer,
    convert_with_a_file_limit,
    open_with_a_file_limit,
    read_meanwhile,
    read_opened_anew,
    started,
    use_without_rights,
    write_and_delete,
    write_opened_anew,
)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no fork server, signals or file limits"
)

KILLS = 50


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


def killed_while_adding(processes: ForkServerContext, path: Path, delay: float) -> None:
    process, pipe = started(processes, add_everything, path)
    assert answer(pipe) == "begun"
    pipe.poll(delay)
    process.kill()
    process.join()


def check_intact(path: Path) -> int:
    """Everything committed is whole, and is a whole number of batches; returns how much it is."""
    with LocalIndex(path, WordEncoder()) as index:
        index.verify()
        held = list(index)
        vectors = index.embeddings([document.id for document in held])
        found = index.search("mars storm", len(DOCUMENTS))
    assert held == DOCUMENTS[: len(held)]
    assert len(held) % BATCH == 0
    assert torch.equal(vectors.values, EXPECTED.values[: len(vectors.values)])
    assert len(found) == len(held)
    return len(held)


EXPECTED = WordEncoder().encode_documents(TEXTS).to(dtype=torch.float16)


@pytest.mark.slow
def test_a_process_killed_at_any_moment_loses_nothing_that_was_committed(
    processes: ForkServerContext, path: Path
):
    moments = random.Random(0)
    counts = []

    for _ in range(KILLS):
        killed_while_adding(processes, path, delay=moments.uniform(0, 0.15))
        counts.append(check_intact(path))
        path = next_path(path, counts[-1])

    grown = [count for count in counts if 0 < count < len(DOCUMENTS)]
    assert len(grown) >= KILLS // 4  # the kills did fall into the work


def next_path(path: Path, count: int) -> Path:
    """Go on with the same file until it is complete, then with a fresh one."""
    return path if count < len(DOCUMENTS) else path.with_name(f"{path.stem}x.sqlite")


def test_a_killed_run_is_completed_without_encoding_anything_twice(
    processes: ForkServerContext, path: Path
):
    killed_while_adding(processes, path, delay=0.05)
    committed = check_intact(path)

    process, pipe = started(processes, add_everything, path)
    assert answer(pipe) == "begun"
    encoded = answer(pipe)
    process.join()

    assert encoded == len(DOCUMENTS) - committed
    assert check_intact(path) == len(DOCUMENTS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_readers_in_other_processes_see_whole_commits_while_one_writes(
    processes: ForkServerContext, path: Path
):
    LocalIndex(path, WordEncoder()).close()
    seconds = 60.0

    writer, written = started(processes, write_and_delete, path, seconds)
    readers = [started(processes, read_meanwhile, path, seconds) for _ in range(4)]
    reports = [answer(pipe) for _, pipe in readers]
    groups = answer(written)
    [process.join() for process, _ in [*readers, (writer, written)]]

    assert groups > 5
    assert all(isinstance(report, int) and report > 5 for report in reports), reports
    assert LocalIndex(path).count() == (groups - groups // 2) * BATCH


def test_readers_that_come_and_go_beside_a_writer_lose_nothing(
    processes: ForkServerContext, path: Path
):
    LocalIndex(path, WordEncoder()).close()

    writer, written = started(processes, write_opened_anew, path, 2.0)
    readers = [started(processes, read_opened_anew, path, 2.0) for _ in range(3)]
    reports = [answer(pipe) for _, pipe in readers]
    groups = answer(written)
    [process.join() for process, _ in [*readers, (writer, written)]]

    assert groups > 2
    assert all(isinstance(report, int) and report > 2 for report in reports), reports
    with LocalIndex(path, WordEncoder()) as index:
        index.verify()
        assert index.count() == groups * BATCH
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_disk_that_refuses_a_write_loses_nothing(processes: ForkServerContext, path: Path):
    process, pipe = started(processes, add_with_a_file_limit, path, 200_000)
    message, committed = answer(pipe)
    process.join()

    assert "could not be written" in message
    assert "is intact" in message
    assert check_intact(path) == committed
    assert 0 < committed < len(DOCUMENTS)
    with LocalIndex(path, WordEncoder()) as index:
        assert index.add(DOCUMENTS).unchanged == committed


def test_a_disk_that_refuses_every_write_says_so(processes: ForkServerContext, path: Path):
    with LocalIndex(path, WordEncoder()) as index:
        index.add(DOCUMENTS[:BATCH])

    process, pipe = started(processes, add_with_a_file_limit, path, 0)
    message, committed = answer(pipe)
    process.join()

    assert message.startswith(f"{path} could not be written (")
    assert check_intact(path) == committed == BATCH
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("limit", [0, 4_096])  # of the 32 KiB beside it
def test_an_intact_file_on_a_full_disk_asks_for_space(
    processes: ForkServerContext, path: Path, limit: int
):
    with LocalIndex(path, WordEncoder()) as index:
        index.add(DOCUMENTS[:BATCH])

    process, pipe = started(processes, open_with_a_file_limit, path, limit)
    message = answer(pipe)
    process.join()

    assert message.startswith(f"{path} could not be opened (disk I/O error): free some space (")
    assert check_intact(path) == BATCH


def test_what_was_committed_is_no_failure_because_the_file_cannot_grow(
    processes: ForkServerContext, path: Path
):
    # Texts fill the file, and vectors the log: 40 times 20 rows of 16 numbers.
    documents = [Document(f"d{at}", f"mars {at} ".ljust(3_000, "x")) for at in range(40)]
    vectors = TokenEmbeddings.from_list([torch.eye(16).repeat(2, 1)[:20]] * len(documents))
    with LocalIndex(path, WordEncoder(), vectors="int8") as index:
        index.add_encoded(documents, vectors)

    process, pipe = started(processes, convert_with_a_file_limit, path)
    assert answer(pipe) == ("float16", 0)
    process.join()

    with LocalIndex(path, WordEncoder()) as index:
        index.verify()
        assert (index.vectors, list(index)) == ("float16", documents)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"),
    [
        pytest.param(0o444, 0o555, id="file and folder are read-only"),
        pytest.param(0o444, 0o777, id="only the file is read-only"),
    ],
)
def test_without_the_right_to_write_an_index_is_searched_and_refuses_changes(
    processes: ForkServerContext, open_folder: Path, file_mode: int, folder_mode: int
):
    path = open_folder / "index.sqlite"
    with LocalIndex(path, WordEncoder()) as index:
        index.add(DOCUMENTS[:20])
    before = path.read_bytes()
    path.chmod(file_mode)
    open_folder.chmod(folder_mode)

    process, pipe = started(processes, use_without_rights, path)
    hits, message = answer(pipe)
    process.join()

    assert hits == 20
    assert "writable" in message
    assert "read_only" not in message  # nobody asked for it
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == file_mode


def test_two_processes_that_add_the_same_documents_leave_one_of_each(
    processes: ForkServerContext, path: Path
):
    first, second = (started(processes, add_everything, path) for _ in range(2))
    encoded = [answer(pipe) and answer(pipe) for _, pipe in (first, second)]
    [process.join() for process, _ in (first, second)]

    assert sum(encoded) == len(DOCUMENTS)
    assert check_intact(path) == len(DOCUMENTS)
    assert LocalIndex(path, WordEncoder()).add(DOCUMENTS) == Changes(unchanged=len(DOCUMENTS))
