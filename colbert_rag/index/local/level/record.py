"""What SQLite knows of levels: which were made from it, and what was removed since.

A level is made from all documents up to a position, under a random token that is recorded before
the first of them is read. Positions are never used twice, and from then on each one that is removed
is noted. So a file fits wherever its token is found: in the index, in a copy of it, and in any of
their later states; and what has changed since is known without reading what has not.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colbert_rag.index.local.database import Database
from colbert_rag.index.local.log import FORMAT_VERSION
from colbert_rag.index.local.translation import corrupt

_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """A level that was begun.

    Attributes:
        token: Its name.
        last: The position up to which it goes.
    """

    token: bytes
    last: int


class LevelRecord:
    """Reads and writes the tables, each inside the caller's transaction."""

    def __init__(self, database: Database) -> None:
        """Those of `database`."""
        self._database = database

    def _is_there(self) -> bool:
        # An older version of ours writes its number, and notes nothing that it removes.
        return self._database.format() == FORMAT_VERSION

    def marks(self) -> list[Mark]:
        """The levels that were begun, the newest last.

        Raises:
            IndexCorruptError: what is there is not what was recorded.
        """
        if not self._is_there():
            return []
        found = self._database.connection.execute(
            "SELECT number, token, last FROM levels ORDER BY number"
        ).fetchall()
        for number, token, last in found:
            if not isinstance(token, bytes) or len(token) != _TOKEN or not isinstance(last, int):
                raise corrupt(self._database.path, f"level {number} is not what was recorded")
        return [Mark(token, last) for _, token, last in found]

    def begin(self, last: int) -> Mark:
        """Name a new level of the documents up to a position."""
        mark = Mark(secrets.token_bytes(_TOKEN), last)
        self._database.connection.execute(
            "INSERT INTO levels (token, last) VALUES (?, ?)", (mark.token, mark.last)
        )
        return mark

    def removed(self, after: int) -> tuple[NDArray[np.int64], int]:
        """Positions that were removed since the entry `after`, and the number of the last entry.

        Raises:
            IndexCorruptError: what is there is not what was recorded.
        """
        found = self._database.connection.execute(
            "SELECT number, position FROM removed WHERE number > ? ORDER BY number", (after,)
        ).fetchall()
        try:
            table = np.array(found, np.int64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            reason = f"a removed position is no number: {error}"
            raise corrupt(self._database.path, reason) from error
        return table[:, 1], int(table[-1, 0]) if len(table) else after

    def run(self, after: int, last: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions above `after` and up to `last`, rising, at most `size`; and their vectors."""
        found = self._database.connection.execute(
            "SELECT position, rows FROM documents WHERE position > ? AND position <= ? "
            "ORDER BY position LIMIT ?",
            (after, last, size),
        ).fetchall()
        table = np.array(found, np.int64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()

    def existing(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some positions that have a document with vectors, rising."""
        found = self._database.connection.execute(
            "SELECT position FROM documents WHERE rows > 0 "
            "AND position IN (SELECT value FROM json_each(?)) ORDER BY position",
            (json.dumps(positions.tolist()),),
        ).fetchall()
        return np.array(found, np.int64).reshape(-1)

    def last_position(self) -> int:
        """The highest position of a document; 0 where there is none."""
        query = "SELECT ifnull(max(position), 0) FROM documents"
        return int(self._database.connection.execute(query).fetchone()[0])

    def totals_to(self, last: int) -> tuple[int, int]:
        """How many documents and vectors there are up to a position."""
        documents, tokens = self._database.connection.execute(
            "SELECT count(*), CAST(total(rows) AS INTEGER) FROM documents WHERE position <= ?",
            (last,),
        ).fetchone()
        return int(documents), int(tokens)

    def keep_only(self, mark: Mark, positions: NDArray[np.int64]) -> None:
        """Forget all other levels, and what was removed but is not among the positions of this."""
        connection = self._database.connection
        connection.execute("DELETE FROM levels WHERE token <> ?", (mark.token,))
        gone, _ = self.removed(0)
        connection.execute(
            "DELETE FROM removed WHERE position IN (SELECT value FROM json_each(?))",
            (json.dumps(np.setdiff1d(gone, positions).tolist()),),
        )
