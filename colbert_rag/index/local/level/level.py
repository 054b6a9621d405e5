"""The level of an index as a search uses it, beside what was added to the index since."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from colbert_rag.computing import computing
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.conditions import Condition
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.derived import Stamp
from colbert_rag.index.local.level.candidates import Candidates
from colbert_rag.index.local.level.effort import Effort
from colbert_rag.index.local.level.file import LevelFile, Opened
from colbert_rag.index.local.level.making import Maker
from colbert_rag.index.local.level.pages import DamagedPageError
from colbert_rag.index.local.level.record import LevelRecord
from colbert_rag.index.local.rows import Rows
from colbert_rag.index.local.selection import Best, best_positions, merged
from colbert_rag.index.local.snapshot import Block, Snapshot

logger = logging.getLogger(__name__)

# Documents that are behind the level are scored exactly with each search, until they have so many
# vectors: about a tenth of a second, or a part of a level that is large itself.
_BEHIND, _BEHIND_SHARE = 2**20, 0.01

# Documents that are gone but in the level are looked at in vain.
_DEAD_SHARE = 0.25

# Centroids are trained anew when the index has so many times the vectors that they were trained
# for, or when the distance of what was added is so many times that of what was there: 1.25 where it
# is of the same kind, 3.6 where it is of another (benchmarks/NOTES.md).
_GROWN, _DRIFTED = 2.0, 1.75

# Metadata is read so many documents at a time, and so many filters are remembered.
_PAGE, _FILTERS = 10_000, 16


@dataclass(frozen=True, eq=False, slots=True)
class _Passing:
    """Which documents up to a position pass a filter.

    Attributes:
        positions: `(documents,)`, int64, rising: those of the level that it was asked of.
        mask: `(documents,)`: which of them pass.
        last: The position up to which metadata was looked at.
    """

    positions: NDArray[np.int64]
    mask: NDArray[np.bool_]
    last: int


class Level:
    """The level in the file beside an index, where it fits what SQLite holds.

    All methods but `make` must be called inside one read transaction.
    """

    def __init__(
        self, database: Database, rows: Rows, file: LevelFile, dim: int, *, memory_budget: int
    ) -> None:
        """Nothing is opened yet; `memory_budget` bounds what is held of what was added since."""
        self._database, self._rows, self._file = database, rows, file
        self._record = LevelRecord(database)
        self._maker = Maker(database, rows, self._record, file, dim)
        self._behind = Snapshot(
            database, rows, None, dim, device="cpu", memory_budget=memory_budget
        )
        self._damaged: Stamp | None = None
        self._stamp: Stamp | None = None
        self.forget()

    def forget(self) -> None:
        """Let go of all that is held or mapped."""
        self._edits = 0
        self._filters: dict[str, _Passing] = {}
        self._adopt(None)

    def _adopt(self, opened: Opened | None) -> None:
        self._opened = opened
        self._version: tuple[int, int] | None = None
        self._usable = False
        self._entry = 0
        self._alive = np.ones(0 if opened is None else len(opened.positions), np.bool_)
        self._worded = np.ones(0, np.bool_) if opened is None else opened.lengths > 0
        self._candidates = None if opened is None else Candidates(opened)
        self._forget_behind()

    def _forget_behind(self) -> None:
        self._behind.forget(0 if self._opened is None else self._opened.head.last)

    def refresh(self) -> bool:
        """Catch up with the index and the file, and say whether the level can be used."""
        stamp, version = self._file.stamp(), self._database.version()
        if (stamp, version) == (self._stamp, self._version):
            return self._usable
        if stamp != self._stamp:
            self._adopt(None if stamp == self._damaged else self._file.open())
            self._stamp = stamp
        self._usable = self._catch_up()
        if not self._usable:
            self._forget_behind()
        self._version = version
        return self._usable

    def is_fresh(self) -> bool:
        """Whether it can be used as it is: nothing has changed since `refresh` said so."""
        seen = (self._file.stamp(), self._database.version())
        return self._usable and seen == (self._stamp, self._version)

    def _catch_up(self) -> bool:
        opened = self._opened
        tokens = [mark.token for mark in self._record.marks()]
        if opened is None or opened.head.token not in tokens:
            return False
        removed, self._entry = self._record.removed(self._entry)
        places = np.searchsorted(opened.positions, removed)
        places = places[places < len(opened.positions)]
        self._alive[places[np.isin(opened.positions[places], removed)]] = False
        self._behind.refresh()
        _, edits = self._rows.counters()
        if edits != self._edits:
            self._filters.clear()
        self._edits = edits
        # A file of a history that went another way could lack a document.
        (documents,) = self._rows.counted("documents")
        return int(self._alive.sum()) + len(self._behind.positions) == documents

    def best(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, effort: Effort
    ) -> list[Best] | None:
        """The best positions for each query, with their MaxSim; None if the file is damaged.

        Only after `refresh` has said that the level can be used.

        Raises:
            IndexCorruptError: what SQLite holds is damaged.
        """
        kept = None if condition is None else self._behind.matching(condition)
        found = best_positions(queries, self._behind.blocks(kept), top_k)
        try:
            allowed = self._allowed(condition)
            nearest = [self._best(rows.float().cpu(), top_k, allowed, effort) for rows in queries]
        except DamagedPageError as error:  # and not what SQLite holds, which is no fault of it
            self._drop(error)
            return None
        return [merged(*both, top_k) for both in zip(nearest, found, strict=True)]

    def _best(
        self, query: torch.Tensor, top_k: int, allowed: NDArray[np.bool_], effort: Effort
    ) -> Best:
        assert self._opened is not None
        assert self._candidates is not None
        if not len(query):  # every document has the sum of nothing, as in an exact search
            first = self._opened.positions[np.flatnonzero(allowed)[:top_k]]
            return [(position, 0.0) for position in first.tolist()]
        with computing():
            numbers = self._candidates.find(query, effort.for_results(top_k), allowed)
        if not len(numbers):
            return []
        positions = torch.from_numpy(self._opened.positions[numbers])
        block = Block(
            positions, self._rows.coded(positions, self._opened.lengths[numbers].tolist())
        )
        return best_positions(TokenEmbeddings.from_list([query]), [block], top_k)[0]

    def _allowed(self, condition: Condition | None) -> NDArray[np.bool_]:
        assert self._opened is not None
        allowed = self._alive & self._worded
        return allowed if condition is None else allowed & self._passing(condition)

    def _passing(self, condition: Condition) -> NDArray[np.bool_]:
        """Which documents of the level pass; one bit is remembered, and no metadata.

        Positions stand for the same documents in every level, so a new one makes nobody wait for a
        look at metadata that was seen before.
        """
        assert self._opened is not None
        positions, last = self._opened.positions, self._opened.head.last
        key = repr(condition)
        known = self._filters.pop(key, None)
        if known is None or known.positions is not positions:
            before, after = ([], 0) if known is None else (known.positions[known.mask], known.last)
            more = list(self._matching(condition, after, last))
            passing = np.concatenate([before, more]).astype(np.int64)
            mask = np.isin(positions, passing, assume_unique=True)
            known = _Passing(positions, mask, last)
        while len(self._filters) >= _FILTERS:
            del self._filters[next(iter(self._filters))]
        self._filters[key] = known
        return known.mask

    def _matching(self, condition: Condition, after: int, last: int) -> Iterator[int]:
        """Positions above `after` and up to `last` whose metadata passes."""
        while page := self._rows.metadata(after, _PAGE):
            for position, metadata in page.items():
                if position > last:
                    return
                if condition.matches(metadata):
                    yield position
            after = max(page)

    def _drop(self, error: Exception) -> None:
        logger.warning(
            "%s is damaged (%s): it is no longer used, and each search reads everything until "
            "optimize() or the next large add makes it anew. The index itself is intact",
            self._file.path,
            str(error) or "a page is not what was written",
        )
        self._damaged = self._stamp
        self._adopt(None)
        if not self._database.read_only:
            self._file.remove()

    def stale(self, *, by_itself: bool) -> bool | None:
        """Whether the level should be made anew; False is to be extended, None left as it is.

        Args:
            by_itself: Nobody has asked for it.
        """
        if not self.refresh():
            return True
        assert self._opened is not None
        opened, behind = self._opened, self._behind.tokens
        tokens = opened.tokens + behind
        trained = opened.head.trained_tokens or opened.tokens
        dead = len(self._alive) - int(self._alive.sum())
        if dead > _DEAD_SHARE * len(self._alive) or tokens >= _GROWN * trained or self._drifted():
            return True
        bound = max(_BEHIND, int(_BEHIND_SHARE * tokens)) if by_itself else 0
        return False if behind > bound else None

    def _drifted(self) -> bool:
        """Whether what was added is farther from the centroids than what they were trained on."""
        assert self._opened is not None
        head, tokens = self._opened.head, self._opened.tokens
        added = tokens - head.trained_tokens
        if not head.trained_tokens or added <= 0:
            return False
        before = head.trained_distance / head.trained_tokens
        return (self._opened.distance - head.trained_distance) / added > _DRIFTED * before

    def make(self, *, device: str, show_progress: bool, by_itself: bool) -> None:
        """Make, extend or train it as far as it is stale; outside any transaction."""
        for _ in range(2):  # whether the centroids still fit is known once it was extended
            stale, opened, alive = self._database.read(self._found, by_itself)
            if stale is None:
                return
            old = None if stale else opened
            if not self._maker.make(old, alive, device=device, show_progress=show_progress):
                return
            self._damaged = None

    @property
    def held_bytes(self) -> int:
        """Bytes of vectors in memory: of what was added since."""
        return self._behind.held_bytes

    def _found(self, by_itself: bool) -> tuple[bool | None, Opened | None, NDArray[np.bool_]]:
        """Whether it is stale, and what it is at the same moment; other threads go on."""
        return self.stale(by_itself=by_itself), self._opened, self._alive.copy()
