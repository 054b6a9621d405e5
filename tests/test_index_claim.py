"""The file that says who writes: nobody else's is touched, and two can never hold it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from colbert_rag.errors import IndexBusyError, IndexStorageError
from colbert_rag.index import Changes, LocalIndex
from colbert_rag.index.local import claim
from colbert_rag.index.local.claim import Claim
from colbert_rag.index.local.place import Place
from tests.helpers.index_fakes import WordEncoder
from tests.helpers.interrupts import elsewhere


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "index"
    with LocalIndex(path, WordEncoder()) as index:
        index.add(["mars"])
    return path


def noise(file: Path) -> None:
    file.write_bytes(b"not a database")


def noise_of_the_right_size(file: Path) -> None:
    file.write_bytes(b"not a database".ljust(512))


def another_index(file: Path) -> None:
    with LocalIndex(file, WordEncoder()) as index:
        index.add(["venus"])


def another_database(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE users (name)")
    connection.close()


def state(file: Path) -> object:
    return file.read_bytes() if file.is_file() else sorted(file.iterdir())


@pytest.mark.parametrize(
    "make", [noise, noise_of_the_right_size, another_index, another_database, Path.mkdir]
)
def test_something_else_of_that_name_is_named_and_left_alone(
    path: Path, make: Callable[[Path], None]
):
    file = path.with_name("index-writer")
    make(file)
    before = state(file)

    with LocalIndex(path, WordEncoder()) as index:
        for write in (lambda: index.add(["earth"]), lambda: index.delete(["x"]), index.compact):
            with pytest.raises(IndexStorageError) as caught:
                write()
            assert str(caught.value).startswith(f"{file} is in the way: ")
        assert len(index.search("mars")) == index.count() == 1
        index.verify()
        assert state(file) == before
        file.rename(path.with_name("elsewhere"))
        assert index.add(["earth"]) == Changes(added=1)

    assert state(path.with_name("elsewhere")) == before
    assert not file.exists()


@pytest.mark.parametrize("size", [0, 512])
def test_a_file_that_a_killed_writer_left_is_used_again(path: Path, size: int):
    file = path.with_name("index-writer")
    file.write_bytes(page_of_nothing(path.parent / "made")[:size])

    with LocalIndex(path, WordEncoder()) as index:
        assert index.add(["earth", "pluto"]) == Changes(added=2)
        assert [one.stat().st_size for one in path.parent.glob("index-writer*")] == [size]

    assert not file.exists()


def page_of_nothing(file: Path) -> bytes:
    """What earlier versions left, which ended a claim with a commit."""
    connection = sqlite3.connect(file, isolation_level=None)
    for statement in ("PRAGMA page_size = 512", "BEGIN EXCLUSIVE", "COMMIT"):
        connection.execute(statement)
    connection.close()
    return file.read_bytes()


def test_a_claim_writes_nothing_which_a_full_disk_would_refuse(path: Path):
    with LocalIndex(path, WordEncoder()) as index:
        index.add(["venus"])
        with pytest.raises(KeyError):
            index.update([{"id": "unknown", "text": "earth"}])
        index.delete(["unknown"])

        assert path.with_name("index-writer").read_bytes() == b""


def test_who_wrote_before_takes_no_claim_away_when_it_closes(path: Path):
    early = LocalIndex(path, WordEncoder())
    early.add(["venus"])
    with LocalIndex(path, WordEncoder()) as later:
        later.add(["earth"])  # closing it removes the file, which the next writer makes anew

    with LocalIndex(path, WordEncoder()) as writer:
        assert writer.add(closing(early, path)) == Changes(added=1)


def closing(early: LocalIndex, path: Path) -> Iterator[str]:
    early.close()
    with (
        LocalIndex(path, WordEncoder(), busy_timeout=0.1) as other,
        pytest.raises(IndexBusyError, match="one writer at a time"),
    ):
        other.add(["pluto"])
    yield "saturn"


def test_a_file_that_is_replaced_while_it_is_opened_is_not_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = path.with_name("index-writer")
    file.touch()
    other = Claim(Place(str(path)), timeout=0.1)
    held = []
    opened = claim._Held._open

    def opened_late(self: claim._Held) -> None:
        opened(self)
        if not held and file.exists():
            file.unlink()
            held.append(other.held())
            held[0].__enter__()

    monkeypatch.setattr(claim._Held, "_open", opened_late)

    with pytest.raises(IndexBusyError), Claim(Place(str(path)), timeout=0.1).held():
        pass

    held[0].__exit__(None, None, None)
    other.close()
    with Claim(Place(str(path)), timeout=0.1).held():
        pass


def test_who_writes_next_leaves_a_block_alone_that_has_not_ended(path: Path):
    shared = Claim(Place(str(path)), timeout=0)

    def next_one() -> bool:
        return shared.during(lambda: True)

    with shared.held() as first:
        assert first.last(lambda: "written") == "written"  # which lets go of the lock
        assert elsewhere(next_one)
    assert next_one()
    shared.close()


@pytest.mark.parametrize("when", ["in the block", "behind its lock"])
def test_closing_leaves_alone_the_block_of_another_thread(
    path: Path, when: str, monkeypatch: pytest.MonkeyPatch
):
    shared = Claim(Place(str(path)), timeout=0)
    ending = claim._Held.last

    def last(self: claim._Held, work: Callable[[], str]) -> str:
        found = ending(self, work)
        elsewhere(shared.close)
        return found

    def work() -> str:
        if when == "in the block":
            elsewhere(shared.close)
        return "written"

    if when == "behind its lock":
        monkeypatch.setattr(claim._Held, "last", last)

    assert shared.during(work) == "written"
    assert not path.with_name("index-writer").exists()


def test_writers_of_many_threads_leave_one_connection_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = []

    class Noted(claim._Held):
        def __enter__(self) -> Noted:
            made.append(self)
            return super().__enter__()

    def is_open(held: sqlite3.Connection) -> bool:
        try:
            return held.total_changes == 0
        except sqlite3.ProgrammingError:
            return False

    monkeypatch.setattr(claim, "_Held", Noted)
    with LocalIndex(path, WordEncoder(), busy_timeout=20) as index:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda at: index.add([f"venus {at}"]).added, range(60)))

        assert found == [1] * 60
        assert len(made) == 60
        assert sum(map(is_open, made)) == 1
    assert not any(map(is_open, made))
