"""The file of vectors that processes share: disposable, and never believed blindly."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from colbert_rag.errors import IndexCorruptError
from colbert_rag.index import Document, LocalIndex
from colbert_rag.index.local import snapshot
from tests.helpers.index_fakes import WordEncoder
from tests.helpers.index_processes import answer, started
from tests.helpers.index_sharers import (
    DIM,
    fill,
    search_on_request,
    search_without_rights,
    share_meanwhile,
    stop_while_making,
    vectors,
    write_shared,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what a process holds")
posix = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no fork server, and keeps a file that is mapped"
)

Found = list[tuple[str, float]]
QUERY = vectors(1, 8, seed=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared file for the smallest index."""
    monkeypatch.setattr(snapshot, "SHARED_FROM", 1)


def shared_file(path: Path) -> Path:
    return Path(f"{path}-vectors")


def shared_bytes(path: Path) -> int | None:
    with LocalIndex(path) as index:
        return index.stats().shared_bytes


def search(index: LocalIndex, **filters: object) -> Found:
    hits = index.search_embeddings(QUERY, 1000, filters or None)[0]
    return [(hit.id, hit.score) for hit in hits]


def found(path: Path, **filters: object) -> Found:
    with LocalIndex(path) as index:
        return search(index, **filters)


def unshared(path: Path, **filters: object) -> Found:
    """What is found without a shared file: by a copy of the index, below the size for one."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(snapshot, "SHARED_FROM", 2**60)
        alone = Path(folder) / "alone.sqlite"
        with LocalIndex(path) as source:  # also what the log still holds
            source._database.connection.execute("VACUUM INTO ?", (str(alone),))
        return found(alone, **filters)


def agrees(given: Found, path: Path, **filters: object) -> bool:
    """The same documents in the same order; a block of another height may move the last bit."""
    expected = unshared(path, **filters)
    same = [name for name, _ in given] == [name for name, _ in expected]
    return same and all(
        score == pytest.approx(true, abs=1e-6)
        for (_, score), (_, true) in zip(given, expected, strict=True)
    )


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


@linux
def test_four_processes_hold_the_vectors_once_between_them(
    processes: ForkServerContext, path: Path
):
    fill(path, 1750, 200)  # 64 MiB
    size = 1750 * 200 * DIM * 2
    pipes = [started(processes, search_on_request, path)[1] for _ in range(4)]

    def ask(request: str) -> list[object]:
        for pipe in pipes:
            pipe.send(request)
        return [answer(pipe) for pipe in pipes]

    before = sum(ask("size"))
    first = ask("search")  # all at once: one makes the file, the others do not wait for it
    assert ask("search") == first
    # 1 MiB of work space each, and what Python needs.
    assert sum(ask("size")) - before < 1.5 * size

    with LocalIndex(path) as writer:
        writer.delete([first[0][0][0]])  # masked, not copied
        writer.add_encoded([Document("new", "new")], vectors(1, 200, seed=9))
    second = ask("search")
    assert second[0][:19] == [pair for pair in first[0][1:] if pair[0] != "new"][:19]
    assert second == [second[0]] * 4
    assert sum(ask("size")) - before < 1.5 * size
    for pipe in pipes:
        pipe.send(None)


def test_scores_are_those_without_the_file_to_the_last_bit(path: Path, small: None):
    fill(path, 60, 10)
    expected = unshared(path)
    assert shared_bytes(path) is None

    assert found(path) == expected  # made
    assert shared_bytes(path) == shared_file(path).stat().st_size
    assert names(path) == ["index.sqlite", "index.sqlite-vectors"]
    assert found(path) == expected  # mapped
    assert found(path, odd=1) == unshared(path, odd=1)


def test_only_what_was_committed_since_is_read_from_sqlite(
    path: Path, small: None, monkeypatch: pytest.MonkeyPatch
):
    fill(path, 60, 10)
    found(path)
    with LocalIndex(path) as index:
        index.add_encoded([Document("new", "new")], vectors(1, 7, seed=9))
        read: list[int] = []
        original = index._rows.coded
        monkeypatch.setattr(
            index._rows, "coded", lambda some: read.append(len(some)) or original(some)
        )

        index.delete(["d3"])
        assert len(search(index)) == 60
        assert len(search(index, odd=1)) == 29
        assert read == [1]


@pytest.mark.parametrize("seed", range(3))
def test_changes_are_found_whoever_made_them(path: Path, small: None, seed: int):
    """Adding, replacing, removing and editing, with searches between, in two open indexes."""
    fill(path, 40, 5)
    choice = random.Random(seed)
    handles = [LocalIndex(path) for _ in range(2)]
    for step in range(10):
        index = choice.choice(handles)
        ids = list(
            dict.fromkeys(f"d{choice.randrange(50)}" for _ in range(choice.randrange(1, 12)))
        )
        if choice.random() < 0.3:
            index.delete(ids)
        else:  # of one text in three only the metadata is new
            texts = [f"text {choice.randrange(3)}" for _ in ids]
            documents = [
                Document(name, text, {"odd": step % 2})
                for name, text in zip(ids, texts, strict=True)
            ]
            index.add_encoded(documents, vectors(len(ids), 5, seed=step))
        for handle in handles:
            assert agrees(search(handle), path)
            assert agrees(search(handle, odd=1), path, odd=1)


def test_new_metadata_is_seen_and_no_vector_read_again(path: Path, small: None):
    fill(path, 60, 10)
    with LocalIndex(path) as reader, LocalIndex(path) as writer:
        assert len(search(reader, odd=1)) == 30
        before = shared_file(path).stat().st_mtime_ns

        writer.add_encoded([Document("d0", "text 0", {"odd": 1})], vectors(1, 10))

        assert len(search(reader, odd=1)) == 31
        assert shared_file(path).stat().st_mtime_ns == before


def test_an_index_beyond_its_memory_budget_is_searched_where_it_is_mapped(
    path: Path, small: None, caplog: pytest.LogCaptureFixture
):
    fill(path, 60, 10)
    expected = found(path)

    with LocalIndex(path, memory_budget=2000) as index:
        assert [name for name, _ in search(index)] == [name for name, _ in expected]
        assert index._searcher._snapshot.is_resident
    assert caplog.text == ""


def test_the_file_is_made_anew_when_a_quarter_is_missing_or_removed(path: Path, small: None):
    fill(path, 60, 10)
    found(path)

    def remade(change: Callable[[LocalIndex], object]) -> bool:
        before = shared_file(path).stat().st_ino
        with LocalIndex(path) as index:
            change(index)
            search(index)
            assert agrees(search(index), path)
        return shared_file(path).stat().st_ino != before

    def adding(count: int, seed: int) -> Callable[[LocalIndex], object]:
        added = [Document(f"{seed}-{at}", f"{seed} {at}") for at in range(count)]
        return lambda index: index.add_encoded(added, vectors(count, 10, seed=seed))

    assert not remade(adding(10, seed=2))
    assert remade(adding(15, seed=3))
    assert not remade(lambda index: index.delete([f"d{at}" for at in range(10)]))
    assert remade(lambda index: index.delete([f"d{at}" for at in range(10, 30)]))
    assert names(path) == ["index.sqlite", "index.sqlite-vectors"]


def test_an_index_that_shrank_below_the_size_gives_the_file_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(snapshot, "SHARED_FROM", 30 * 10 * DIM * 2)
    fill(path, 60, 10)
    with LocalIndex(path) as index:
        search(index)
        index.delete([f"d{at}" for at in range(50)])

        assert agrees(search(index), path)
    assert names(path) == ["index.sqlite"]


def test_what_was_removed_is_not_scored_for_ever_where_no_file_can_be_made(
    path: Path, small: None, monkeypatch: pytest.MonkeyPatch
):
    fill(path, 60, 10)
    found(path)
    fill_the_disk(monkeypatch, path)
    with LocalIndex(path) as index:
        search(index)
        index.delete([f"d{at}" for at in range(40)])

        assert agrees(search(index), path)
        assert (
            sum(len(block.embeddings.values) for block in index._searcher._snapshot.blocks()) == 200
        )


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)


def write(file: Path, content: bytes) -> None:
    file.chmod(0o600)
    file.write_bytes(content)


SPOILED = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: write(file, b""),
    "cut inside the header": lambda file: write(file, file.read_bytes()[:50]),
    "cut in half": lambda file: write(file, file.read_bytes()[: file.stat().st_size // 2]),
    "one byte longer": lambda file: write(file, file.read_bytes() + b"x"),
    "noise behind its first bytes": lambda file: write(
        file, file.read_bytes()[:8] + random.Random(0).randbytes(file.stat().st_size - 8)
    ),
    "a flipped bit in the header": lambda file: flip(file, 17),
    "a flipped bit in a position": lambda file: flip(file, 80 + 8 * 7),
    "a flipped bit in a checksum": lambda file: flip(file, 80 + 8 * 130),
}


@pytest.mark.parametrize("spoil", [pytest.param(SPOILED[name], id=name) for name in SPOILED])
def test_whatever_happens_to_the_file_loses_nothing_and_is_mended(
    path: Path, small: None, spoil: Callable[[Path], object]
):
    fill(path, 60, 10)
    expected = found(path)
    original = shared_file(path).read_bytes()

    spoil(shared_file(path))
    assert found(path) == expected
    assert shared_file(path).read_bytes() == original

    if sys.platform == "win32":  # nobody can do this to a file that is mapped
        return
    with LocalIndex(path) as index:
        search(index)
        spoil(shared_file(path))
        assert search(index) == expected
    assert shared_file(path).read_bytes() == original


@posix
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "folder"])
def test_something_else_under_the_name_of_the_file_is_not_opened(
    path: Path, small: None, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
):
    fill(path, 60, 10)
    make(shared_file(path))
    before = shared_file(path).lstat()

    assert agrees(found(path), path)
    assert shared_file(path).lstat()[:3] == before[:3]
    assert "sqlite-vectors is in the way" in caplog.text


@pytest.mark.parametrize(
    "content", [b"mine", b"ColBvec", random.Random(0).randbytes(99_999)], ids=len
)
def test_a_strangers_file_under_the_name_is_left_and_said(
    path: Path, small: None, caplog: pytest.LogCaptureFixture, content: bytes
):
    fill(path, 60, 10)
    expected = unshared(path)
    shared_file(path).write_bytes(content)

    with LocalIndex(path) as index:
        assert search(index) == search(index) == expected
        assert index.stats().shared_bytes is None
        assert caplog.text.count("sqlite-vectors is in the way") == 1
        caplog.clear()
        index.compact()
        assert caplog.text.count("sqlite-vectors is in the way") == 1
        index.verify()
    assert shared_file(path).read_bytes() == content

    shared_file(path).rename(path.with_name("elsewhere"))
    assert found(path) == expected
    assert shared_bytes(path) == shared_file(path).stat().st_size


def test_a_strangers_file_is_left_by_an_index_that_shrinks_below_the_size(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(snapshot, "SHARED_FROM", 30 * 10 * DIM * 2)
    fill(path, 60, 10)
    with LocalIndex(path) as index:
        search(index)
        index.delete([f"d{at}" for at in range(50)])
        if sys.platform == "win32":  # nobody can do this to a file that is mapped
            return
        other = path.with_name("other")
        other.write_bytes(b"mine")
        other.replace(shared_file(path))

        assert agrees(search(index), path)
    assert shared_file(path).read_bytes() == b"mine"


def test_the_file_of_another_history_is_not_believed(path: Path, tmp_path: Path, small: None):
    """Two copies of one index go different ways, and the file of one comes to the other."""
    fill(path, 60, 10)
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    shutil.copy(path, other)
    for place, seed in ((path, 5), (other, 6)):
        with LocalIndex(place) as index:
            index.add_encoded(
                [Document(f"e{at}", f"{seed} {at}", {"odd": 1}) for at in range(5)],
                vectors(5, 10, seed=seed),
            )
    found(path)

    shutil.copy(shared_file(path), shared_file(other))

    with LocalIndex(other) as index:
        assert agrees(search(index), other)
        assert agrees(search(index, odd=1), other, odd=1)
        index.delete(["d0"])
        assert agrees(search(index), other)
    assert shared_file(other).read_bytes() == shared_file(path).read_bytes()  # it was used


def test_a_copy_of_the_index_alone_is_whole(path: Path, tmp_path: Path, small: None):
    fill(path, 60, 10)
    expected = found(path)
    (tmp_path / "backup").mkdir()

    backup = shutil.copy(path, tmp_path / "backup")

    assert found(Path(backup)) == expected


def test_verify_finds_a_vector_that_changed_and_says_what_to_do(path: Path, small: None):
    fill(path, 60, 10)
    expected = found(path)
    flip(shared_file(path), shared_file(path).stat().st_size - 3)

    with LocalIndex(path) as index:
        with pytest.raises(
            IndexCorruptError,
            match=r"sqlite-vectors is damaged \(the vectors at position 60 .*delete the copy",
        ):
            index.verify()
        shared_file(path).unlink()
        assert search(index) == expected
        index.verify()


def test_compacting_gives_the_space_of_the_file_back(path: Path, small: None):
    fill(path, 60, 10)
    found(path)

    with LocalIndex(path) as index:
        index.compact()

    assert names(path) == ["index.sqlite"]


@posix
def test_a_maker_that_is_killed_leaves_a_working_index_and_its_leftovers_go(
    processes: ForkServerContext, path: Path, small: None
):
    fill(path, 60, 10)
    process, pipe = started(processes, stop_while_making, path)
    assert answer(pipe) == "written"
    assert agrees(found(path), path)  # another one is not kept waiting, and makes none
    assert not shared_file(path).exists()

    process.kill()
    process.join()

    assert any(name.startswith("index.sqlite-vectors-") for name in names(path))
    assert agrees(found(path), path)
    assert names(path) == ["index.sqlite", "index.sqlite-vectors"]


@posix
def test_a_folder_that_cannot_be_written_to_is_searched_without_the_file(
    processes: ForkServerContext, small: None
):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "index.sqlite"
        fill(path, 20, 5)
        folder.chmod(0o555)

        process, pipe = started(processes, search_without_rights, path)
        assert answer(pipe) == 20
        process.join()

        assert names(path) == [path.name]
        folder.chmod(0o755)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Leave a byte less than twice what 20 documents of `fill` with 10 rows need."""
    nearly_full = shutil.disk_usage(path.parent)._replace(free=2 * 20 * 10 * DIM * 2 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: nearly_full)


def test_a_file_that_would_fill_the_disk_is_not_made(
    path: Path, small: None, monkeypatch: pytest.MonkeyPatch
):
    fill(path, 60, 10)
    fill_the_disk(monkeypatch, path)

    assert agrees(found(path), path)
    assert names(path) == [path.name]


@linux
def test_a_closed_index_has_let_go_of_the_file(path: Path, small: None):
    fill(path, 60, 10)
    index = LocalIndex(path)
    search(index)
    assert str(shared_file(path)) in Path("/proc/self/maps").read_text(encoding="utf-8")

    index.close()

    assert str(shared_file(path)) not in Path("/proc/self/maps").read_text(encoding="utf-8")


@posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o660])
def test_who_may_not_read_the_index_may_not_read_the_file_and_nobody_may_write_it(
    path: Path, small: None, mode: int
):
    fill(path, 60, 10)
    path.chmod(mode)

    found(path)

    assert stat.S_IMODE(shared_file(path).stat().st_mode) == mode & 0o444


@posix
def test_readers_see_whole_commits_while_files_are_made_and_replaced(
    processes: ForkServerContext, path: Path
):
    LocalIndex(path, WordEncoder()).close()
    writer, written = started(processes, write_shared, path, 2.0)
    readers = [started(processes, share_meanwhile, path, 1.5) for _ in range(3)]
    reports = [answer(pipe) for _, pipe in readers]
    groups = answer(written)
    [process.join() for process, _ in [*readers, (writer, written)]]

    assert groups > 5
    assert all(isinstance(report, int) and report > 5 for report in reports), reports


def test_files_that_are_only_named_alike_are_left_alone(path: Path, small: None):
    # A leftover has a name of 16 hexadecimal digits, and a claim is empty.
    kept = [
        shared_file(path).with_name(f"{shared_file(path).name}{end}") for end in ("-old", "-2024")
    ]
    for file in kept:
        file.write_text("mine", encoding="utf-8")
    fill(path, 60, 10)

    found(path)

    assert shared_file(path).exists()
    assert [file.read_text(encoding="utf-8") for file in kept] == ["mine", "mine"]


@pytest.mark.parametrize("value", ["x", None, b"", 1.5, -1])
def test_a_checksum_that_is_no_number_is_damage(path: Path, small: None, value: object):
    fill(path, 60, 10)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute("CREATE TABLE other AS SELECT * FROM vectors")
        database.execute("DROP TABLE vectors")
        database.execute("ALTER TABLE other RENAME TO vectors")
        database.execute("UPDATE vectors SET checksum = ? WHERE position = 7", (value,))

    with pytest.raises(IndexCorruptError, match="checksum of the vectors at position 7"):
        found(path)


def test_a_database_in_place_of_the_claim_is_not_removed(path: Path, small: None):
    claim = shared_file(path).with_name(f"{shared_file(path).name}-claim")
    with contextlib.closing(sqlite3.connect(claim)) as database:
        database.execute("CREATE TABLE mine (x)")
    before = claim.read_bytes()
    fill(path, 60, 10)

    found(path)

    assert claim.read_bytes() == before
    assert not shared_file(path).exists()
