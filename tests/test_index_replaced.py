"""A file that is replaced, removed or published to while it is open, here and elsewhere."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from colbert_rag.codings import CodedEmbeddings
from colbert_rag.errors import IndexMismatchError, IndexStorageError
from colbert_rag.index import Document, LocalIndex
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.searcher import Searcher
from tests.helpers.index_fakes import WordEncoder, sentences
from tests.helpers.index_processes import answer, follow, started

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps open files in place")


def documents(name: str, count: int) -> list[Document]:
    return [Document(f"{name}{at}", f"{name} {text}") for at, text in enumerate(sentences(count))]


def made(path: Path, name: str, count: int = 20) -> Path:
    with LocalIndex(path, WordEncoder()) as index:
        index.add(documents(name, count))
    return path


def names(path: Path) -> set[str]:
    """The ids in a file, as SQLite alone reads them."""
    connection = sqlite3.connect(path)
    found = {row[0] for row in connection.execute("SELECT id FROM documents")}
    connection.close()
    return found


@pytest.mark.parametrize("count", [5, 40, 600])
def test_a_file_put_in_place_of_an_open_one_is_never_mixed_with_its_log(tmp_path: Path, count: int):
    live = made(tmp_path / "live", "old", 20)
    index = LocalIndex(live, WordEncoder())
    index.add(documents("more", 50))
    new = made(tmp_path / "new", "new", count)
    expected = names(shutil.copy(new, tmp_path / "copy"))
    new.replace(live)

    with pytest.raises(IndexStorageError, match=r"in place of another.*remove live-wal.*publish"):
        LocalIndex(live, WordEncoder())
    for use in (index.count, lambda: index.search("mars"), lambda: index.add(["venus"])):
        with pytest.raises(IndexStorageError, match=r"replaced by another file.*publish"):
            use()
    index.close()
    with pytest.raises(IndexStorageError, match="in place of another"):
        LocalIndex(live, WordEncoder())
    for kind in ("wal", "shm"):
        Path(f"{live}-{kind}").unlink()

    assert names(live) == expected
    with LocalIndex(live, WordEncoder()) as opened:
        opened.verify()
        assert {document.id for document in opened} == expected


def test_an_older_copy_in_place_of_a_crashed_index_is_not_mixed_with_its_log(tmp_path: Path):
    live = made(tmp_path / "live", "old")
    copy = shutil.copy(live, tmp_path / "copy")
    with LocalIndex(live, WordEncoder()) as index:
        index.add(documents("second", 5))
    with LocalIndex(live, WordEncoder()) as index:
        index.add(documents("third", 5))
        for name in ("live", "live-wal"):  # as a killed process leaves them
            shutil.copy(tmp_path / name, tmp_path / f"crashed{name[4:]}")
    crashed = tmp_path / "crashed"

    shutil.copy(copy, crashed)  # in place: the inode stays
    with pytest.raises(IndexStorageError, match="in place of another"):
        LocalIndex(crashed, WordEncoder())
    shutil.copy(live, crashed)

    assert {name[:5] for name in names(live)} == {
        *(f"old{at}"[:5] for at in range(20)),
        "secon",
        "third",
    }


def test_what_a_killed_process_leaves_is_opened_also_where_it_was_copied_to(tmp_path: Path):
    live = made(tmp_path / "live", "old")
    with LocalIndex(live, WordEncoder()) as index:
        for at in range(4):
            index.add(documents(f"more{at}-", 3))
            for name in ("live", "live-wal"):
                shutil.copy(tmp_path / name, tmp_path / f"copy{at}{name[4:]}")
        index.compact()
        index.add(["venus"])
        for name in ("live", "live-wal"):
            shutil.copy(tmp_path / name, tmp_path / f"copy4{name[4:]}")

    counts = []
    for at in range(5):
        with LocalIndex(tmp_path / f"copy{at}", WordEncoder()) as opened:
            opened.verify()
            counts.append(opened.count())

    assert counts == [23, 26, 29, 32, 33]


def test_a_compacted_index_that_is_open_is_not_mixed_with_one_in_its_place(tmp_path: Path):
    live = made(tmp_path / "live", "old", 20)
    index = LocalIndex(live, WordEncoder())
    index.compact()
    made(tmp_path / "new", "new", 600).replace(live)

    with pytest.raises(IndexStorageError, match="in place of another"):
        LocalIndex(live, WordEncoder())

    assert len(names(shutil.copy(live, tmp_path / "copy"))) == 600
    index.close()


def test_an_add_to_a_file_that_was_removed_is_refused(tmp_path: Path):
    live = made(tmp_path / "live", "old")
    index = LocalIndex(live, WordEncoder())
    live.unlink()

    with pytest.raises(IndexStorageError, match="moved or removed while it was open"):
        index.add(["venus"])
    with pytest.raises(IndexStorageError, match="moved or removed while it was open"):
        index.compact()


def test_an_add_during_which_the_file_is_removed_is_no_success(tmp_path: Path):
    live = made(tmp_path / "live", "old")
    index = LocalIndex(live, WordEncoder())

    def texts():
        yield "venus"
        live.unlink()
        yield "mars"

    with pytest.raises(IndexStorageError, match="moved or removed while it was open"):
        index.add(texts())


def test_an_open_index_follows_its_path_into_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made(tmp_path / "live", "old")
    monkeypatch.chdir(tmp_path)
    index = LocalIndex("live", WordEncoder())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert index.add(["venus"]).added == 1
    assert index.count() == 21
    index.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "live"]


def test_publishing_replaces_everything_at_once_for_those_who_have_it_open(tmp_path: Path):
    live = made(tmp_path / "live", "old")
    reader, writer = LocalIndex(live, WordEncoder()), LocalIndex(live, WordEncoder())
    assert len(reader.search("mars", 100)) == 20

    with LocalIndex(tmp_path / "new", WordEncoder()) as new:
        new.add(documents("new", 30))
        expected = [(hit.id, hit.score) for hit in new.search("mars", 100)]
        new.publish(live)

    assert [(hit.id, hit.score) for hit in reader.search("mars", 100)] == expected
    assert next(iter(writer)).id == "new0"
    assert writer.add(documents("new", 31)).unchanged == 30
    assert reader.count() == 31
    assert reader.stats().tokens == sum(len(d.text.split()) + 1 for d in documents("new", 31))
    reader.verify()


def test_publishing_makes_a_file_and_takes_from_memory(tmp_path: Path):
    new = LocalIndex(":memory:", WordEncoder(), token_pooling=2)
    new.add(documents("new", 7))

    new.publish(tmp_path / "live")
    new.publish(tmp_path / "live")

    with LocalIndex(tmp_path / "live", WordEncoder()) as opened:
        assert list(opened) == documents("new", 7)
        assert opened.info == new.info


def test_publishing_goes_on_where_a_full_disk_left_a_file_without_an_index(tmp_path: Path):
    live = tmp_path / "live"
    connection = sqlite3.connect(live)
    connection.execute("PRAGMA page_size = 1024")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert live.stat().st_size == 1024

    with LocalIndex(tmp_path / "new", WordEncoder()) as new:
        new.add(documents("new", 7))
        new.publish(live)

    assert list(LocalIndex(live)) == documents("new", 7)


def test_a_disk_that_is_full_behind_a_publication_is_no_failure_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    live = made(tmp_path / "live", "old")
    remove = Searcher.remove_level

    def removed(self: Searcher) -> None:
        """What follows opens the file again, as every `LocalIndex` does."""
        remove(self)
        monkeypatch.setattr(Database, "_connected", full)

    with LocalIndex(tmp_path / "new", WordEncoder()) as new:
        new.add(documents("new", 30))
        monkeypatch.setattr(Searcher, "remove_level", removed)
        new.publish(live)

    monkeypatch.undo()
    assert list(LocalIndex(live)) == documents("new", 30)


def full(self: Database, target: str) -> sqlite3.Connection:
    raise IndexStorageError("the disk is full")


def test_an_index_cannot_be_published_to_itself(tmp_path: Path):
    index = LocalIndex(made(tmp_path / "live", "old"), WordEncoder())

    for path in (tmp_path / "live", ":memory:"):
        with pytest.raises(ValueError, match="expected the file of another index"):
            index.publish(path)


def test_a_reader_with_the_old_model_is_told_and_a_new_one_finds(tmp_path: Path):
    live = made(tmp_path / "live", "old")
    reader = LocalIndex(live, WordEncoder())
    other = WordEncoder(dim=8, fingerprint="b" * 64)

    with LocalIndex(tmp_path / "new", other) as new:
        new.add(documents("new", 30))
        new.publish(live)

    for use in (lambda: reader.search("mars"), reader.count, lambda: reader.add(["venus"])):
        with pytest.raises(IndexMismatchError, match=r"another model was published.*Open it again"):
            use()
    with LocalIndex(live, other) as opened:
        assert len(opened.search("mars", 100)) == 30
        opened.verify()


def test_a_publish_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    live = made(tmp_path / "live", "old")
    reader = LocalIndex(live, WordEncoder())
    new = LocalIndex(made(tmp_path / "new", "new", 600), WordEncoder())
    read, pages = new._rows.coded, []

    def interrupted(positions: torch.Tensor) -> CodedEmbeddings:
        if pages:
            raise KeyboardInterrupt
        pages.append(len(positions))
        return read(positions)

    monkeypatch.setattr(new._rows, "coded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.publish(live)

    assert {hit.id for hit in reader.search("mars", 100)} == {d.id for d in documents("old", 20)}
    reader.verify()


def test_readers_of_other_processes_go_over_whole(processes: ForkServerContext, tmp_path: Path):
    live = made(tmp_path / "live", "old", 24)
    readers = [started(processes, follow, live, f"new{4}-") for _ in range(2)]
    for _, pipe in readers:
        assert answer(pipe) == "begun"

    for generation in range(5):
        with LocalIndex(tmp_path / f"new{generation}", WordEncoder()) as new:
            new.add(documents(f"new{generation}-", 30 + generation))
            new.publish(live)

    finish(readers)


def finish(readers: list[tuple[object, Connection]]) -> None:
    for process, pipe in readers:
        sizes = answer(pipe)
        process.join()
        assert set(sizes) <= {"old": 24, **{f"new{at}-": 30 + at for at in range(5)}}.keys()
        assert all(sizes[name] == {24 if name == "old" else 30 + int(name[3])} for name in sizes)
        assert "new4-" in sizes
