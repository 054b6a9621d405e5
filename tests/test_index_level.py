"""The level of a `LocalIndex`: what is found by way of it, and that nothing wrong ever is."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexCorruptError, IndexStorageError
from colbert_rag.index import Document, Hit, IndexInfo, LocalIndex, kmeans, recall
from colbert_rag.index.choice import Choice
from colbert_rag.index.local import claim, searcher
from colbert_rag.index.local.level import candidates, effort, level, making, postings
from colbert_rag.index.local.level.choice import read_choice, write_choice
from colbert_rag.index.local.level.effort import EFFORTS, Effort
from colbert_rag.index.local.rows import Rows
from tests.helpers.index_fakes import WordEncoder, naive_maxsim, sentences
from tests.helpers.index_levels import (
    DIM,
    INFO,
    ROWS,
    documents,
    fill,
    read_with_level,
    stop_while_making,
    topics,
    write_with_level,
)
from tests.helpers.index_processes import answer, started

COUNT = 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a large index does, with a small one: blocks, probes, candidates."""
    monkeypatch.setattr(searcher, "APPROXIMATE_FROM", 1000)
    monkeypatch.setattr(level, "_BEHIND", 1000)
    monkeypatch.setattr(postings, "BLOCK", 256)
    monkeypatch.setattr(kmeans, "_CENTROIDS", 2)
    monkeypatch.setattr(candidates, "_ALL", 0)
    monkeypatch.setattr(effort, "_WORTH", 0)
    for number, much in enumerate([(2, 40, 10), (4, 80, 20), (8, 120, 40), (12, 160, 60)], 1):
        monkeypatch.setitem(EFFORTS, number, Effort(*much))


@pytest.fixture
def index(path: Path) -> Iterator[LocalIndex]:
    fill(path, COUNT)
    with LocalIndex(path) as index:
        yield index


def level_file(path: Path) -> Path:
    return Path(f"{path}-level")


def queries(count: int = 20) -> TokenEmbeddings:
    return topics(count, rows=6, seed=77)


def search(index: LocalIndex, **how: object) -> list[list[tuple[str, float]]]:
    found = index.search_embeddings(queries(), 5, **how)
    return [[(hit.id, hit.score) for hit in hits] for hits in found]


def agree(some: list[list[tuple[str, float]]], exact: list[list[tuple[str, float]]]) -> float:
    """The part of the exact results that was found; each score must be that of the exact search."""
    shared = 0
    for given, true in zip(some, exact, strict=True):
        scores = dict(true)
        assert given == sorted(given, key=lambda pair: -pair[1])
        for name, score in given:
            if name in scores:
                assert score == pytest.approx(scores[name], abs=1e-5)
                shared += 1
    return shared / sum(map(len, exact))


# --- what is found


def test_a_large_index_makes_its_level_by_itself(index: LocalIndex, path: Path) -> None:
    assert level_file(path).exists()
    assert index.stats().level_bytes == level_file(path).stat().st_size
    assert agree(search(index), search(index, exact=True)) > 0.9
    index.verify()


def test_every_score_is_maxsim_over_stored_vectors(index: LocalIndex) -> None:
    asked = queries(4)
    for query, hits in zip(asked, index.search_embeddings(asked, 5, exact=False), strict=True):
        assert len(hits) == 5
        for hit in hits:
            stored = index.embeddings([hit.id])[0].float()
            assert hit.score == pytest.approx(naive_maxsim(query.float(), stored), abs=1e-4)


def test_more_effort_finds_more(index: LocalIndex) -> None:
    exact = search(index, exact=True)
    found = [agree(search(index, effort=effort), exact) for effort in (1, 3, 5)]

    assert found == sorted(found)
    assert found[-1] == 1  # the most thorough scores all of so few


def test_the_same_query_has_the_same_answer(index: LocalIndex, path: Path) -> None:
    first = search(index, effort=1)

    with LocalIndex(path) as other:
        assert search(index, effort=1) == search(other, effort=1) == first


def test_a_small_index_is_searched_exactly(
    index: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = search(index, exact=True)
    monkeypatch.setattr(searcher, "APPROXIMATE_FROM", 10**9)

    assert search(index) == exact


@pytest.mark.parametrize(
    ("documents", "top_k", "number", "approximate"),
    [(239, 5, 4, False), (240, 5, 4, True), (240, 13, 4, False), (40, 2, 1, True)],
)
def test_an_effort_that_saves_nothing_is_an_exact_search(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    documents: int,
    top_k: int,
    number: int,
    approximate: bool,
) -> None:
    """The efforts here score 60 and 10 documents by vectors, or 5 for each that is wanted."""
    monkeypatch.setattr(effort, "_WORTH", 4)
    fill(path, documents)
    with LocalIndex(path) as index:
        index.optimize()
        asked: list[int] = []
        best = index._searcher.level.best
        monkeypatch.setattr(
            index._searcher.level, "best", lambda *given: asked.append(1) or best(*given)
        )

        found = index.search_embeddings(queries(1), top_k, exact=False, effort=number)

        assert bool(asked) == approximate
        if not approximate:
            assert found == index.search_embeddings(queries(1), top_k, exact=True)


def test_what_was_added_is_found_at_once(index: LocalIndex) -> None:
    new = topics(3, rows=6, seed=5)
    index.add_encoded([Document(f"new{at}", f"new {at}") for at in range(3)], new)

    for at, hits in enumerate(index.search_embeddings(new, 1, exact=False, effort=1)):
        assert hits[0].id == f"new{at}"
        assert hits[0].score == pytest.approx(6, abs=0.01)


def test_what_was_removed_or_replaced_is_not_found_as_it_was(index: LocalIndex) -> None:
    stored = index.embeddings(["d3", "d4"])
    index.delete(["d3"])
    index.add_encoded([Document("d4", "another text")], topics(1, rows=6, seed=9))

    for old, hits in zip(stored, index.search_embeddings(stored, 20, exact=False), strict=True):
        names = {hit.id: hit for hit in hits}
        assert "d3" not in names
        if "d4" in names:
            now = index.embeddings(["d4"])[0].float()
            assert names["d4"].score == pytest.approx(naive_maxsim(old.float(), now), abs=1e-4)


def test_new_metadata_is_seen(index: LocalIndex) -> None:
    stored = index.embeddings(["d3"])
    wanted = {"tenth": "moved"}
    assert index.search_embeddings(stored, 1, wanted, exact=False) == [[]]
    document = index.get(["d3"])[0]

    index.add_encoded([Document("d3", document.text, {"tenth": "moved"})], stored)

    assert [hit.id for hit in index.search_embeddings(stored, 1, wanted, exact=False)[0]] == ["d3"]


@pytest.mark.parametrize("share", [1, 10, 50])
def test_a_filter_keeps_the_recall(index: LocalIndex, share: int) -> None:
    passing = {"n": {"$lt": share}}

    found = index.search_embeddings(queries(), 5, passing, exact=False)
    exact = index.search_embeddings(queries(), 5, passing, exact=True)

    pairs = [[[(hit.id, hit.score) for hit in hits] for hits in both] for both in (found, exact)]
    assert agree(*pairs) > 0.9
    assert all(hit.metadata["n"] < share for hits in found for hit in hits)
    assert [len(hits) for hits in found] == [len(hits) for hits in exact]


def test_a_new_level_makes_no_filter_look_again_at_what_it_has_seen(
    index: LocalIndex, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = {"n": {"$lt": 50}}
    with LocalIndex(path) as reader:
        reader.search_embeddings(queries(1), 5, passing, exact=False)
        index.delete([f"d{at}" for at in range(0, COUNT, 7)])
        index.add_encoded(*documents(40, seed=8, prefix="more"))
        index.optimize()
        looked: list[int] = []
        metadata = reader._rows.metadata
        monkeypatch.setattr(
            reader._rows,
            "metadata",
            lambda after, *size: looked.append(after) or metadata(after, *size),
        )

        found = reader.search_embeddings(queries(), 5, passing, exact=False, effort=5)

        assert min(looked) == COUNT  # the last position of the level before
        exact = index.search_embeddings(queries(), 5, passing, exact=True)
        names = [{hit.id for hit in hits} for hits in exact]
        assert [{hit.id for hit in hits} for hits in found] == names
        assert any(name.startswith("more") for some in names for name in some)


def test_a_filter_that_lets_nothing_pass_finds_nothing(index: LocalIndex) -> None:
    assert index.search_embeddings(queries(2), 5, {"n": -1}, exact=False) == [[], []]


def test_as_many_are_found_as_were_asked_for(index: LocalIndex) -> None:
    hits = index.search_embeddings(queries(1), 1000, exact=False)[0]

    assert len(hits) == COUNT
    assert len({hit.id for hit in hits}) == COUNT


@pytest.mark.parametrize("exact", [True, False])
def test_for_a_query_without_rows_all_documents_are_alike(index: LocalIndex, exact: bool) -> None:
    index.delete(["d1"])
    index.add_encoded(*documents(3, seed=4, prefix="new"))
    nothing = TokenEmbeddings.from_list([torch.zeros(0, INFO.dim)], dim=INFO.dim)

    hits = index.search_embeddings(nothing, COUNT + 1, {"n": {"$lt": 3}}, exact=exact)[0]
    few = index.search_embeddings(nothing, 2, exact=exact)[0]

    names = ["d0", "d2", "d100", "d101", "d102", "d200", "d201", "d202", "new0", "new1", "new2"]
    assert [(hit.id, hit.score) for hit in hits] == [(name, 0.0) for name in names]
    assert [hit.id for hit in few] == ["d0", "d2"]


def test_a_document_without_words_is_not_found(path: Path) -> None:
    model = WordEncoder(dim=INFO.dim)
    with LocalIndex(path, model) as index:
        index.add(["", *sentences(200)])
        hits = index.search("mars storm", 500, exact=False)

    assert len(hits) == 200
    assert "" not in [hit.text for hit in hits]


def test_text_is_searched_with_the_same_options(path: Path) -> None:
    with LocalIndex(path, WordEncoder(dim=INFO.dim)) as index:
        index.add(sentences(200))
        exact = index.search("mars storm", 3, exact=True)

        assert index.search("mars storm", 3, exact=False, effort=5) == exact
        assert index.search_many(["mars storm"], 3, effort=5) == [exact]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"exact": 1}, TypeError, "exact is 1, expected True, False or None"),
        ({"effort": 0}, ValueError, "effort is 0, expected at least 1"),
        ({"effort": 6}, ValueError, "effort is 6, expected 1 to 5, or None"),
        ({"effort": 2.5}, TypeError, "effort is 2.5"),
        ({"exact": True, "effort": 2}, ValueError, "leave one of them out"),
    ],
)
def test_wrong_options_are_refused(
    index: LocalIndex, how: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        index.search_embeddings(queries(1), 1, **how)


def test_whole_numbers_of_others_are_taken(index: LocalIndex) -> None:
    expected = search(index, effort=3)

    assert search(index, effort=torch.tensor(3)) == expected
    assert search(index, effort=np.int64(3)) == expected


def test_it_is_said_once_that_not_all_is_read(
    index: LocalIndex, caplog: pytest.LogCaptureFixture
) -> None:
    index.recall(queries(), wanted=0.5)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            index.search_embeddings(queries(1), 1)

    assert caplog.text.count("searches read few of them (effort 1, recall@10 ") == 1


def test_a_large_index_is_searched_with_more_effort_unless_that_was_measured(
    index: LocalIndex, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "_LARGE", 1000)
    expected = search(index, effort=4)

    with caplog.at_level(logging.WARNING):
        assert search(index) == expected
    assert "searches read few of them (effort 4, recall not measured)" in caplog.text

    index.recall(queries(), wanted=0.5)
    assert search(index) == search(index, effort=1) != expected


def test_behind_a_search_documents_are_counted_without_reading_them(
    index: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add_encoded(*documents(40, seed=8, prefix="more"))
    index.delete([f"d{at}" for at in range(7)])
    index.search_embeddings(queries(1), 1, exact=False)
    with monkeypatch.context() as patched:
        patched.setattr(Rows, "count", lambda _: pytest.fail("read the table"))
        assert index.count() == COUNT + 40 - 7

    index._database.write(
        lambda: index._database.connection.execute(
            "UPDATE settings SET value = '5' WHERE name = 'documents'"
        )
    )
    with pytest.raises(IndexCorruptError, match="333 documents were found, and 5 were written"):
        index.count()


# --- how it is kept up to date


def test_optimize_takes_in_what_was_added(index: LocalIndex, path: Path) -> None:
    index.add_encoded(*documents(40, seed=8, prefix="more"))
    before = level_file(path).stat().st_size
    index.delete([f"d{at}" for at in range(0, 60, 3)])
    exact = search(index, exact=True)

    index.optimize()

    assert level_file(path).stat().st_size > before
    opened = index._searcher.level._file.open()
    assert opened is not None
    assert opened.head.trained_tokens == COUNT * 12
    assert agree(search(index, effort=5), exact) == 1
    # What is not in the file any more need not be remembered as removed.
    removed = index._database.connection.execute("SELECT position FROM removed").fetchall()
    assert {row[0] for row in removed} <= set(opened.positions.tolist())
    assert index._database.connection.execute("SELECT count(*) FROM levels").fetchone() == (1,)


def test_many_additions_are_taken_in_by_themselves(index: LocalIndex) -> None:
    for part in range(4):
        index.add_encoded(*documents(50, seed=part, prefix=f"p{part}-"))

    opened = index._searcher.level._file.open()
    assert opened is not None
    assert opened.tokens > (COUNT + 4 * 50) * 12 - 1200


def test_centroids_are_trained_anew_when_the_index_has_doubled(index: LocalIndex) -> None:
    index.add_encoded(*documents(COUNT, seed=8, prefix="more"))

    opened = index._searcher.level._file.open()
    assert opened is not None
    assert opened.head.trained_tokens == 0


def test_centroids_are_trained_anew_when_what_is_added_is_farther_from_them(
    index: LocalIndex, path: Path
) -> None:
    noise = torch.nn.functional.normalize(torch.randn(40 * 12, INFO.dim), dim=1)
    foreign = TokenEmbeddings.from_lengths(noise.half(), [12] * 40)
    index.add_encoded([Document(f"f{at}", f"foreign {at}") for at in range(40)], foreign)

    index.optimize()

    opened = index._searcher.level._file.open()
    assert opened is not None
    assert (opened.head.trained_tokens, opened.tokens) == (0, 12 * (COUNT + 40))


def test_optimize_with_nothing_new_does_nothing(index: LocalIndex, path: Path) -> None:
    before = level_file(path).stat()

    index.optimize()

    assert level_file(path).stat().st_mtime_ns == before.st_mtime_ns


def test_a_level_of_a_small_index_is_made_on_request(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "APPROXIMATE_FROM", 10**9)
    fill(path, 20)
    with LocalIndex(path) as index:
        assert not level_file(path).exists()
        index.optimize(show_progress=True)
        assert level_file(path).exists()
        assert search(index, exact=False) == search(index, exact=True)


def test_an_empty_index_needs_none(path: Path) -> None:
    with LocalIndex(path, like=INFO) as index:
        index.optimize()
        assert search(index, exact=False) == [[]] * 20

    assert not level_file(path).exists()


def test_an_index_in_memory_is_searched_exactly() -> None:
    with LocalIndex(":memory:", like=INFO) as index:
        index.add_encoded(*documents(COUNT))
        index.optimize()

        assert search(index, exact=False) == search(index, exact=True)
        assert index.stats().level_bytes is None


def test_one_that_is_only_read_uses_the_level_and_makes_none(index: LocalIndex, path: Path) -> None:
    with LocalIndex(path, read_only=True) as reader:
        assert agree(search(reader), search(index, exact=True)) > 0.9
        assert reader.recall(queries(), wanted=0).chosen == 1
        level_file(path).unlink()
        with pytest.raises(IndexStorageError, match="open for reading only"):
            reader.optimize()
        assert search(reader) == search(reader, exact=True)

    assert not level_file(path).exists()


def test_publishing_makes_a_level_of_what_is_published(index: LocalIndex, tmp_path: Path) -> None:
    index.publish(tmp_path / "other.sqlite")

    with LocalIndex(tmp_path / "other.sqlite") as other:
        assert level_file(tmp_path / "other.sqlite").exists()
        assert search(other, effort=5) == search(index, effort=5)


def test_recall_is_not_measured_without_a_query_or_a_level(index: LocalIndex, path: Path) -> None:
    nothing = TokenEmbeddings.from_list([], dim=DIM)
    with pytest.raises(ValueError, match="queries is empty, expected one or more"):
        index.recall(nothing)
    level_file(path).unlink()
    with pytest.raises(
        ValueError, match=r"every search is exact.*optimize\(\) makes one, or warns"
    ):
        index.recall(topics(3, rows=ROWS, seed=1))


@pytest.mark.parametrize("dim", [DIM, DIM // 2])
@pytest.mark.parametrize(("count", "is_large"), [(COUNT, True), (COUNT // 10, False)])
def test_publishing_over_the_level_of_another_model(
    index: LocalIndex, path: Path, tmp_path: Path, dim: int, count: int, is_large: bool
) -> None:
    choice = Choice(effort=5, recall=1.0, queries=9)
    index._database.write(write_choice, index._database, choice)
    other = IndexInfo(checkpoint="tests/other", fingerprint="e" * 64, dim=dim, recipe={})
    listed, vectors = documents(count, seed=3, prefix="o")
    values = torch.nn.functional.normalize(vectors.values[:, :dim].float(), dim=1)
    vectors = TokenEmbeddings(values.half(), vectors.offsets)
    with LocalIndex(tmp_path / "other.sqlite", like=other) as source:
        source.add_encoded(listed, vectors)
        source.publish(path)

    assert level_file(path).exists() == is_large
    with LocalIndex(path) as published:
        assert published.info == other
        assert published._database.read(published._searcher.has_level) == is_large
        assert published._database.read(read_choice, published._database) == Choice()
        published.verify()
        for exact in (True, False):
            found = published.search_embeddings(vectors[:9], 1, exact=exact)
            assert [hit.id for hits in found for hit in hits] == [f"o{at}" for at in range(9)]


@pytest.mark.parametrize("write", [LocalIndex.optimize, lambda index: index.delete(["d1"])])
def test_no_claim_ends_where_a_fork_would_not_wait(
    index: LocalIndex,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[LocalIndex], object],
) -> None:
    level_file(path).unlink()
    # A COMMIT of `__exit__` is outside `no_fork`: a child that is forked in it hangs for ever.
    locked = []

    class Watched(claim._Held):
        def __exit__(self, *error: Any) -> None:
            locked.append(self.in_transaction)
            super().__exit__(*error)

    monkeypatch.setattr(claim, "_Held", Watched)
    write(index)

    assert locked
    assert not any(locked)


# --- a file that is not what it should be


def test_a_flipped_bit_is_answered_exactly(
    index: LocalIndex, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = search(index, exact=True)
    whole = level_file(path).read_bytes()
    opened = index._searcher.level._file.open()
    assert opened is not None
    part = opened.parts[0]
    codes, starts, lists, end = part.block.shape.places[2:]
    for first, last in ((codes + 1100, starts - 1100), (starts, lists), (lists + 1100, end - 1100)):
        damaged = bytearray(whole)
        for at in range(
            opened.head.begin + part.begin + first, opened.head.begin + part.begin + last
        ):
            damaged[at] ^= 4
        level_file(path).unlink(missing_ok=True)
        level_file(path).write_bytes(damaged)
        # One that is only read leaves the file to others.
        for read_only in (True, False):
            with LocalIndex(path, read_only=read_only) as reader:
                caplog.clear()
                assert search(reader, effort=4) == exact
                assert "a page is not what was written" in caplog.text
                assert search(reader, effort=4) == exact
            assert level_file(path).exists() == read_only
    index.optimize()

    assert agree(search(index, effort=5), exact) == 1
    assert level_file(path).read_bytes()[:8] == whole[:8]


@pytest.mark.parametrize("read_only", [True, False])
def test_damage_in_the_index_is_not_blamed_on_the_level(
    index: LocalIndex, path: Path, read_only: bool
) -> None:
    index._database.connection.execute(
        "UPDATE vectors SET embeddings = zeroblob(length(embeddings)) WHERE position = 8"
    )
    whole = level_file(path).read_bytes()
    own = topics(COUNT, rows=12, seed=0)[[7]]

    with (
        LocalIndex(path, read_only=read_only) as reader,
        pytest.raises(IndexCorruptError, match="the vectors"),
    ):
        reader.search_embeddings(own, 3, exact=False)

    assert level_file(path).read_bytes() == whole


def test_verify_finds_a_flipped_bit(index: LocalIndex, path: Path) -> None:
    data = bytearray(level_file(path).read_bytes())
    opened = index._searcher.level._file.open()
    assert opened is not None
    data[opened.head.begin + opened.parts[1].begin + opened.parts[1].block.shape.places[4]] ^= 1
    level_file(path).unlink()
    level_file(path).write_bytes(data)

    with pytest.raises(IndexCorruptError, match="delete it, and optimize"):
        index.verify()


@pytest.mark.parametrize("kind", ["cut", "empty", "of another model", "of another index"])
def test_a_file_that_does_not_fit_is_not_used(
    index: LocalIndex, path: Path, tmp_path: Path, kind: str
) -> None:
    exact = search(index, exact=True)
    file = level_file(path)
    whole = file.read_bytes()
    file.unlink()
    if kind == "of another index":
        fill(tmp_path / "other.sqlite", COUNT, seed=4)
        shutil.copy(level_file(tmp_path / "other.sqlite"), file)
    elif kind == "of another model":
        file.write_bytes(whole[:40] + bytes(16) + whole[56:])
    else:
        file.write_bytes(whole[: len(whole) // 2] if kind == "cut" else b"")

    assert search(index, exact=False) == exact
    index.optimize()
    assert agree(search(index, effort=5), exact) == 1
    index.verify()


def test_something_else_under_the_name_is_left(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    level_file(path).write_text("my notes")

    fill(path, COUNT)

    with LocalIndex(path) as index:
        assert search(index, exact=False) == search(index, exact=True)
        assert index.stats().level_bytes is None
    assert level_file(path).read_text() == "my notes"
    assert "index.sqlite-level is in the way" in caplog.text


def test_a_backup_from_before_the_level_does_not_use_it(index: LocalIndex, path: Path) -> None:
    old = path.with_name("old.sqlite")
    fill(old, 30)
    shutil.copy(level_file(path), level_file(old))

    with LocalIndex(old) as backup:
        assert search(backup, exact=False) == search(backup, exact=True)


def test_a_copy_that_went_another_way_uses_the_level_with_its_own_changes(
    index: LocalIndex, path: Path
) -> None:
    copy = path.with_name("copy.sqlite")
    index._database.connection.execute("VACUUM INTO ?", (str(copy),))
    shutil.copy(level_file(path), level_file(copy))
    index.delete([f"d{at}" for at in range(100)])

    with LocalIndex(copy) as other:
        other.delete([f"d{at}" for at in range(200, 250)])
        exact = search(other, exact=True)

        assert agree(search(other, effort=5), exact) == 1
        assert other._searcher.level._usable


def test_a_level_that_lacks_a_document_is_not_used(index: LocalIndex) -> None:
    """As after an older version of ours has removed documents, which does not note it."""
    search(index)
    assert index._searcher.level._usable
    connection = sqlite3.connect(index.name)
    with connection:
        connection.execute("DELETE FROM documents WHERE id = 'd7'")
        connection.execute("DELETE FROM vectors WHERE position = 8")
        connection.execute("UPDATE settings SET value = value - 1 WHERE name = 'documents'")
        connection.execute("UPDATE settings SET value = value - 12 WHERE name = 'tokens'")
        connection.execute("UPDATE settings SET value = value + 1 WHERE name = 'removals'")
    connection.close()

    assert search(index, exact=False) == search(index, exact=True)
    assert not index._searcher.level._usable


# --- formats


def as_format_2(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DROP TABLE levels")
        connection.execute("DROP TABLE removed")
        connection.execute("PRAGMA user_version = 2")
    connection.close()


def test_a_file_of_format_2_is_read_and_becomes_one_of_format_3(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "APPROXIMATE_FROM", 10**9)
    fill(path, COUNT)
    as_format_2(path)

    with LocalIndex(path, read_only=True) as reader:
        assert reader.count() == COUNT
        assert search(reader, exact=False) == search(reader, exact=True)
        assert reader._database.format() == 2
    with LocalIndex(path) as index:
        index.delete(["d0"])
        assert index._database.format() == 3
        index.optimize()
        assert agree(search(index, effort=5), search(index, exact=True)) == 1


def test_what_an_older_version_writes_makes_the_level_worthless(
    index: LocalIndex, path: Path
) -> None:
    search(index)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()

    search(index)
    assert not index._searcher.level._usable


# --- memory


def test_opening_reads_nothing_for_each_document(index: LocalIndex, path: Path) -> None:
    asked: list[str] = []
    with LocalIndex(path) as reader:
        reader._database.connection.set_trace_callback(asked.append)
        reader.search_embeddings(queries(1), 3)
        reader._database.connection.set_trace_callback(None)

    for query in asked:
        if "FROM documents" in query or "FROM vectors" in query:
            behind = "position > 300" in query  # where the level ends
            assert behind or " IN (" in query or "LIMIT" in query, query


# --- recall


def test_recall_is_measured_and_the_choice_recorded(index: LocalIndex, path: Path) -> None:
    measured = index.recall(queries(), 5, wanted=0.9)

    exact = search(index, exact=True)
    for way in measured.efforts:
        found = agree(search(index, effort=way.effort), exact)
        assert way.recall == pytest.approx(found)
    reaching = [way.effort for way in measured.efforts if way.recall >= 0.9]
    assert measured.chosen == reaching[0]
    with LocalIndex(path) as other:
        choice = other._database.read(read_choice, other._database)
        assert (choice.effort, choice.k, choice.queries) == (measured.chosen, 5, 20)
        assert search(other) == search(other, effort=measured.chosen)
    table = str(measured).splitlines()
    assert table[0].split() == ["effort", "recall@5", "p50", "ms", "p95", "ms"]
    assert len(table) == 1 + 5 + 1 + 1
    assert table[-1].startswith(f"* effort {measured.chosen} is the smallest that finds 90.0%")


def test_recall_takes_pieces_of_passages_where_no_queries_are_given(index: LocalIndex) -> None:
    measured = index.recall(sample=10)

    assert measured.queries == 10
    assert measured.efforts[-1].recall == 1


def test_recall_does_not_time_the_first_search_of_a_way(
    index: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, searched = 0.0, set()

    def slow_at_first(
        queries: TokenEmbeddings, k: int, *, exact: bool, effort: int | None = None
    ) -> list[list[Hit]]:
        nonlocal clock
        clock += 0.001 if (exact, effort) in searched else 0.5
        searched.add((exact, effort))
        return [[] for _ in queries]

    monkeypatch.setattr(index, "search_embeddings", slow_at_first)
    monkeypatch.setattr(recall, "time", SimpleNamespace(perf_counter=lambda: clock))

    measured = index.recall(sample=3)

    for way in (measured.exact, *measured.efforts):
        assert (way.p50, way.p95) == pytest.approx((1, 1))


def test_recall_finds_passages_where_few_positions_are_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "_DRAWN", 50)
    with LocalIndex(path, like=INFO) as index:
        index.add_encoded(*documents(2000))
        index.delete([f"d{at}" for at in range(2000) if at % 100])
        index.optimize()

        assert index.recall(sample=10, k=3).queries == 10
        assert index.recall(sample=30, k=3).queries == 20  # all there are


def test_a_sample_is_from_all_over_an_index(index: LocalIndex) -> None:
    own = topics(COUNT, rows=12, seed=0)

    sampled = index._database.read(index._searcher.sampled, 60)

    places = [at for at in range(COUNT) if any(torch.equal(own[at], rows) for rows in sampled)]
    assert len(places) == 60
    thirds = [sum(at // 100 == third for at in places) for third in range(3)]
    assert min(thirds) >= 10, "20 of each are expected"


@pytest.mark.parametrize(
    ("wanted", "error"), [("x", TypeError), (True, TypeError), (None, TypeError), (2, ValueError)]
)
def test_a_wanted_recall_that_is_none_is_refused(
    index: LocalIndex, wanted: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=rf"wanted is {wanted!r}, expected a part from 0 to 1"):
        index.recall(queries(), wanted=wanted)


def test_recall_without_a_level_is_refused(path: Path) -> None:
    with LocalIndex(path, like=INFO) as index, pytest.raises(ValueError, match="no level"):
        index.recall()


def test_a_choice_that_is_unreadable_is_none(index: LocalIndex) -> None:
    for value in (
        *("nonsense", "[]", "null", '{"unknown": 1}'),
        *('{"effort": 77}', '{"effort": [1]}', '{"effort": 2.0}', '{"effort": true}'),
        *('{"effort": "2"}', '{"effort": 1e999}', '{"effort": {}}'),
        *('{"effort": 2, "recall": "x"}', '{"effort": 2, "recall": 0.5, "k": "a"}'),
        '{"effort": 2, "queries": null}',
    ):
        index._database.write(
            lambda value=value: index._database.connection.execute(
                "REPLACE INTO settings VALUES ('effort', ?)", (value,)
            )
        )
        choice = index._database.read(read_choice, index._database)
        assert (choice, type(choice.effort)) == (Choice(), int)
        assert search(index) == search(index, effort=3)


# --- processes


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")
def test_a_maker_that_is_killed_is_taken_over(
    processes: ForkServerContext, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "APPROXIMATE_FROM", 10**9)
    fill(path, COUNT)
    for syncs in (1, 1, 2):  # in the first block, in the second, when all is written
        process, pipe = started(processes, stop_while_making, path, syncs)
        assert answer(pipe) == "written"
        process.kill()
        process.join()
        assert not level_file(path).exists()
        assert len(list(path.parent.glob(f"index.sqlite-level-{16 * '[0-9a-f]'}"))) == 1
    with LocalIndex(path) as index:
        exact = search(index, exact=True)
        assert search(index, exact=False) == exact
        index.optimize()

        assert sorted(entry.name for entry in path.parent.iterdir()) == [
            "index.sqlite",
            "index.sqlite-level",
            *(["index.sqlite-shm", "index.sqlite-wal"]),
        ]
        assert agree(search(index, effort=5), exact) == 1
        index.verify()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")
def test_kills_at_any_moment_lose_and_spoil_nothing(
    processes: ForkServerContext, path: Path
) -> None:
    """COLBERT_RAG_LEVEL_KILLS=50 kills so often."""
    kills = int(os.environ.get("COLBERT_RAG_LEVEL_KILLS", "5"))
    fill(path, COUNT)
    chosen = random.Random(kills)
    for _ in range(kills):
        process, pipe = started(processes, write_with_level, path, 60.0)
        assert answer(pipe) == "started"
        process.join(chosen.uniform(0, 0.6))
        process.kill()
        process.join()
        with LocalIndex(path, busy_timeout=30) as index:
            names = {document.id for document in index}
            assert {f"d{at}" for at in range(COUNT)} <= names
            assert agree(search(index, effort=5, exact=False), search(index, exact=True)) > 0.95
            index.optimize()
            assert agree(search(index, effort=5, exact=False), search(index, exact=True)) > 0.95
            index.verify()
    left = [entry.name for entry in path.parent.iterdir() if "-level-" in entry.name]
    assert [name for name in left if not name.endswith("-claim")] == []


def leave_half_made(index: LocalIndex, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Leave what a maker leaves that is killed when it calls a function of `making`."""

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, where, killed)
        with pytest.raises(KeyboardInterrupt):
            index.optimize()


def test_blocks_are_not_copied_to_other_centroids_that_a_killed_maker_left(
    index: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(searcher, "APPROXIMATE_FROM", 10**9)
        index.add_encoded(*documents(400, seed=5, prefix="n"))
    leave_half_made(index, monkeypatch, "_append_full")  # with new centroids, and without a block
    index.delete([f"n{at}" for at in range(250)])  # the old ones would do again

    index.optimize()

    opened = index._searcher.level._file.open()
    assert opened is not None
    codes = np.concatenate([part.block.codes for part in opened.parts])
    stored = index._database.read(index._rows.vectors, torch.from_numpy(opened.positions)).values
    assert codes.tolist() == opened.centroids.nearest(stored)[0].tolist()
    assert agree(search(index, effort=3), search(index, exact=True)) > 0.9


@pytest.mark.parametrize(("gone", "added"), [(300, 200), (299, 200), (0, 900)])
def test_a_level_that_holds_little_any_more_is_not_taken_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, gone: int, added: int
) -> None:
    with LocalIndex(path, like=INFO) as index:
        with monkeypatch.context() as patch:
            patch.setattr(searcher, "APPROXIMATE_FROM", 10**9)
            index.add_encoded(*documents(COUNT))
            leave_half_made(index, monkeypatch, "train")
            index.delete([f"d{at}" for at in range(gone)])
        index.add_encoded(*documents(added, seed=9, prefix="n"))

        opened = index._searcher.level._file.open()
        assert opened is not None
        assert len(opened.positions) == COUNT - gone + added
        assert agree(search(index, effort=5), search(index, exact=True)) == 1
    assert [entry.name for entry in path.parent.glob("index.sqlite-level-*")] == []


def test_a_level_is_not_made_from_documents_that_are_gone_meanwhile(
    index: LocalIndex,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    level_file(path).unlink()
    maker = index._searcher.level._maker
    begun = maker._begun

    def too_late() -> object:
        index.delete([document.id for document in index])
        return begun()

    monkeypatch.setattr(maker, "_begun", too_late)

    index.optimize()

    assert "no vectors are left" in caplog.text
    assert [entry.name for entry in path.parent.glob("index.sqlite-level*")] == []


def test_threads_search_while_one_adds_and_optimises(index: LocalIndex) -> None:
    own = topics(300, rows=12, seed=0)
    wrong: list[object] = []
    done = threading.Event()

    def look(first: int) -> None:
        at = first
        while not done.is_set():
            hit = index.search_embeddings(own[[at % 300]], 1, exact=False)[0][0]
            if hit.id != f"d{at % 300}":
                wrong.append(hit)
            at += 7

    threads = [threading.Thread(target=look, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for part in range(6):
        index.add_encoded(*documents(40, seed=50 + part, prefix=f"t{part}-"))
        index.optimize()
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a file that is mapped")
def test_readers_are_right_while_others_write_and_optimise(
    processes: ForkServerContext, path: Path
) -> None:
    """Eight readers in four processes; COLBERT_RAG_LEVEL_SECONDS=60 lets them read for longer."""
    seconds = float(os.environ.get("COLBERT_RAG_LEVEL_SECONDS", "4"))
    fill(path, COUNT)
    _, writer = started(processes, write_with_level, path, seconds)
    readers = [started(processes, read_with_level, path, seconds)[1] for _ in range(4)]

    read = [answer(pipe) for pipe in readers]
    assert answer(writer) == "started"
    rounds, amiss = answer(writer)

    assert [wrong for _, wrong in read] == [[], [], [], []]
    assert amiss == []
    assert all(searches for searches, _ in read)
    with LocalIndex(path) as index:
        own = {f"d{at}" for at in range(COUNT)}
        assert {document.id for document in index} == own | {
            f"w{rounds - 1}-{at}" for at in range(20)
        }
        index.verify()


def test_whatever_happens_to_the_index_the_level_finds_what_is_there(path: Path) -> None:
    """Random changes, against the exact search; see also `test_index_states`."""
    random.seed(0)
    with LocalIndex(path, like=INFO) as index:
        index.add_encoded(*documents(150))
        for step in range(25):
            held = [document.id for document in index]
            action = random.choice(["add", "replace", "delete", "optimize", "compact"])
            if action == "add":
                index.add_encoded(*documents(random.choice([1, 30]), seed=step, prefix=f"{step}-"))
            elif action == "replace":
                some = random.sample(held, 3)
                _, vectors = documents(3, seed=1000 + step)
                index.add_encoded([Document(name, f"{name} at {step}") for name in some], vectors)
            elif action == "delete":
                index.delete(random.sample(held, min(20, len(held) // 3)))
            elif action == "optimize":
                index.optimize()
            else:
                index.compact()
            exact = search(index, exact=True)
            assert agree(search(index, effort=5), exact) == 1
            rough: list[list[Hit]] = index.search_embeddings(queries(), 5, effort=1)
            alive = {document.id for document in index}
            assert all(hit.id in alive for hits in rough for hit in hits)


def test_a_level_in_blocks_of_another_size_is_made_anew(
    path: Path, index: LocalIndex, monkeypatch: pytest.MonkeyPatch
):
    index.optimize()
    before = level_file(path).stat().st_ino
    monkeypatch.setattr(postings, "BLOCK", 128)

    with LocalIndex(path) as other:
        other.add_encoded(*documents(20, seed=1, prefix="later"))
        other.optimize()
        hits = other.search_embeddings(topics(COUNT, rows=ROWS, seed=0)[[7]], 1, exact=False)[0]

    assert [hit.id for hit in hits] == ["d7"]
    assert level_file(path).stat().st_ino != before
