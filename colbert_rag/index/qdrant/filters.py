"""A filter in the JSON form of Qdrant's REST interface."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

from colbert_rag.errors import InvalidFilterError
from colbert_rag.index.conditions import Between, Condition, Every, Not, OneOf, Path, Some

Translated: TypeAlias = dict[str, object]

# Integers up to here are exact as the doubles in which Qdrant compares ranges.
_EXACT = 2**53


def to_qdrant(condition: Condition) -> Translated:
    """The same condition as Qdrant reads it.

    Raises:
        InvalidFilterError: a key that Qdrant cannot name.
    """
    match condition:
        case OneOf():
            return _one_of(condition)
        case Between(path, bounds):
            spelt = {
                name.removeprefix("$"): at.isoformat() if isinstance(at, datetime) else at
                for name, at in bounds.items()
            }
            return {"key": key_path(path), "range": spelt}
        case Every(conditions):
            return {"must": [to_qdrant(part) for part in conditions]}
        case Some(conditions):
            return _alternatives([to_qdrant(part) for part in conditions])
        case Not(inner):
            return {"must_not": [to_qdrant(inner)]}
    raise NotImplementedError(f"no translation for {type(condition).__name__}")


def _one_of(condition: OneOf) -> Translated:
    """Strings by match, numbers by ranges of one point: Qdrant's match tells 1 from 1.0."""
    key = key_path(condition.path)
    plain = sorted(condition.values, key=lambda pair: (type(pair[1]).__name__, str(pair[1])))
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


def _alternatives(options: Sequence[Translated]) -> Translated:
    return options[0] if len(options) == 1 else {"should": list(options)}


def key_path(path: Path) -> str:
    """The path below the payload's `metadata`; quotes hold what Qdrant would read as syntax.

    Raises:
        InvalidFilterError: a part of the path holds a double quote, which nothing can hold.
    """
    for part in path:
        if '"' in part:
            raise InvalidFilterError(f"Qdrant cannot filter on {part!r}: a key with a double quote")
    quoted = (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in path)
    return ".".join(("metadata", *quoted))
