"""A copy of an index's vectors that every process maps, beside the SQLite file it was made from.

It is a `DerivedFile`: where it is missing, the vectors are read from SQLite.

Layout, in the byte order of the machine: a header; three tables of int64 (positions, rows,
checksums of the documents, as in SQLite); the vectors, coded as in SQLite, in order of insertion.
One is used only where its checksum is the one that SQLite holds, so a file of another index, of a
copy's other history or of a restored backup can do no harm.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedRandom

import numpy as np
import torch
from torch import Tensor

from colbert_rag.codings import FLOAT16, CodedEmbeddings, Coding
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexBusyError, IndexCorruptError
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.checksums import vectors_checksum
from colbert_rag.index.local.claim import Claim
from colbert_rag.index.local.derived import DerivedFile, readable
from colbert_rag.index.local.place import Place

logger = logging.getLogger(__name__)

# Kind and version of the layout, dim, documents, rows, digest of the model, and a checksum of all
# that stands before the vectors. Another byte order fails at the version.
_HEADER = struct.Struct("=8sQQQQ32sQ")
_MAGIC, _VERSION = b"ColBvecs", 1

# Vectors begin at a multiple of this, which is a cache line.
_ALIGNED = 64


@dataclass(frozen=True, eq=False, slots=True)
class Copy:
    """What the file holds, mapped: nothing of it is read before it is used.

    Attributes:
        positions: `(documents,)`, int64, rising.
        checksums: `(documents,)`, int64, of their vectors.
        embeddings: As they are stored, on the CPU; writing to them would kill the process.
    """

    positions: Tensor
    checksums: Tensor
    embeddings: CodedEmbeddings


class SharedVectors(DerivedFile):
    """The file of vectors beside the index at `path`; it may be there or not."""

    def __init__(self, path: str, info: IndexInfo) -> None:
        """Name the file for an index that `info` describes; nothing is opened."""
        purpose = (
            "the copy of vectors that processes share has that name, and without it each process "
            "holds the vectors itself"
        )
        super().__init__(path, info, ending="vectors", magic=_MAGIC, purpose=purpose)

    def _digest(self, coding: Coding) -> bytes:
        """Of the model and the coding: what was made by others is no copy of this index."""
        if coding is FLOAT16:
            return self._model
        return hashlib.sha256(self._model + coding.name.encode()).digest()

    def open(self, coding: Coding) -> Copy | None:
        """Map the file; None if there is none that was made whole for this model and coding."""
        mapped = self._mapped()
        return None if mapped is None else self._parsed(readable(mapped), coding)

    def _parsed(self, data: Tensor, coding: Coding) -> Copy | None:
        if len(data) < _HEADER.size:
            return None
        header = bytes(data[: _HEADER.size].numpy())
        *kind, documents, rows, model, checksum = _HEADER.unpack(header)
        begin = _vectors_begin(documents)
        if kind != [_MAGIC, _VERSION, self._dim] or model != self._digest(coding):
            return None
        row_bytes = coding.row_bytes(self._dim)
        if len(data) != begin + rows * row_bytes:
            return None
        tables = data[_HEADER.size : _HEADER.size + _table_bytes(documents)]
        if _checksum(header, tables.numpy()) != checksum:
            return None
        positions, lengths, checksums = tables.view(torch.int64).reshape(3, -1)
        stored = TokenEmbeddings.from_lengths(data[begin:].reshape(-1, row_bytes), lengths)
        return Copy(positions, checksums, CodedEmbeddings(coding, self._dim, stored))

    def make(
        self,
        positions: Tensor,
        lengths: Tensor,
        checksums: Tensor,
        coding: Coding,
        vectors: Iterable[CodedEmbeddings],
    ) -> bool | None:
        """Write the file anew, and put it in the place of the one that is there.

        Args:
            positions: `(documents,)`, int64, rising.
            lengths: Rows of each.
            checksums: Of the vectors of each.
            coding: That of the index.
            vectors: Those of all, in order, in parts of any size; on the CPU.

        Returns:
            True when it is there. False when another process is making it now. None when it cannot
            be made: the folder is read-only, there is too little space, something has its name.
        """
        if self.leaves_alone():
            return None
        tables = torch.stack([positions, lengths, checksums]).numpy()
        rows = int(lengths.sum())
        size = _vectors_begin(len(positions)) + rows * coding.row_bytes(self._dim)
        claim = Claim(Place(str(self._index)), "vectors-claim", timeout=0)
        try:
            # As much again stays free: a copy must not take the space that the index grows into.
            if shutil.disk_usage(self.path.parent).free < 2 * size:
                return None
            head = (_MAGIC, _VERSION, self._dim, len(positions), rows, self._digest(coding))
            header = _HEADER.pack(*head, _checksum(_HEADER.pack(*head, 0), tables))

            def fill() -> None:
                self.remove_leftovers()
                self.write(lambda file: self._fill(file, header, tables, vectors))

            claim.during(fill)
        except IndexBusyError:
            return False
        except (OSError, sqlite3.Error) as error:
            logger.info("%s cannot be made, so vectors are not shared: %s", self.path, error)
            return None
        finally:
            claim.close()
        return True

    def _fill(
        self,
        file: BufferedRandom,
        header: bytes,
        tables: np.ndarray,
        vectors: Iterable[CodedEmbeddings],
    ) -> None:
        file.write(header)
        file.write(tables.data)
        file.write(bytes(_vectors_begin(tables.shape[1]) - file.tell()))
        for part in vectors:
            file.write(part.values.contiguous().numpy().data)

    def verify(self, coding: Coding) -> None:
        """Compare every vector in the file with its checksum.

        Raises:
            IndexCorruptError: one is not what was written.
        """
        copy = self.open(coding)
        if copy is None:
            return
        for position, checksum, rows in zip(
            copy.positions.tolist(), copy.checksums.tolist(), copy.embeddings.rows, strict=True
        ):
            if vectors_checksum(position, rows.contiguous().numpy().data) != checksum:
                raise IndexCorruptError(
                    f"{self.path} is damaged (the vectors at position {position} are not what was "
                    f"written). It is a copy of what {self._index.name} holds, which is intact: "
                    "delete the copy, and the next search makes it again"
                )


def _table_bytes(documents: int) -> int:
    return 3 * 8 * documents


def _vectors_begin(documents: int) -> int:
    return -(-(_HEADER.size + _table_bytes(documents)) // _ALIGNED) * _ALIGNED


def _checksum(header: bytes, tables: np.ndarray) -> int:
    """Of the header without its last field, and of the tables."""
    return zlib.crc32(tables.data, zlib.crc32(header[:-8]))
