"""Which effort was chosen for an index, and what recall it was measured to have."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from colbert_rag.index.local.database import Database
from colbert_rag.index.local.level.effort import DEFAULT, EFFORTS

_NAME = "effort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An effort.

    Attributes:
        effort: Its number.
        recall: The part of the exact best `k` that it found; None was not measured.
        k: How many of the best.
        queries: How many queries were asked.
    """

    effort: int = DEFAULT
    recall: float | None = None
    k: int = 10
    queries: int = 0

    @classmethod
    def read(cls, database: Database) -> Self:
        """What the index records; in a transaction."""
        query = "SELECT value FROM settings WHERE name = ?"
        row = database.connection.execute(query, (_NAME,)).fetchone()
        try:
            choice = cls() if row is None else cls(**json.loads(row[0]))
        except (TypeError, ValueError):  # it decides nothing but how long a search takes
            return cls()
        return choice if choice._is_sound() else cls()

    def _is_sound(self) -> bool:
        """Whether it is what was written, whoever changed the file."""
        # Not `isinstance`: JSON's `true` would be 1.
        whole = [type(number) is int for number in (self.effort, self.k, self.queries)]
        return all(whole) and self.effort in EFFORTS and type(self.recall) in (float, type(None))

    def write(self, database: Database) -> None:
        """Record it; in a write."""
        record = json.dumps(asdict(self))
        database.connection.execute("REPLACE INTO settings VALUES (?, ?)", (_NAME, record))

    def described(self) -> str:
        """The recall, in words."""
        if self.recall is None:
            return "recall not measured"
        return f"recall@{self.k} {self.recall:.3f} with {self.queries} queries"
