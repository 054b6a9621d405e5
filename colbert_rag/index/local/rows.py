"""The questions a `LocalIndex` asks its file, each inside the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexCorruptError
from colbert_rag.index.documents import Document, Json, Stored, metadata_json, text_digest
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.translation import corrupt

# SQLite takes 32,766 parameters a statement; far fewer keep its parser quick.
_PARAMETERS = 500

# Little-endian whatever the machine, so that a file can be carried anywhere.
_FLOAT16 = np.dtype("<f2")


class Rows:
    """Documents and vectors by position, the rising number that each version of one gets."""

    def __init__(self, database: Database, dim: int) -> None:
        """Read and write the tables of `database`, with vectors of width `dim`."""
        self._database = database
        self._dim = dim

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._database.connection

    def counters(self) -> tuple[int, int]:
        """How often documents were removed, and how often metadata alone was changed."""
        query = "SELECT value FROM settings WHERE name = ?"
        removals, edits = (
            self._connection.execute(query, (name,)).fetchone() for name in ("removals", "edits")
        )
        try:
            return int(removals[0]), int(edits[0])
        except (TypeError, ValueError) as error:
            raise corrupt(self._database.path, "its counters are unreadable") from error

    def count(self) -> int:
        """How many documents there are."""
        return int(self._connection.execute("SELECT count(*) FROM documents").fetchone()[0])

    def positions(self) -> Tensor:
        """Every position, rising."""
        found = self._connection.execute("SELECT position FROM documents").fetchall()
        return torch.tensor([row[0] for row in found], dtype=torch.int64).sort().values

    def catalog(self, after: int) -> tuple[Tensor, Tensor]:
        """Positions above `after`, rising, and how many vectors each has."""
        query = "SELECT position, rows FROM documents WHERE position > ? ORDER BY position"
        found = self._connection.execute(query, (after,)).fetchall()
        table = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        return table[:, 0].contiguous(), table[:, 1].contiguous()

    def checksums(self) -> tuple[Tensor, Tensor]:
        """Every position that has vectors, rising, and their checksum; reads no vector."""
        query = "SELECT position, checksum FROM vectors ORDER BY position"
        found = self._connection.execute(query).fetchall()
        table = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        return table[:, 0].contiguous(), table[:, 1].contiguous()

    def metadata(self, after: int) -> dict[int, Mapping[str, Json]]:
        """Metadata of every position above `after`."""
        query = "SELECT position, metadata FROM documents WHERE position > ?"
        return {
            position: self._parsed(text, position)
            for position, text in self._connection.execute(query, (after,))
        }

    def ids_and_metadata(self) -> list[tuple[str, Mapping[str, Json]]]:
        """Id and metadata of every document, without reading its text."""
        found = self._connection.execute("SELECT id, metadata, position FROM documents")
        return [(name, self._parsed(text, position)) for name, text, position in found]

    def vectors(self, positions: Tensor) -> TokenEmbeddings:
        """Vectors of some positions, which must rise; float16, on the CPU.

        Raises:
            IndexCorruptError: some are missing, or not what was written.
        """
        query = (
            "SELECT position, checksum, embeddings FROM vectors "
            "WHERE position IN (SELECT value FROM json_each(?)) ORDER BY position"
        )
        blobs, lengths = [], []
        listed = json.dumps(positions.tolist())
        for position, checksum, blob in self._connection.execute(query, (listed,)):
            rows, rest = divmod(len(blob), self._dim * _FLOAT16.itemsize)
            if rest or zlib.crc32(blob) != checksum:
                raise self._corrupt("vectors", position)
            blobs.append(blob)
            lengths.append(rows)
        if len(lengths) != len(positions):
            missing = len(positions) - len(lengths)
            raise corrupt(self._database.path, f"the vectors of {missing} documents are missing")
        # Joined at once: a bytearray that grows keeps an eighth in reserve as long as it lives.
        values = np.frombuffer(bytearray().join(blobs), _FLOAT16).reshape(-1, self._dim)
        values = values.astype(np.float16, copy=False)
        return TokenEmbeddings.from_lengths(torch.from_numpy(values), lengths)

    def documents(self, positions: Iterable[int]) -> dict[int, Document]:
        """Documents by position; positions that do not exist are left out."""
        found: dict[int, Document] = {}
        for marks, some in _chunked(positions):
            query = (
                "SELECT position, id, checksum, metadata, text FROM documents "
                f"WHERE position IN ({marks})"
            )
            found |= {row[0]: self._document(row) for row in self._connection.execute(query, some)}
        return found

    def page(self, after: int, size: int) -> dict[int, Document]:
        """The next `size` documents above a position, in order."""
        query = (
            "SELECT position, id, checksum, metadata, text FROM documents "
            "WHERE position > ? ORDER BY position LIMIT ?"
        )
        found = self._connection.execute(query, (after, size))
        return {row[0]: self._document(row) for row in found}

    def positions_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Positions by id; ids that do not exist are left out."""
        found: dict[str, int] = {}
        for marks, some in _chunked(ids):
            query = f"SELECT id, position FROM documents WHERE id IN ({marks})"
            found |= dict(self._connection.execute(query, some))
        return found

    def positions_of_texts(self, digests: Iterable[bytes]) -> dict[bytes, int]:
        """A position by digest of its text; texts that do not exist are left out."""
        found: dict[bytes, int] = {}
        for marks, some in _chunked(digests):
            query = f"SELECT text_digest, position FROM documents WHERE text_digest IN ({marks})"
            found |= dict(self._connection.execute(query, some))
        return found

    def known(self, ids: Iterable[str]) -> dict[str, Stored]:
        """What the index holds under some ids."""
        found: dict[str, Stored] = {}
        for marks, some in _chunked(ids):
            query = (
                f"SELECT id, text_digest, metadata, position FROM documents WHERE id IN ({marks})"
            )
            for name, digest, metadata, position in self._connection.execute(query, some):
                found[name] = Stored(digest, self._parsed(metadata, position))
        return found

    def insert(self, documents: Sequence[Document], vectors: TokenEmbeddings) -> None:
        """Append documents with their float16 vectors."""
        for document, rows in zip(documents, vectors, strict=True):
            metadata = metadata_json(document.metadata)
            position = self._connection.execute(
                "INSERT INTO documents (id, rows, text_digest, checksum, metadata, text) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    document.id,
                    len(rows),
                    text_digest(document.text),
                    _checksum(document.id, document.text, metadata),
                    metadata,
                    document.text,
                ),
            ).lastrowid
            blob = rows.numpy().astype(_FLOAT16, copy=False).tobytes()
            self._connection.execute(
                "INSERT INTO vectors VALUES (?, ?, ?)", (position, zlib.crc32(blob), blob)
            )

    def remove(self, ids: Iterable[str]) -> int:
        """Remove the documents that exist under some ids, and count them."""
        removed = 0
        for marks, some in _chunked(self.positions_of(ids).values()):
            for table in ("vectors", "documents"):
                self._connection.execute(f"DELETE FROM {table} WHERE position IN ({marks})", some)
            removed += len(some)
        if removed:
            self._count("removals")
        return removed

    def set_metadata(self, documents: Sequence[Document]) -> None:
        """Give documents with known ids and unchanged texts new metadata."""
        for document in documents:
            metadata = metadata_json(document.metadata)
            self._connection.execute(
                "UPDATE documents SET metadata = ?, checksum = ? WHERE id = ?",
                (metadata, _checksum(document.id, document.text, metadata), document.id),
            )
        if documents:
            self._count("edits")

    def _count(self, name: str) -> None:
        self._connection.execute(
            "UPDATE settings SET value = CAST(value AS INTEGER) + 1 WHERE name = ?", (name,)
        )

    def _document(self, row: tuple[int, str, int, str, str]) -> Document:
        position, name, checksum, metadata, text = row
        if _checksum(name, text, metadata) != checksum:
            raise self._corrupt(f"text or metadata ({name!r})", position)
        return Document(name, text, self._parsed(metadata, position))

    def _parsed(self, metadata: str, position: int) -> Mapping[str, Json]:
        try:
            parsed: Mapping[str, Json] = json.loads(metadata)
        except ValueError as error:
            raise self._corrupt("metadata", position) from error
        return parsed

    def _corrupt(self, what: str, position: int) -> IndexCorruptError:
        return corrupt(
            self._database.path, f"{what} at position {position} are not what was written"
        )


def _checksum(name: str, text: str, metadata: str) -> int:
    return zlib.crc32("\0".join((name, metadata, text)).encode())


def _chunked(values: Iterable[object]) -> Iterator[tuple[str, list[object]]]:
    """Values in groups that fit one statement, each with its question marks."""
    listed = list(values)
    for start in range(0, len(listed), _PARAMETERS):
        some = listed[start : start + _PARAMETERS]
        yield ",".join("?" * len(some)), some
