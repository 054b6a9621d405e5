"""The file that says who writes: nobody else's is touched, and two can never hold it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colbert_rag.errors import IndexBusyError, IndexStorageError
from colbert_rag.index import Changes, LocalIndex
from colbert_rag.index.local import claim
from colbert_rag.index.local.claim import Claim
from colbert_rag.index.local.place import Place
from tests.helpers.index_fakes import WordEncoder


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
    with LocalIndex(path, WordEncoder()) as index:
        index.add(["venus"])
        left = file.read_bytes()[:size]
    file.write_bytes(left)

    with LocalIndex(path, WordEncoder()) as index:
        assert index.add(["earth", "pluto"]) == Changes(added=2)
        assert [one.stat().st_size for one in path.parent.glob("index-writer*")] == [512]

    assert len(left) == size
    assert not file.exists()


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
