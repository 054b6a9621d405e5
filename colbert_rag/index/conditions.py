"""The nodes a metadata filter is read into; each says whether metadata matches."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

from colbert_rag.index.documents import Json

Scalar: TypeAlias = bool | int | float | str | None
Path: TypeAlias = tuple[str, ...]
Bound: TypeAlias = float | datetime

_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d(:\d\d)?)?)?)?", re.ASCII
)


class Condition(Protocol):
    """One node of a filter."""

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether a document with this metadata passes."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """A key has one of some values."""

    path: Path
    values: frozenset[tuple[bool, Scalar]]

    @classmethod
    def of(cls, path: Path, values: Sequence[Scalar]) -> OneOf:
        """The condition for these values; the flag beside each keeps True apart from 1."""
        return cls(path, frozenset((isinstance(value, bool), value) for value in values))

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether one element is one of the values."""
        found = _values_at(metadata, self.path)
        if not found:
            return (False, None) in self.values
        return any(
            (isinstance(value, bool), value) in self.values
            for value in found
            if value is None or isinstance(value, bool | int | float | str)
        )


@dataclass(frozen=True, slots=True)
class Between:
    """A key has a value inside bounds, all of them numbers or all of them moments."""

    path: Path
    bounds: Mapping[str, Bound]

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether one element lies inside all bounds."""
        moments = isinstance(next(iter(self.bounds.values())), datetime)
        for value in _values_at(metadata, self.path):
            comparable = as_moment(value) if moments else as_number(value)
            if comparable is not None and all(
                _HOLDS[name](comparable, bound) for name, bound in self.bounds.items()
            ):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Every:
    """All conditions hold."""

    conditions: tuple[Condition, ...]

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether all of them match."""
        return all(condition.matches(metadata) for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Some:
    """At least one condition holds."""

    conditions: tuple[Condition, ...]

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether one of them matches."""
        return any(condition.matches(metadata) for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Not:
    """A condition does not hold."""

    condition: Condition

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether it does not match."""
        return not self.condition.matches(metadata)


def as_number(value: object) -> float | None:
    """The value if it is a number; True is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_moment(value: object) -> datetime | None:
    """The value if it is a moment in ISO 8601, in UTC unless it says otherwise."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return None
    try:
        found = datetime.fromisoformat(value.upper())
    except ValueError:  # such as February 30
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


_HOLDS: Mapping[str, Callable[[Bound, Bound], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def _values_at(metadata: Mapping[str, Json], path: Path) -> Sequence[Json]:
    """The elements of a list, a single value, or nothing where the path leads nowhere."""
    value: Json = metadata
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return ()
        value = value[part]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    return (value,)
