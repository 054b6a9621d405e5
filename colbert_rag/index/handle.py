"""What an open index is to its holders: closed by a `with` block, shared by its copies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

MEMORY = ":memory:"
"""In place of a path: an index that is in no file."""


class Handle(ABC):
    """Something open, which is no value: two copies would close each other's connection."""

    @abstractmethod
    def close(self) -> None:
        """Release what the index holds; it cannot be used afterwards."""

    def __enter__(self) -> Self:
        """The index itself; leaving the block closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the index."""
        self.close()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """The index itself: frameworks deep-copy components, and a connection is no value."""
        return self
