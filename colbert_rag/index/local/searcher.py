"""How a `LocalIndex` is searched: by reading everything, or by way of its level."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.choice import Choice
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import Hit
from colbert_rag.index.handle import MEMORY
from colbert_rag.index.how import How
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.level.choice import read_choice
from colbert_rag.index.local.level.effort import EFFORTS, usual
from colbert_rag.index.local.level.file import LevelFile
from colbert_rag.index.local.level.level import Level
from colbert_rag.index.local.level.record import LevelRecord
from colbert_rag.index.local.rows import Rows
from colbert_rag.index.local.selection import Best, best_positions
from colbert_rag.index.local.shared import SharedVectors
from colbert_rag.index.local.snapshot import Snapshot

logger = logging.getLogger(__name__)

APPROXIMATE_FROM = 2 * 2**20
"""Vectors from which a search is approximate by default: all are read in 0.2 s on two cores."""

# Positions that are drawn for a sample are looked at so many at a time.
_DRAWN = 4_096


@dataclass(frozen=True, slots=True)
class Held:
    """What lies beside the index, and what of the vectors is in memory.

    Attributes:
        shared_bytes: Of the copy of its vectors that processes share, if there is one.
        level_bytes: Of the level, if there is one.
        mapped_bytes: Of vectors that this process maps.
        held_bytes: Of vectors in its own memory, or on its device.
    """

    shared_bytes: int | None
    level_bytes: int | None
    mapped_bytes: int
    held_bytes: int


class Searcher:
    """Searches one index, and keeps what that takes."""

    def __init__(
        self, database: Database, rows: Rows, info: IndexInfo, *, device: str, memory_budget: int
    ) -> None:
        """Search vectors on `device`; nothing is read yet."""
        self._database, self._rows, self._device = database, rows, device
        in_memory = database.path == MEMORY
        self._shared = None if in_memory else SharedVectors(database.path, info)
        self._file = None if in_memory else LevelFile(database.path, info)
        self._record = LevelRecord(database)
        self._snapshot = Snapshot(
            database, rows, self._shared, info.dim, device=device, memory_budget=memory_budget
        )
        self.level = None
        if self._file is not None:
            self.level = Level(database, rows, self._file, info.dim, memory_budget=memory_budget)
        self._has_said = False

    def hits(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, how: How
    ) -> list[list[Hit]]:
        """The best documents for each query; in a read transaction."""
        found = self._approximate(queries, top_k, condition, how)
        if found is None:
            self._snapshot.refresh()
            kept = None if condition is None else self._snapshot.matching(condition)
            found = best_positions(queries, self._snapshot.blocks(kept), top_k)
        documents = self._rows.documents({position for best in found for position, _ in best})
        return [
            [Hit(documents[position], score, rows) for position, score in best]
            for best, rows in zip(found, queries.lengths.tolist(), strict=True)
        ]

    def _approximate(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, how: How
    ) -> list[Best] | None:
        """By way of the level; None where that cannot or should not be."""
        if self.level is None or how.exact:
            return None
        documents, tokens = self._rows.counted("documents", "tokens")
        choice = read_choice(self._database)
        chosen = usual(tokens) if choice.recall is None else choice.effort
        number = how.effort or chosen
        effort = EFFORTS[number]
        if how.exact is None and (tokens < APPROXIMATE_FROM or self._device != "cpu"):
            return None
        if not effort.for_results(top_k).saves(documents):
            return None
        if not self.level.refresh():
            return None
        if how.exact is None:
            self._say(tokens, choice, number)
        return self.level.best(queries, top_k, condition, effort)

    def _say(self, tokens: int, choice: Choice, effort: int) -> None:
        if self._has_said:
            return
        self._has_said = True
        logger.warning(
            "%s holds %s vectors, and searches read few of them (effort %d, %s): exact=True reads "
            "all",
            self._database.path,
            f"{tokens:,}",
            effort,
            choice.described() if effort == choice.effort else "recall not measured",
        )

    def is_empty(self) -> bool:
        """Whether the index holds no document."""
        return self._rows.counted("documents") == [0]

    def count(self) -> int:
        """How many documents there are; in a read transaction.

        Counting them takes seconds where an index of a million is on a disk. Behind a search by
        level they are known: it has compared how many it searched with how many were written.
        """
        if self.level is not None and self.level.is_fresh():
            return self._rows.counted("documents")[0]
        return self._rows.count()

    def optimize(self, *, show_progress: bool, by_itself: bool = False) -> None:
        """Make the level, or bring it up to date, where it is needed or asked for.

        Args:
            show_progress: Draw a bar.
            by_itself: Nobody has asked for it, and a small index needs none.
        """
        if self.level is None:
            return
        (tokens,) = self._database.read(self._rows.counted, "tokens")
        if tokens >= (APPROXIMATE_FROM if by_itself else 1):
            # Others lack sparse products.
            device = self._device if self._device.startswith("cuda") else "cpu"
            self.level.make(device=device, show_progress=show_progress, by_itself=by_itself)

    def has_level(self) -> bool:
        """Whether there is a level that fits the index; in a read transaction."""
        return self.level is not None and self.level.refresh()

    def sampled(self, count: int) -> TokenEmbeddings:
        """The vectors of some documents that have words, the same ones each time."""
        drawn = np.random.default_rng(0).permutation(self._record.last_position()) + 1
        found = np.zeros(0, np.int64)
        # Of an index that was edited much, few positions are left: drawn until there are enough.
        for start in range(0, len(drawn), _DRAWN):
            some = drawn[start : start + _DRAWN]
            found = np.append(found, some[np.isin(some, self._record.existing(some))])
            if len(found) >= count:
                break
        return self._rows.vectors(torch.from_numpy(np.sort(found[:count])))

    def held(self) -> Held:
        """How much lies beside the index, and in memory."""
        return Held(
            None if self._shared is None else self._shared.size(),
            None if self._file is None else self._file.size(),
            self._snapshot.mapped_bytes,
            self._snapshot.held_bytes + (0 if self.level is None else self.level.held_bytes),
        )

    def verify(self) -> None:
        """Compare what lies beside the index with its checksums.

        Raises:
            IndexCorruptError: something is damaged; says what.
        """
        if self._shared is not None:
            self._shared.verify(self._database.coding)
        if self._file is not None:
            self._file.verify()

    def give_back(self) -> None:
        """Remove the copy of vectors that processes share; the next search makes it again."""
        if self._shared is not None:
            self._shared.remove()

    def remove_level(self) -> None:
        """Remove the file of a level that fits nothing any more."""
        if self._file is not None:
            self._file.remove()

    def forget(self) -> None:
        """Let go of all that is held or mapped."""
        self._snapshot.forget()
        if self.level is not None:
            self.level.forget()
