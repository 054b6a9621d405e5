"""The questions a `LocalIndex` asks its file, each inside the caller's transaction."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from colbert_rag.codings import CodedEmbeddings
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexCorruptError
from colbert_rag.index.documents import Document, Json, Stored, metadata_json, text_digest
from colbert_rag.index.local.ahead import found_scattered
from colbert_rag.index.local.checksums import head_checksum, vectors_checksum
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.schema import CLEAR, NOTE_REMOVED
from colbert_rag.index.local.translation import corrupt

# What is stored of a document beside its text, in the order that `head_checksum` takes.
_HEAD = "position, id, rows, text_digest, metadata, checksum"

# SQLite takes 32,766 parameters a statement; far fewer keep its parser quick.
_PARAMETERS = 500

_COUNTER = re.compile(r"[0-9]{1,18}")


class Rows:
    """Documents and vectors by position, the rising number that each version of one gets."""

    def __init__(self, database: Database, dim: int) -> None:
        """Read and write the tables of `database`, with vectors of width `dim`."""
        self._database = database
        self._dim = dim

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._database.connection

    def _found(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query at once.

        One by one, an exception between two would leave the query unfinished for as long as its
        traceback is kept, and with it the read transaction, which no ROLLBACK ends.
        """
        return self._connection.execute(query, values).fetchall()

    def _listed(self, query: str, values: Sequence[int]) -> list[tuple[Any, ...]]:
        return self._found(query, (json.dumps(values),))

    def counters(self) -> tuple[int, int]:
        """How often documents were removed, and how often metadata alone was changed."""
        removals, edits = self.counted("removals", "edits")
        return removals, edits

    def count(self) -> int:
        """How many documents there are."""
        counted = int(self._connection.execute("SELECT count(*) FROM documents").fetchone()[0])
        return self._agreed("documents", counted)

    def totals(self) -> tuple[int, int]:
        """How many documents and vectors there are."""
        # Read from the table, and not from the shorter index on it: what follows is read there too.
        query = (
            "SELECT count(*), CAST(total(rows) AS INTEGER), ifnull(min(position), 1) "
            "FROM documents NOT INDEXED"
        )
        documents, tokens, first = self._connection.execute(query).fetchone()
        if first < 1:
            raise self._corrupt("the document", first)
        return self._agreed("documents", documents), self._agreed("tokens", tokens)

    def _agreed(self, name: str, counted: int) -> int:
        """A number that was counted in the tables and beside them."""
        (kept,) = self.counted(name)
        if kept != counted:
            raise corrupt(
                self._database.path, f"{counted} {name} were found, and {kept} were written"
            )
        return counted

    def counted(self, *names: str) -> list[int]:
        """Numbers that are kept beside the tables, such as of documents and tokens."""
        query = "SELECT value FROM settings WHERE name = ?"
        found = [self._connection.execute(query, (name,)).fetchone() for name in names]
        # What we write, and no more of what `int` takes: SQLite must read the same, and add to it.
        if all(row and isinstance(row[0], str) and _COUNTER.fullmatch(row[0]) for row in found):
            return [int(row[0]) for row in found]
        raise corrupt(self._database.path, "its counters are unreadable")

    def positions(self, after: int = 0) -> Tensor:
        """Every position above `after`, rising."""
        found = self._found("SELECT position FROM documents WHERE position > ?", (after,))
        return torch.tensor([row[0] for row in found], dtype=torch.int64).sort().values

    def catalog(self, after: int) -> tuple[Tensor, Tensor]:
        """Positions above `after`, rising, and how many vectors each has."""
        if not after:
            self.totals()
        return self._by_position("rows", "documents", "the number of vectors", after)

    def checksums(self) -> tuple[Tensor, Tensor]:
        """Every position that has vectors, rising, and their checksum; reads no vector."""
        return self._by_position("checksum", "vectors", "the checksum of the vectors")

    def _by_position(
        self, column: str, table: str, what: str, after: int = -(2**63)
    ) -> tuple[Tensor, Tensor]:
        """Positions above `after`, rising, and a column of numbers that are never negative."""
        query = (
            f"SELECT position, iif(typeof({column}) = 'integer', {column}, -1) FROM {table} "
            "WHERE position > ? ORDER BY position"
        )
        pairs = torch.tensor(self._found(query, (after,)), dtype=torch.int64).reshape(-1, 2)
        broken = pairs[pairs[:, 1] < 0]
        if len(broken):
            raise self._corrupt(what, int(broken[0, 0]))
        return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()

    def metadata(self, after: int, size: int = -1) -> dict[int, Mapping[str, Json]]:
        """Metadata of positions above `after`, in order: of `size` of them, or of all."""
        query = f"SELECT {_HEAD} FROM documents WHERE position > ? ORDER BY position LIMIT ?"
        found = self._found(query, (after, size))
        return {row[0]: self._parsed(row) for row in found}

    def ids_and_metadata(self) -> list[tuple[str, Mapping[str, Json]]]:
        """Id and metadata of every document, without reading its text."""
        found = self._found(f"SELECT {_HEAD} FROM documents")
        return [(row[1], self._parsed(row)) for row in found]

    def vectors(self, positions: Tensor) -> TokenEmbeddings:
        """Vectors of some positions, which must rise; float16, on the CPU.

        Raises:
            IndexCorruptError: some are missing, or not what was written.
        """
        return self.coded(positions).decoded()

    def coded(self, positions: Tensor, lengths: Sequence[int] | None = None) -> CodedEmbeddings:
        """As `vectors`, but as they are stored; `lengths` where it is known how many each has."""
        coding = self._database.coding
        row_bytes = coding.row_bytes(self._dim)
        # For a thousand documents, a look at each in the other table takes a sixth of the time.
        told = "NULL FROM vectors"
        looked_up = "rows FROM vectors LEFT JOIN documents USING (position)"
        query = (
            "SELECT vectors.position, vectors.checksum, embeddings, "
            f"{looked_up if lengths is None else told} "
            "WHERE vectors.position IN (SELECT value FROM json_each(?)) ORDER BY vectors.position"
        )
        find = partial(self._listed, query)
        path, listed = self._database.place.absolute, positions.tolist()
        found = find(listed) if lengths is None else found_scattered(find, listed, path)
        if len(found) != len(positions):
            missing = len(positions) - len(found)
            raise corrupt(self._database.path, f"the vectors of {missing} documents are missing")
        if lengths is None:
            lengths = [rows for *_, rows in found]
        for (position, checksum, blob, _), rows in zip(found, lengths, strict=True):
            typed = isinstance(blob, bytes) and isinstance(rows, int)
            whole = typed and len(blob) == rows * row_bytes
            if not whole or vectors_checksum(position, blob) != checksum:
                raise self._corrupt("the vectors", position)
        # Joined at once: a bytearray that grows keeps an eighth in reserve as long as it lives.
        stored = coding.from_disk(bytearray().join(blob for _, _, blob, _ in found), self._dim)
        return CodedEmbeddings(coding, self._dim, TokenEmbeddings.from_lengths(stored, lengths))

    def documents(self, positions: Iterable[int]) -> dict[int, Document]:
        """Documents by position.

        Raises:
            IndexCorruptError: some are missing, or not what was written.
        """
        found: dict[int, Document] = {}
        wanted = list(positions)
        for marks, some in _chunked(wanted):
            query = f"SELECT {_HEAD}, text FROM documents WHERE position IN ({marks})"
            found |= {row[0]: self._document(row) for row in self._found(query, some)}
        for position in wanted:
            if position not in found:
                raise self._corrupt("the document", position)
        return found

    def page(self, after: int, size: int) -> dict[int, Document]:
        """The next `size` documents above a position, in order."""
        if not after:
            self.totals()
        query = f"SELECT {_HEAD}, text FROM documents WHERE position > ? ORDER BY position LIMIT ?"
        found = self._found(query, (after, size))
        return {row[0]: self._document(row) for row in found}

    def positions_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Positions by id; ids that do not exist are left out."""
        return {row[1]: row[0] for row in self._heads("id", ids)}

    def positions_of_texts(self, digests: Iterable[bytes]) -> dict[bytes, int]:
        """A position by digest of its text; texts that do not exist are left out."""
        return {row[3]: row[0] for row in self._heads("text_digest", digests)}

    def known(self, ids: Iterable[str]) -> dict[str, Stored]:
        """What the index holds under some ids."""
        return {row[1]: Stored(row[3], json.loads(row[4])) for row in self._heads("id", ids)}

    def _heads(self, column: str, values: Iterable[object]) -> Iterator[tuple[Any, ...]]:
        """What is stored of some documents beside their text."""
        for marks, some in _chunked(values):
            query = f"SELECT {_HEAD} FROM documents WHERE {column} IN ({marks})"
            for row in self._found(query, some):
                self._check(row)
                yield row

    def check_missing(self, ids: Sequence[str]) -> None:
        """Look for ids that were not found where they stand, and not in the index on them.

        Raises:
            IndexCorruptError: they are there.
        """
        self.totals()
        query = "SELECT id FROM documents NOT INDEXED WHERE id IN (SELECT value FROM json_each(?))"
        found = self._connection.execute(query, (json.dumps(ids),)).fetchone()
        if found is not None:
            raise corrupt(self._database.path, f"the id {found[0]!r} is not where it belongs")

    def insert(self, documents: Sequence[Document], vectors: CodedEmbeddings) -> None:
        """Append documents with their vectors as they are stored."""
        position = self._last_position()
        for document, rows in zip(documents, vectors.rows, strict=True):
            position += 1
            head = (
                position,
                document.id,
                len(rows),
                text_digest(document.text),
                metadata_json(document.metadata),
            )
            self._connection.execute(
                f"INSERT INTO documents ({_HEAD}, text) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*head, head_checksum(*head), document.text),
            )
            blob = vectors.coding.to_disk(rows)
            self._connection.execute(
                "INSERT INTO vectors VALUES (?, ?, ?)",
                (position, vectors_checksum(position, blob), blob),
            )
        self._count("documents", len(documents))
        self._count("tokens", len(vectors.values))

    def set_vectors(self, positions: Tensor, vectors: CodedEmbeddings) -> None:
        """Store other bytes for the vectors of some positions."""
        for position, rows in zip(positions.tolist(), vectors.rows, strict=True):
            blob = vectors.coding.to_disk(rows)
            self._connection.execute(
                "UPDATE vectors SET checksum = ?, embeddings = ? WHERE position = ?",
                (vectors_checksum(position, blob), blob, position),
            )

    def _last_position(self) -> int:
        """The highest position that was ever used."""
        query = (
            "SELECT max(ifnull((SELECT max(position) FROM documents), 0), "
            "ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'documents'), 0))"
        )
        last = self._connection.execute(query).fetchone()[0]
        if not isinstance(last, int) or not 0 <= last < 2**62:
            raise corrupt(self._database.path, f"its last position is {last!r}")
        return last

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the documents that exist under some ids, and count them."""
        found = list(self._heads("id", ids))
        self._connection.execute(NOTE_REMOVED, (json.dumps([row[0] for row in found]),))
        for marks, some in _chunked(row[0] for row in found):
            for table in ("vectors", "documents"):
                self._connection.execute(f"DELETE FROM {table} WHERE position IN ({marks})", some)
        if found:
            self._count("documents", -len(found))
            self._count("tokens", -sum(row[2] for row in found))
            self._count("removals", 1)
        return len(found)

    def clear(self) -> None:
        """Remove every document, and what was measured of them."""
        for statement in CLEAR:
            self._connection.execute(statement)
        self._count("removals", 1)

    def set_metadata(self, documents: Sequence[Document]) -> None:
        """Give documents with known ids and unchanged texts new metadata."""
        for document in documents:
            metadata = metadata_json(document.metadata)
            for position, name, rows, digest, *_ in self._heads("id", [document.id]):
                self._connection.execute(
                    "UPDATE documents SET metadata = ?, checksum = ? WHERE position = ?",
                    (metadata, head_checksum(position, name, rows, digest, metadata), position),
                )
        if documents:
            self._count("edits", 1)

    def _count(self, name: str, more: int) -> None:
        self._connection.execute(
            "UPDATE settings SET value = CAST(value AS INTEGER) + ? WHERE name = ?", (more, name)
        )

    def _document(self, row: tuple[Any, ...]) -> Document:
        *head, text = row
        self._check(head)
        position, name, _, digest, metadata, _ = head
        if not isinstance(text, str) or text_digest(text) != digest:
            raise self._corrupt(f"text or metadata ({name!r})", position)
        return Document(name, text, json.loads(metadata))

    def _parsed(self, row: Sequence[Any]) -> Mapping[str, Json]:
        self._check(row)
        metadata: Mapping[str, Json] = json.loads(row[4])
        return metadata

    def _check(self, row: Sequence[Any]) -> None:
        """Compare all that is stored of a document, but its text, with its checksum."""
        *head, checksum = row
        types = tuple(map(type, head))
        if types != (int, str, int, bytes, str) or head_checksum(*head) != checksum:
            raise self._corrupt(f"text or metadata ({head[1]!r})", head[0])

    def _corrupt(self, what: str, position: int) -> IndexCorruptError:
        return corrupt(
            self._database.path, f"{what} at position {position} are not what was written"
        )


def _chunked(values: Iterable[object]) -> Iterator[tuple[str, list[object]]]:
    """Values in groups that fit one statement, each with its question marks."""
    listed = list(values)
    for start in range(0, len(listed), _PARAMETERS):
        some = listed[start : start + _PARAMETERS]
        yield ",".join("?" * len(some)), some
