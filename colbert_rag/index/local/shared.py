"""A copy of an index's vectors that every process maps, beside the SQLite file it was made from.

SQLite stays the truth. This file can be lost, torn or replaced at any time: it is made again, or
the vectors are read from SQLite. It is written aside, synced and renamed, and never changed in
place, since a page that vanishes under a mapping kills the process (SIGBUS): so it can be read, but
not written, by those who may read the index, and is looked at anew before each search.

Layout, in the byte order of the machine: a header; three tables of int64 (positions, rows,
checksums of the documents, as in SQLite); the vectors, coded as in SQLite, in order of insertion.
One is used only where its checksum is the one that SQLite holds, so a file of another index, of a
copy's other history or of a restored backup can do no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import re
import secrets
import shutil
import sqlite3
import stat
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colbert_rag.codings import FLOAT16, CodedEmbeddings, Coding
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexBusyError, IndexCorruptError
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.claim import Claim
from colbert_rag.index.local.place import Place
from colbert_rag.index.local.rows import vectors_checksum

logger = logging.getLogger(__name__)

# Kind and version of the layout, dim, documents, rows, digest of the model, and a checksum of all
# that stands before the vectors. Another byte order fails at the version.
_HEADER = struct.Struct("=8sQQQQ32sQ")
_MAGIC, _VERSION = b"ColBvecs", 1

# Vectors begin at a multiple of this, which is a cache line.
_ALIGNED = 64

Stamp = tuple[int, int, int, int]


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


class SharedVectors:
    """The file of vectors beside the index at `path`; it may be there or not."""

    def __init__(self, path: str, info: IndexInfo) -> None:
        """Name the file for an index that `info` describes; nothing is opened."""
        # A process may change its folder later; a link's target is where all links meet.
        self._index = Path(path).resolve()
        self.path = Path(f"{self._index}-vectors")
        self._dim = info.dim
        self._info = info.to_json()

    def _digest(self, coding: Coding) -> bytes:
        """Of the model and the coding: what was made by others is no copy of this index."""
        vectors = {} if coding is FLOAT16 else {"vectors": coding.name}
        record = json.dumps(self._info | vectors, sort_keys=True)
        return hashlib.sha256(record.encode()).digest()

    def stamp(self) -> Stamp | None:
        """Changes whenever the file is replaced or tampered with; None if it is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def size(self) -> int | None:
        """Its bytes; None if it is not there."""
        stamp = self.stamp()
        return None if stamp is None or self._is_in_the_way() else stamp[2]

    def _is_in_the_way(self) -> bool:
        """Whether something else has the name; an empty file is nobody's loss."""
        if self.stamp() is None:
            return os.path.lexists(self.path) and not self.path.is_symlink()
        try:
            with self.path.open("rb") as file:
                return file.read(len(_MAGIC)) not in (_MAGIC, b"")
        except OSError:  # not ours to read, or just removed
            return self.path.exists()

    def _leaves(self) -> bool:
        """Say what is in the way, and that it was left."""
        if not self._is_in_the_way():
            return False
        logger.warning(
            "%s is in the way: the copy of vectors that processes share has that name, and this is "
            "something else. It was left untouched, and each process holds the vectors itself. "
            "Move or delete it, and open the index again",
            self.path,
        )
        return True

    def open(self, coding: Coding) -> Copy | None:
        """Map the file; None if there is none that was made whole for this model and coding."""
        if self.stamp() is None:
            return None
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # not ours to read, just removed, or empty
            return None
        return self._parsed(_readable(mapped), coding)

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
        if self._leaves():
            return None
        tables = torch.stack([positions, lengths, checksums]).numpy()
        rows = int(lengths.sum())
        size = _vectors_begin(len(positions)) + rows * coding.row_bytes(self._dim)
        claim = Claim(Place(str(self._index)), "vectors-claim", timeout=0)
        try:
            # As much again stays free: a copy must not take the space that the index grows into.
            if shutil.disk_usage(self.path.parent).free < 2 * size:
                return None
            with claim.held():
                self._remove_leftovers()
                head = (_MAGIC, _VERSION, self._dim, len(positions), rows, self._digest(coding))
                header = _HEADER.pack(*head, _checksum(_HEADER.pack(*head, 0), tables))
                self._write(header, tables, vectors)
        except IndexBusyError:
            return False
        except (OSError, sqlite3.Error) as error:
            logger.info("%s cannot be made, so vectors are not shared: %s", self.path, error)
            return None
        finally:
            claim.close()
        return True

    def _write(self, header: bytes, tables: np.ndarray, vectors: Iterable[CodedEmbeddings]) -> None:
        # A name of its own, so that even two makers at once do not write to one file.
        aside = Path(f"{self.path}-{secrets.token_hex(8)}")
        try:
            with open(aside, "xb", opener=_private) as file:
                file.write(header)
                file.write(tables.data)
                file.write(bytes(_vectors_begin(tables.shape[1]) - file.tell()))
                for part in vectors:
                    file.write(part.values.contiguous().numpy().data)
                file.flush()
                os.fsync(file.fileno())  # or a power cut leaves the name without the content
            # Text can be guessed from vectors: whoever may not read the index may not read these.
            if os.name == "posix":  # Windows inherits rights, and replaces nothing read-only
                aside.chmod(stat.S_IMODE(self._index.stat().st_mode) & 0o444)
            aside.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise

    def _remove_leftovers(self) -> None:
        """Remove what makers that were killed had begun, and nothing that is only named alike."""
        begun = re.compile(re.escape(self.path.name) + "-[0-9a-f]{16}")
        with os.scandir(self.path.parent) as entries:
            found = [Path(entry.path) for entry in entries if begun.fullmatch(entry.name)]
        for path in found:
            with contextlib.suppress(OSError):
                path.unlink()

    def remove(self) -> None:
        """Give its space back; those who have it mapped let go at their next search."""
        if self._leaves():
            return
        with contextlib.suppress(OSError):  # Windows keeps what is mapped
            self.path.unlink(missing_ok=True)

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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _table_bytes(documents: int) -> int:
    return 3 * 8 * documents


def _vectors_begin(documents: int) -> int:
    return -(-(_HEADER.size + _table_bytes(documents)) // _ALIGNED) * _ALIGNED


def _checksum(header: bytes, tables: np.ndarray) -> int:
    """Of the header without its last field, and of the tables."""
    return zlib.crc32(tables.data, zlib.crc32(header[:-8]))


class _Readable:
    """Shows a mapping to numpy as if it could be written to, since torch warns of others.

    A mapping that could be written to (copy on write) is no way out: Linux counts it as memory, and
    refuses one that is larger than what there is.
    """

    def __init__(self, mapped: mmap.mmap) -> None:
        array = np.frombuffer(mapped, np.uint8)
        self._array = array  # keeps the mapping as long as any view of it lives
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _readable(mapped: mmap.mmap) -> Tensor:
    return torch.from_numpy(np.asarray(_Readable(mapped)))
