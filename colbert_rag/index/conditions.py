"""The nodes a metadata filter is read into: each can be evaluated, or translated for Qdrant."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

from colbert_rag.errors import InvalidFilterError
from colbert_rag.index.documents import Json

Scalar: TypeAlias = bool | int | float | str | None
Path: TypeAlias = tuple[str, ...]
Bound: TypeAlias = float | datetime
Translated: TypeAlias = dict[str, object]

# Integers up to here are exact as the doubles in which Qdrant compares ranges.
_EXACT = 2**53
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d(:\d\d)?)?)?)?", re.ASCII
)


class Condition(Protocol):
    """One node of a filter."""

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether a document with this metadata passes."""
        ...

    def to_qdrant(self) -> Translated:
        """The same condition in the JSON form of Qdrant's REST interface."""
        ...


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

    def to_qdrant(self) -> Translated:
        """Strings by match, numbers by ranges of one point: Qdrant's match parts 1 from 1.0."""
        key = qdrant_key(self.path)
        plain = sorted(self.values, key=lambda pair: (type(pair[1]).__name__, str(pair[1])))
        strings = [value for _, value in plain if isinstance(value, str)]
        options: list[Translated] = []
        if strings:
            options.append({"key": key, "match": {"any": strings}})
        for is_bool, value in plain:
            if value is None:
                options += [{"is_empty": {"key": key}}, {"is_null": {"key": key}}]
            elif is_bool or (isinstance(value, int) and abs(value) > _EXACT):
                options.append({"key": key, "match": {"value": value}})
            elif isinstance(value, int | float):
                options.append({"key": key, "range": {"gte": float(value), "lte": float(value)}})
        # Qdrant reads an empty list of alternatives as no condition, so "none of them" is an id.
        return _alternatives(options) if options else {"has_id": []}


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
                _HOLDS[operator](comparable, bound) for operator, bound in self.bounds.items()
            ):
                return True
        return False

    def to_qdrant(self) -> Translated:
        """A range; moments become ISO 8601 text."""
        bounds = {
            operator.removeprefix("$"): bound.isoformat() if isinstance(bound, datetime) else bound
            for operator, bound in self.bounds.items()
        }
        return {"key": qdrant_key(self.path), "range": bounds}


@dataclass(frozen=True, slots=True)
class Every:
    """All conditions hold."""

    conditions: tuple[Condition, ...]

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether all of them match."""
        return all(condition.matches(metadata) for condition in self.conditions)

    def to_qdrant(self) -> Translated:
        """A nested `must`."""
        return {"must": [condition.to_qdrant() for condition in self.conditions]}


@dataclass(frozen=True, slots=True)
class Some:
    """At least one condition holds."""

    conditions: tuple[Condition, ...]

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether one of them matches."""
        return any(condition.matches(metadata) for condition in self.conditions)

    def to_qdrant(self) -> Translated:
        """A nested `should`."""
        return _alternatives([condition.to_qdrant() for condition in self.conditions])


@dataclass(frozen=True, slots=True)
class Not:
    """A condition does not hold."""

    condition: Condition

    def matches(self, metadata: Mapping[str, Json]) -> bool:
        """Whether it does not match."""
        return not self.condition.matches(metadata)

    def to_qdrant(self) -> Translated:
        """A nested `must_not`."""
        return {"must_not": [self.condition.to_qdrant()]}


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


def _less(left: Bound, right: Bound) -> bool:
    return left < right  # type: ignore[operator]  # `Between` holds bounds of one kind


_HOLDS: Mapping[str, Callable[[Bound, Bound], bool]] = {
    "$gt": lambda value, bound: _less(bound, value),
    "$gte": lambda value, bound: not _less(value, bound),
    "$lt": _less,
    "$lte": lambda value, bound: not _less(bound, value),
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


def _alternatives(options: list[Translated]) -> Translated:
    return options[0] if len(options) == 1 else {"should": options}


def qdrant_key(path: Path) -> str:
    """The path below the payload's `metadata`; quotes hold what Qdrant would read as syntax."""
    for part in path:
        if '"' in part:
            raise InvalidFilterError(f"Qdrant cannot filter on {part!r}: a key with a double quote")
    quoted = (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in path)
    return ".".join(("metadata", *quoted))
