"""Which effort was chosen for an index, and what recall it was measured to have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from colbert_rag.index.how import DEFAULT_EFFORT, MOST_EFFORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An effort.

    Attributes:
        effort: Its number.
        recall: The part of the exact best `k` that it found; None was not measured.
        k: How many of the best.
        queries: How many queries were asked.
    """

    effort: int = DEFAULT_EFFORT
    recall: float | None = None
    k: int = 10
    queries: int = 0

    @classmethod
    def recorded(cls, values: object) -> Self:
        """What an index records of one, as plain values; the default where that is something else.

        It decides nothing but how long a search takes, so it is no error.
        """
        if not isinstance(values, dict):
            return cls()
        try:
            choice = cls(**values)
        except TypeError:
            return cls()
        return choice if choice._is_sound() else cls()

    def _is_sound(self) -> bool:
        """Whether it is what was written, whoever changed the index."""
        # Not `isinstance`: JSON's `true` would be 1.
        whole = [type(number) is int for number in (self.effort, self.k, self.queries)]
        # A server may give 1.0 back as 1.
        part = self.recall is None or (type(self.recall) in (float, int) and 0 <= self.recall <= 1)
        return part and all(whole) and 1 <= self.effort <= MOST_EFFORT

    def described(self) -> str:
        """The recall, in words."""
        if self.recall is None:
            return "recall not measured"
        return f"recall@{self.k} {self.recall:.3f} with {self.queries} queries"
