"""Makes the file of a level from SQLite: with new centroids, or with more documents for the old.

Memory is bounded by the sample that centroids are trained on. Nothing is locked for longer than a
piece is read: others read, add and remove meanwhile.
"""

from __future__ import annotations

import logging
import math
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colbert_rag.errors import IndexBusyError, IndexStorageError
from colbert_rag.index.kmeans import SPREAD, Centroids, centroids_for, sample_for, train
from colbert_rag.index.local.claim import Claim
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.level import postings
from colbert_rag.index.local.level.file import LevelFile, Opened, Writer
from colbert_rag.index.local.level.layout import Block, Head
from colbert_rag.index.local.level.pages import DamagedPageError
from colbert_rag.index.local.level.postings import inverted
from colbert_rag.index.local.level.record import LevelRecord, Mark
from colbert_rag.index.local.place import Place
from colbert_rag.index.local.rows import Rows
from colbert_rag.progress import progress_bar

logger = logging.getLogger(__name__)

SEED = 0

# Vectors that are read and assigned at a time.
_ROWS = 2**16

# What a token takes in the file, at the most.
_BYTES = 6


@dataclass(frozen=True, eq=False, slots=True)
class _Piece:
    """Some documents with the centroids of their tokens, or what is left of a block.

    Attributes:
        positions: `(documents,)`, int64.
        lengths: `(documents,)`, int64.
        codes: `(tokens,)`, int64.
        distance: Of all tokens from their centroids, summed.
    """

    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]
    codes: NDArray[np.int64]
    distance: float

    def packed(self, centroids: int) -> NDArray[np.uint8]:
        """As a block of a file."""
        starts, listed = inverted(self.codes, self.lengths, centroids)
        codes = self.codes.astype(np.uint16)
        block = Block(self.positions, self.lengths.astype(np.int32), codes, starts, listed)
        return block.packed(self.distance)

    def cut(self, documents: int) -> tuple[_Piece, _Piece]:
        """The first documents, and the others."""
        tokens = int(self.lengths[:documents].sum())
        share = self.distance * tokens / max(1, len(self.codes))
        first = (self.positions[:documents], self.lengths[:documents], self.codes[:tokens])
        rest = (self.positions[documents:], self.lengths[documents:], self.codes[tokens:])
        return _Piece(*first, share), _Piece(*rest, self.distance - share)

    @classmethod
    def cat(cls, pieces: Sequence[_Piece]) -> _Piece:
        """All of them, one after the other; at least one."""
        return cls(
            np.concatenate([piece.positions for piece in pieces]),
            np.concatenate([piece.lengths for piece in pieces]),
            np.concatenate([piece.codes for piece in pieces]),
            sum(piece.distance for piece in pieces),
        )


_NOTHING = _Piece(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0)


class Maker:
    """Makes the level of one index."""

    def __init__(
        self, database: Database, rows: Rows, record: LevelRecord, file: LevelFile, dim: int
    ) -> None:
        """For vectors of width `dim`."""
        self._database, self._rows, self._record = database, rows, record
        self._file, self._dim = file, dim

    def make(
        self, old: Opened | None, alive: NDArray[np.bool_], *, device: str, show_progress: bool
    ) -> bool:
        """Make the file anew; with new centroids, or as `old` with what it lacks.

        Args:
            old: The level to extend; None trains centroids.
            alive: `(documents,)`: which of its documents are still there.
            device: Where to compute.
            show_progress: Draw a bar.

        Returns:
            Whether it was made. If not, somebody else makes it now, or it cannot be made here: the
            folder is read-only, there is too little space, something has the name of the file.
        """
        if self._file.leaves_alone():
            return False
        claim = Claim(Place(str(self._database.place.absolute)), "level-claim", timeout=0)
        try:
            claim.during(lambda: self._make(old, alive, device, show_progress))
        except IndexBusyError:
            return False
        except (OSError, sqlite3.Error, IndexStorageError) as error:
            logger.warning(
                "%s cannot be made, so large searches stay slow: %s", self._file.path, error
            )
            return False
        finally:
            claim.close()
        return True

    def _make(
        self, old: Opened | None, alive: NDArray[np.bool_], device: str, show_progress: bool
    ) -> None:
        """As the one who makes it."""
        mark, documents, tokens = self._begun()
        if shutil.disk_usage(self._file.path.parent).free < 2 * _BYTES * tokens:
            raise OSError("too little space is left")
        with progress_bar(None, total=tokens, unit=" tokens", show=show_progress) as bar:
            work = _Work(self, mark, documents, tokens, device, bar.update)
            self._file.make(
                mark.token,
                lambda: work.trained() if old is None else work.continued(old),
                lambda writer: work.fill(writer, old, alive),
            )
        self._finished(mark)

    def _begun(self) -> tuple[Mark, int, int]:
        """The level to make: one that a killed maker left, or a new one; and how much is in it."""
        mark = self._database.read(self._left)
        self._file.remove_leftovers(None if mark is None else self._file.aside(mark.token.hex()))
        if mark is None:
            # Outside a write, the last position could already be another one.
            begin = self._record.begin
            mark = self._database.write(lambda: begin(self._record.last_position()))
        documents, tokens = self._database.read(self._record.totals_to, mark.last)
        return mark, documents, tokens

    def _left(self) -> Mark | None:
        """The level that a killed maker left, where it would hold at least half of the index."""
        marks = self._record.marks()
        begun = [mark for mark in marks if self._file.aside(mark.token.hex()).exists()]
        if not begun:
            return None
        (tokens,) = self._rows.counted("tokens")
        _, before = self._record.totals_to(begun[-1].last)
        return begun[-1] if 0 < tokens <= 2 * before else None

    def _finished(self, mark: Mark) -> None:
        opened = self._file.open()
        if opened is not None and opened.head.token == mark.token:
            self._database.write(self._record.keep_only, mark, opened.positions)


class _Work:
    """The making of one file."""

    def __init__(
        self,
        maker: Maker,
        mark: Mark,
        documents: int,
        tokens: int,
        device: str,
        tell: Callable[[int], object],
    ) -> None:
        self._database, self._rows, self._record = maker._database, maker._rows, maker._record
        self._dim, self._model = maker._dim, maker._file.model
        self._mark, self._documents, self._tokens = mark, documents, tokens
        self._device, self._tell = device, tell
        self._size = max(1, _ROWS * documents // max(tokens, 1))

    def trained(self) -> tuple[Head, Centroids]:
        """New centroids.

        Raises:
            OSError: others have removed all documents meanwhile.
        """
        count = centroids_for(self._tokens)
        sample = self._sample(count) if self._tokens else torch.zeros(0, self._dim)
        if not len(sample):
            raise OSError("no vectors are left to make it from")
        centroids = train(sample, count, seed=SEED, device=self._device)
        return self._head(centroids, 0, 0.0), centroids

    def continued(self, old: Opened) -> tuple[Head, Centroids]:
        """Those of a level."""
        trained = old.head.trained_tokens, old.head.trained_distance
        if not trained[0]:
            trained = old.tokens, old.distance
        return self._head(old.centroids, *trained), old.centroids

    def _head(self, centroids: Centroids, tokens: int, distance: float) -> Head:
        return Head(
            dim=self._dim,
            centroids=len(centroids),
            groups=len(centroids.groups),
            token=self._mark.token,
            model=self._model,
            last=self._mark.last,
            trained_tokens=tokens,
            trained_distance=distance,
        )

    def _sample(self, centroids: int) -> Tensor:
        """Vectors from all over the index, `(vectors, dim)`, float16."""
        wanted = int(sample_for(self._tokens, centroids, self._dim))
        documents = math.ceil(self._documents * min(1, SPREAD * wanted / self._tokens))
        random = np.random.default_rng(SEED)
        # Where documents were removed, some of the positions have none any more.
        drawn = math.ceil(documents * self._mark.last / self._documents)
        positions = np.arange(1, self._mark.last + 1)
        if drawn < self._mark.last:
            positions = np.sort(random.choice(self._mark.last, drawn, replace=False)) + 1
        sample = torch.empty(wanted, self._dim, dtype=torch.float16)
        filled = 0
        share = min(1, wanted / (self._tokens * min(1, documents / self._documents)))
        for some in np.array_split(positions, math.ceil(len(positions) / self._size)):
            vectors = self._database.read(self._vectors_of, some)
            count = min(wanted - filled, math.ceil(share * len(vectors)))
            chosen = np.sort(random.choice(len(vectors), count, replace=False))
            sample[filled : filled + count] = vectors[chosen]
            filled += count
        return sample[:filled]

    def _vectors_of(self, positions: NDArray[np.int64]) -> Tensor:
        """All vectors of those of some positions that have a document."""
        there = self._record.existing(positions)
        return self._rows.vectors(torch.from_numpy(there)).values

    def fill(self, writer: Writer, old: Opened | None, alive: NDArray[np.bool_]) -> None:
        """Append what is missing."""
        rest = _NOTHING
        # What a killed maker left may have centroids of its own, and codes are numbers of them.
        if old is not None and not writer.after and _are_same(old.centroids, writer.centroids):
            rest = _copied(writer, old, alive)
            self._tell(old.tokens)
        centroids = writer.centroids.to(self._device)
        after = int(rest.positions[-1]) if len(rest.positions) else writer.after
        pieces = [rest]
        for piece in self._pieces(centroids, after):
            pieces.append(piece)
            if sum(len(some.positions) for some in pieces) >= postings.BLOCK:
                pieces = [_append_full(writer, _Piece.cat(pieces))]
            self._tell(len(piece.codes))
        rest = _Piece.cat(pieces)
        if len(rest.positions):
            writer.append(rest.packed(len(centroids)), int(rest.positions[-1]))

    def _pieces(self, centroids: Centroids, after: int) -> Iterator[_Piece]:
        """The documents behind a position, with the nearest centroids of their vectors."""
        while True:
            positions, lengths, vectors = self._database.read(self._read, after)
            if not len(positions):
                return
            codes, similarities = centroids.nearest(vectors)
            distance = float((1 - similarities.double()).sum())
            yield _Piece(positions, lengths, codes.numpy(), distance)
            after = int(positions[-1])

    def _read(self, after: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
        positions, lengths = self._record.run(after, self._mark.last, self._size)
        return positions, lengths, self._rows.vectors(torch.from_numpy(positions)).values


def _are_same(some: Centroids, others: Centroids) -> bool:
    """Whether a code means the same among both."""
    pairs = ((some.values, others.values), (some.bounds, others.bounds))
    return all(torch.equal(first, second) for first, second in pairs)


def _append_full(writer: Writer, piece: _Piece) -> _Piece:
    """Append full blocks, and return what is left."""
    while len(piece.positions) >= postings.BLOCK:
        full, piece = piece.cut(postings.BLOCK)
        writer.append(full.packed(writer.head.centroids), int(full.positions[-1]))
    return piece


def _copied(writer: Writer, old: Opened, alive: NDArray[np.bool_]) -> _Piece:
    """Append the full blocks of a level as they are; what the last one holds is still to be added.

    Raises:
        OSError: the level is damaged.
    """
    for number, part in enumerate(old.parts):
        here = np.array([part.begin])
        try:
            old.pages.check(here, here + part.bytes)
        except DamagedPageError as error:
            raise OSError("the level that is to be extended is damaged") from error
        block = part.block
        if len(block.positions) == postings.BLOCK:
            data = old.data[part.begin : part.begin + part.bytes]
            writer.append(data, int(block.positions[-1]))
            continue
        kept = alive[number * postings.BLOCK :]
        lengths = block.lengths.astype(np.int64)
        codes = block.codes.astype(np.int64)[np.repeat(kept, lengths)]
        share = part.distance * len(codes) / max(1, len(block.codes))
        return _Piece(block.positions[kept], lengths[kept], codes, share)
    return _NOTHING
