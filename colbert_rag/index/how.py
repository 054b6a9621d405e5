"""How thoroughly a search looks: arguments that an index and its clients share; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from colbert_rag.settings import whole_number

MOST_EFFORT, DEFAULT_EFFORT = 5, 3


@dataclass(frozen=True, slots=True)
class How:
    """How thoroughly a search looks.

    Attributes:
        exact: Whether it reads everything; None leaves it to the index.
        effort: How much it does otherwise, from 1 to `MOST_EFFORT`; None is what was chosen.
    """

    exact: bool | None = None
    effort: int | None = None

    @classmethod
    def checked(cls, exact: bool | None, effort: int | None) -> Self:
        """Take a caller's arguments.

        Raises:
            TypeError: one is of another type.
            ValueError: they contradict each other, or `effort` is out of range.
        """
        if exact is not None and not isinstance(exact, bool):
            raise TypeError(f"exact is {exact!r}, expected True, False or None")
        if effort is not None:
            effort = whole_number("effort", effort, least=1)
            if effort > MOST_EFFORT:
                raise ValueError(f"effort is {effort}, expected 1 to {MOST_EFFORT}, or None")
        if exact and effort is not None:
            raise ValueError(
                f"exact is True and effort is {effort}: an exact search reads everything, so leave "
                "one of them out"
            )
        return cls(exact, effort)
