"""A `LocalIndex` whose vectors are int8 or int4: searches, copies, conversions, and old files."""

from __future__ import annotations

import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from colbert_rag.codings import CODINGS, coding_named
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import (
    IndexBusyError,
    IndexCorruptError,
    IndexMismatchError,
    IndexStorageError,
)
from colbert_rag.index import Document, LocalIndex, copy_index
from colbert_rag.index.documents import text_digest
from colbert_rag.index.local import selection, snapshot
from colbert_rag.maxsim import int8_kernel, maxsim
from tests.helpers.index_fakes import WordEncoder, naive_maxsim, sentences
from tests.helpers.index_processes import DOCUMENTS, fork_server, started, stop_while_converting

TEXTS = sentences(200)
QUERY = "storm dust on mars"
OTHERS = ["int8", "int4"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


def documents() -> list[Document]:
    return [Document(f"d{at}", text, {"n": at, "odd": at % 2}) for at, text in enumerate(TEXTS)]


def filled(path: Path | str, vectors: Any = None) -> LocalIndex:
    index = LocalIndex(path, WordEncoder(), vectors=vectors)
    index.add(documents())
    return index


def all_vectors(index: LocalIndex) -> torch.Tensor:
    return torch.cat([vectors.values for _, vectors in index.encoded()])


def found(index: LocalIndex, k: int = 10, **filter: Any) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in index.search(QUERY, k, filter or None)]


def by_definition(index: LocalIndex, k: int, odd: int | None = None) -> list[tuple[str, float]]:
    rows = WordEncoder().encode_queries([QUERY])[0]
    scores = [
        (document.id, naive_maxsim(rows, vectors))
        for page, embeddings in index.encoded()
        for document, vectors in zip(page, embeddings, strict=True)
        if odd is None or document.metadata["odd"] == odd
    ]
    return sorted(scores, key=lambda pair: -pair[1])[:k]


def format_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    version = connection.execute("PRAGMA user_version").fetchone()[0] & 0xFF
    connection.close()
    return int(version)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", list(CODINGS))
def test_search_is_maxsim_over_the_stored_vectors(
    path: Path, name: str, shared: bool, scan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_kernel, "multiplies_quickly", lambda: scan)
    monkeypatch.setattr(snapshot, "SHARED_FROM", 1 if shared else 2**40)
    index = filled(path, name)

    for k in (1, 7, 150, 500):
        expected = by_definition(index, k)
        assert [name for name, _ in found(index, k)] == [name for name, _ in expected]
        assert [score for _, score in found(index, k)] == pytest.approx(
            [score for _, score in expected], abs=1e-5
        )
    assert [name for name, _ in found(index, 9, odd=1)] == [
        name for name, _ in by_definition(index, 9, odd=1)
    ]
    assert (index.stats().shared_bytes is not None) == shared


def test_a_scan_scores_few_documents_exactly(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_kernel, "multiplies_quickly", lambda: True)
    index = filled(path, "int8")
    scored: list[int] = []
    exact = selection.maxsim_stored
    monkeypatch.setattr(
        selection, "maxsim_stored", lambda q, d: scored.append(len(d)) or exact(q, d)
    )

    assert len(found(index, 5)) == 5

    assert 5 <= sum(scored) < 60


@pytest.mark.parametrize("name", list(CODINGS))
def test_search_score_embeddings_and_a_rerankers_memory_see_the_same_vectors(
    path: Path, name: str
) -> None:
    index = filled(path, name)
    query = WordEncoder().encode_queries([QUERY])[0]

    hits = index.search(QUERY, 20)

    by_id = maxsim(query, index.embeddings([hit.id for hit in hits]))
    held = index.embeddings_for([hit.text for hit in hits])
    by_text = maxsim(query, TokenEmbeddings.from_list([held[hit.text] for hit in hits]))
    assert by_id.dtype == torch.float32
    assert torch.equal(by_id, by_text)
    assert [hit.score for hit in hits] == pytest.approx(by_id.tolist(), abs=1e-5)
    assert {vectors.dtype for vectors in held.values()} == {torch.float16}


@pytest.mark.parametrize("name", list(CODINGS))
def test_a_write_may_bring_no_vectors(path: Path, name: str) -> None:
    with LocalIndex(path, WordEncoder(), vectors=name) as index:
        index.add([Document("a", "one two", {"n": 1})])
        index.add([Document("a", "one two", {"n": 2})])
        index.add([Document("b", "...")])
        index.add_encoded([], TokenEmbeddings(torch.zeros(0, 16).half(), torch.tensor([0])))

        assert {document.id: document.metadata for document in index} == {"a": {"n": 2}, "b": {}}
        assert [hit.id for hit in index.search("one", 5)] == ["a"]
        index.delete(["a"])
        assert index.search("one", 5) == []
        index.verify()


@pytest.mark.parametrize("texts", [[], ["..."], ["." * (at + 1) for at in range(60)]])
@pytest.mark.parametrize("name", list(CODINGS))
def test_an_index_without_vectors_is_converted(path: Path, name: str, texts: list[str]) -> None:
    with LocalIndex(path, WordEncoder()) as index:
        index.add(texts)
        index.convert(name)

        assert (index.stats().vectors, [document.text for document in index]) == (name, texts)
        assert index.search("one", 5) == []
        index.add(["one two"])
        assert [hit.text for hit in index.search("one", 5)] == ["one two"]


@pytest.mark.parametrize("name", list(CODINGS))
def test_a_file_remembers_how_it_stores_vectors(path: Path, name: str) -> None:
    filled(path, name).close()

    with LocalIndex(path) as index:
        assert index.vectors == name
        row = {"float16": 32, "int8": 17, "int4": 9}[name]
        held = index.stats()
        assert (held.vectors, held.vector_bytes) == (name, row)
        found_before = held.held_bytes
    with LocalIndex(path, WordEncoder(), vectors=name) as index:
        found(index)
        held = index.stats()
        assert (found_before, held.held_bytes) == (0, row * (held.tokens or 0))
        assert held.mapped_bytes == 0


def test_a_mapped_copy_is_not_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SHARED_FROM", 1)
    with filled(path, "int8") as index:
        found(index)
        held = index.stats()
    assert (held.held_bytes, held.mapped_bytes) == (0, 17 * (held.tokens or 0))


def test_float16_is_the_default_and_its_bytes_are_those_of_version_2(path: Path) -> None:
    with filled(path) as index:
        assert index.vectors == "float16"
        expected = WordEncoder().encode_documents(TEXTS[:1]).values.half()

    connection = sqlite3.connect(path)
    [blob] = connection.execute("SELECT embeddings FROM vectors WHERE position = 1").fetchone()
    connection.close()
    assert blob == expected.numpy().astype("<f2").tobytes()


def test_another_coding_than_that_of_the_file_is_refused(path: Path) -> None:
    filled(path, "int8").close()

    with pytest.raises(
        IndexMismatchError, match=r"vectors='int8', found vectors='int4'.*--convert"
    ):
        LocalIndex(path, vectors="int4")
    with pytest.raises(ValueError, match="expected one of 'float16', 'int8', 'int4'"):
        LocalIndex(path, vectors="int2")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(CODINGS))
def test_a_flipped_bit_is_damage(path: Path, name: str) -> None:
    filled(path, name).close()
    connection = sqlite3.connect(path)
    [blob] = connection.execute("SELECT embeddings FROM vectors WHERE position = 3").fetchone()
    connection.execute(
        "UPDATE vectors SET embeddings = ? WHERE position = 3", (bytes([blob[0] ^ 1]) + blob[1:],)
    )
    connection.commit()
    connection.close()

    with LocalIndex(path, WordEncoder()) as index:
        with pytest.raises(IndexCorruptError, match="position 3"):
            index.verify()
        with pytest.raises(IndexCorruptError, match="position 3"):
            found(index)


def test_a_flipped_bit_in_the_copy_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SHARED_FROM", 1)
    with filled(path, "int4") as index:
        found(index)
        index.verify()
        beside = Path(f"{path}-vectors")
        content = bytearray(beside.read_bytes())
        content[-1] ^= 1
        beside.chmod(0o600)
        beside.write_bytes(content)

        with pytest.raises(IndexCorruptError, match="delete the copy"):
            index.verify()


# Between codings


@pytest.mark.parametrize("source", list(CODINGS))
@pytest.mark.parametrize("target", list(CODINGS))
def test_copies_hold_the_vectors_of_their_source_as_well_as_they_can(
    tmp_path: Path, source: Any, target: Any
) -> None:
    with (
        filled(tmp_path / "a.sqlite", source) as one,
        LocalIndex(tmp_path / "b.sqlite", like=one.info, vectors=target) as other,
    ):
        copy_index(one, other)

        expected = all_vectors(one)
        if target != source and target != "float16":
            expected = recoded(expected, target)
        assert other.vectors == target
        assert torch.equal(all_vectors(other), expected)


def recoded(vectors: torch.Tensor, name: str) -> torch.Tensor:
    embeddings = TokenEmbeddings.from_lengths(vectors, [len(vectors)])
    return coding_named(name).encoded(embeddings).decoded().values


@pytest.mark.parametrize("source", list(CODINGS))
@pytest.mark.parametrize("target", [None, *CODINGS])
def test_publishing_brings_the_coding_along(tmp_path: Path, source: Any, target: Any) -> None:
    place = tmp_path / "b.sqlite"
    reader = None
    if target is not None:
        reader = LocalIndex(place, WordEncoder(), vectors=target)
        reader.add(["something old"])
        found(reader)
    with filled(tmp_path / "a.sqlite", source) as index:
        index.publish(place)
        expected, vectors = found(index), all_vectors(index)

    for other in filter(None, [reader, LocalIndex(place, WordEncoder())]):
        assert found(other) == expected
        assert other.vectors == source
        assert torch.equal(all_vectors(other), vectors)
        other.verify()


# Conversion


@pytest.mark.parametrize("source", list(CODINGS))
@pytest.mark.parametrize("target", list(CODINGS))
def test_a_conversion_changes_vectors_and_nothing_else(
    path: Path, source: Any, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "SHARED_FROM", 1)
    with filled(path, source) as index, LocalIndex(path, WordEncoder()) as reader:
        index.delete(["d3"])
        before, vectors = list(index), all_vectors(index)
        found(reader)
        found(index)

        index.convert(target)

        expected = recoded(vectors, target)
        for one in (index, reader):
            assert list(one) == before
            assert torch.equal(all_vectors(one), expected)
            assert [name for name, _ in found(one)] == [name for name, _ in by_definition(one, 10)]
            assert one.vectors == target
            one.verify()
        reader.add(["one more"])
        assert index.count() == len(before) + 1
        assert found(index, 300) == found(reader, 300)
    with LocalIndex(path, WordEncoder()) as again:
        assert again.vectors == target


def test_more_bits_change_no_vector(path: Path) -> None:
    with filled(path, "int4") as index:
        expected = all_vectors(index)

        for name in ("float16", "int4", "float16"):
            index.convert(name)  # type: ignore[arg-type]

            assert torch.equal(all_vectors(index), expected)


@pytest.mark.parametrize("pages", [1, 2, 3])
def test_a_killed_conversion_leaves_everything_as_it_was(path: Path, pages: int) -> None:
    with LocalIndex(path, WordEncoder()) as index:
        index.add(DOCUMENTS)
        expected = all_vectors(index)
    process, pipe = started(fork_server(), stop_while_converting, path, pages)
    assert pipe.poll(120)
    process.kill()
    process.join()

    with LocalIndex(path, WordEncoder()) as index:
        index.verify()
        assert index.vectors == "float16"
        assert torch.equal(all_vectors(index), expected)
        index.convert("int8")
        index.verify()
        assert torch.equal(all_vectors(index), recoded(expected, "int8"))


def test_a_reader_goes_on_while_another_process_converts(path: Path) -> None:
    with LocalIndex(path, WordEncoder(), busy_timeout=0) as index:
        index.add(DOCUMENTS)
        expected = [hit.id for hit in index.search(QUERY)]
        process, pipe = started(fork_server(), stop_while_converting, path, 2)
        assert pipe.poll(120)

        assert [hit.id for hit in index.search(QUERY)] == expected
        with pytest.raises(IndexBusyError):
            index.convert("int4")
        process.kill()
        process.join()


def test_a_failure_while_converting_leaves_everything_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(path) as index:
        expected = all_vectors(index)
        with monkeypatch.context() as patch:
            patch.setattr(index._database, "record", lambda record: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                index.convert("int8")

        assert index.vectors == "float16"
        assert torch.equal(all_vectors(index), expected)
        index.add(["one more"])
        index.verify()


def test_what_is_open_for_reading_is_not_converted(path: Path) -> None:
    filled(path).close()

    with (
        LocalIndex(path, read_only=True) as index,
        pytest.raises(IndexStorageError, match="reading only"),
    ):
        index.convert("int8")


def test_a_conversion_makes_the_file_smaller(path: Path) -> None:
    with filled(path) as index:
        index.compact()
        tokens, before = index.stats().tokens or 0, index.stats().bytes or 0
        index.convert("int4")
        index.compact()

        assert before - (index.stats().bytes or 0) >= 0.6 * tokens * (32 - 9)


# Files of version 2


def write_version_2(path: Path) -> torch.Tensor:
    """A file as it was written before there was a choice of vectors; returns its vectors."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(
        """
        BEGIN;
        CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE documents (
            position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            rows INTEGER NOT NULL, text_digest BLOB NOT NULL, checksum INTEGER NOT NULL,
            metadata TEXT NOT NULL, text TEXT NOT NULL
        );
        CREATE INDEX documents_by_text ON documents (text_digest);
        CREATE TABLE vectors (
            position INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, embeddings BLOB NOT NULL
        );
        INSERT INTO settings VALUES ('removals', '0'), ('edits', '0');
        """
    )
    encoded = WordEncoder().encode_documents(TEXTS[:30])
    for position, (text, rows) in enumerate(zip(TEXTS[:30], encoded, strict=True), start=1):
        digest, blob = text_digest(text), rows.half().numpy().astype("<f2").tobytes()
        metadata = json.dumps({"n": position})
        described = f"d{position}\0{len(rows)}\0{digest.hex()}\0{metadata}"
        connection.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                position,
                f"d{position}",
                len(rows),
                digest,
                zlib.crc32(described.encode(), position),
                metadata,
                text,
            ),
        )
        connection.execute(
            "INSERT INTO vectors VALUES (?, ?, ?)", (position, zlib.crc32(blob, position), blob)
        )
    model = (
        '{"checkpoint": "tests/words", "fingerprint": "' + "a" * 64 + '", "dim": 16, "recipe": {}, '
        '"token_pooling": null}'
    )
    connection.executemany(
        "INSERT INTO settings VALUES (?, ?)",
        [
            ("documents", "30"),
            ("tokens", str(len(encoded.values))),
            ("model", model),
            ("checksum", f"{zlib.crc32(model.encode()):08x}"),
        ],
    )
    connection.execute(f"PRAGMA application_id = {0x436F6C42}")
    connection.execute(f"PRAGMA user_version = {0x1234 << 8 | 2}")
    connection.execute("COMMIT")
    connection.close()
    return encoded.values.half()


def test_a_file_of_version_2_is_one_of_version_3_from_its_first_write_on(path: Path) -> None:
    expected = write_version_2(path)

    with LocalIndex(path, WordEncoder()) as index:
        assert index.vectors == "float16"
        index.verify()
        assert torch.equal(all_vectors(index), expected)
        assert index.search(TEXTS[4], 1)[0].id == "d5"
        assert format_of(path) == 2  # the version that wrote it reads it still
        index.add(["one more"])
        index.delete(["d1"])
        index.compact()
        index.verify()
        assert index.vectors == "float16"

    assert format_of(path) == 3


def test_a_file_of_version_2_is_converted_and_then_refused_by_the_version_that_wrote_it(
    path: Path,
) -> None:
    expected = write_version_2(path)
    connection = sqlite3.connect(path)
    query = "SELECT value FROM settings WHERE name = 'model'"
    before = connection.execute(query).fetchone()
    connection.close()

    with LocalIndex(path, WordEncoder()) as index:
        index.convert("int8")
        index.verify()
        assert torch.equal(all_vectors(index), recoded(expected, "int8"))

    # Version 2 compares this byte with 2 when it opens a file, and while it has one open the record
    # of the model with what it was.
    assert format_of(path) == 3
    connection = sqlite3.connect(path)
    assert connection.execute(query).fetchone() != before
    connection.close()


def test_a_new_file_is_of_version_3(path: Path) -> None:
    filled(path).close()

    assert format_of(path) == 3


def test_a_file_of_version_1_is_refused_by_name(path: Path) -> None:
    filled(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()

    with pytest.raises(IndexCorruptError, match=r"format 1, .*make it anew"):
        LocalIndex(path, WordEncoder())
