"""A progress bar, for those who ask for one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, Self

from tqdm import tqdm


class Bar(AbstractContextManager["Bar"], Protocol):
    """What is told how far the work is.

    Attributes:
        n: How many are done.
    """

    n: int

    def update(self, n: int, /) -> object:
        """So many more are done."""
        ...


class _Hidden:
    def __init__(self) -> None:
        self.n = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int, /) -> None:
        self.n += n


def progress_bar(what: str | None, *, total: int | None, show: bool, unit: str = "it") -> Bar:
    """A bar of tqdm's on standard error; one that is not shown is none of tqdm's.

    tqdm takes a lock for each bar, shown or not, that a forked process shares with its parent: of a
    child that is forked or killed while somebody has it, one of the two waits for ever.
    """
    if not show:
        return _Hidden()
    bar: Bar = tqdm(total=total, desc=what, unit=unit)
    return bar
