"""Metadata filters: one small language of plain dicts, evaluated here or translated for Qdrant.

    {"year": 2020}                                   equal
    {"year": {"$gte": 2000, "$lt": 2010}}            a range of numbers
    {"seen": {"$gt": "2024-05-01T12:00:00Z"}}        a range of moments (ISO 8601; UTC if unsaid)
    {"topic": {"$in": ["law", "tax"]}}               one of several; also $nin, $ne, $eq
    {"author.name": "Ada"}                           a key inside a mapping
    {"$or": [{...}, {...}]}                          also $and and $not; several keys mean $and

A list matches if one of its elements does; the bounds of a range must hold for the same element. A
dot does not lead into the elements of a list. True and 1 differ, 1 and 1.0 do not; strings are
equal when their code points are. `None` matches a key that is missing, null, an empty list, or a
list holding null. `$ne`, `$nin` and `$not` match exactly what the plain form does not, a missing
key included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from difflib import get_close_matches

from colbert_rag.errors import InvalidFilterError
from colbert_rag.index.conditions import (
    Between,
    Bound,
    Condition,
    Every,
    Not,
    OneOf,
    Path,
    Scalar,
    Some,
    as_moment,
    as_number,
)
from colbert_rag.wording import kind_of

BOUNDS = ("$gt", "$gte", "$lt", "$lte")
KEY_OPERATORS = ("$eq", "$ne", "$in", "$nin", *BOUNDS)
OPERATORS = ("$and", "$or", "$not")


def parse_filter(filter: Mapping[str, object] | None) -> Condition | None:
    """Read a filter; None and `{}` let every document pass and give None.

    Raises:
        InvalidFilterError: it is not in the language; names the operators that are.
    """
    if filter is None or filter == {}:
        return None
    try:
        return _parse(filter)
    except RecursionError:
        # Not chained: hundreds of equal frames would bury the message.
        raise InvalidFilterError("the filter is nested too deeply, or holds itself") from None


def _parse(filter: object) -> Condition:
    if not isinstance(filter, Mapping) or not filter:
        raise InvalidFilterError(
            f"found {filter!r}, expected a mapping such as {{'year': {{'$gte': 2020}}}}"
        )
    conditions = [_entry(key, value) for key, value in filter.items()]
    return conditions[0] if len(conditions) == 1 else Every(tuple(conditions))


def _entry(key: object, value: object) -> Condition:
    if not isinstance(key, str):
        raise InvalidFilterError(f"key {key!r} is {kind_of(key)}, expected str")
    if key == "$not":
        return Not(_parse(value))
    if key in OPERATORS:
        if not isinstance(value, list | tuple) or not value:
            raise InvalidFilterError(f"{key} has {value!r}, expected a list of at least one filter")
        conditions = tuple(_parse(part) for part in value)
        return Every(conditions) if key == "$and" else Some(conditions)
    if key.startswith("$"):
        hint = "it belongs below a key" if key in KEY_OPERATORS else "no such operator"
        raise InvalidFilterError(
            f"{key} does not combine filters ({hint}); known are {', '.join(OPERATORS)}, and below "
            f"a key {', '.join(KEY_OPERATORS)}"
        )
    path = tuple(key.split("."))
    if "" in path:
        raise InvalidFilterError(f"key {key!r} has an empty part; dots lead into nested mappings")
    return _condition(path, value)


def _condition(path: Path, value: object) -> Condition:
    key = ".".join(path)
    if not isinstance(value, Mapping):
        return OneOf.of(path, [_scalar(key, value)])
    unknown = [operator for operator in value if operator not in KEY_OPERATORS]
    if unknown or not value:
        found = ", ".join(map(repr, unknown)) or "{}"
        raise InvalidFilterError(
            f"{key!r} has {found}, expected one of {', '.join(KEY_OPERATORS)}"
            f"{_meant(key, [name for name in unknown if isinstance(name, str)])}"
        )
    conditions: list[Condition] = []
    for operator in ("$eq", "$ne", "$in", "$nin"):
        if operator not in value:
            continue
        values = value[operator] if operator in ("$in", "$nin") else [value[operator]]
        if not isinstance(values, list | tuple | set | frozenset):
            raise InvalidFilterError(f"{operator} of {key!r} has {values!r}, expected a list")
        among = OneOf.of(path, [_scalar(key, each) for each in values])
        conditions.append(Not(among) if operator in ("$ne", "$nin") else among)
    bounds = {name: _bound(key, name, value[name]) for name in BOUNDS if name in value}
    if bounds:
        if len({isinstance(bound, datetime) for bound in bounds.values()}) > 1:
            raise InvalidFilterError(f"{key!r} mixes numbers and moments: {dict(value)!r}")
        conditions.append(Between(path, bounds))
    return conditions[0] if len(conditions) == 1 else Every(tuple(conditions))


def _meant(key: str, unknown: Sequence[str]) -> str:
    """What somebody wanted who wrote these below a key: an operator, or a key inside it."""
    mistyped = [name for name in unknown if name.startswith("$")]
    if not mistyped:
        return f"; to look inside {key!r}, write '{key}.{unknown[0]}'" if unknown else ""
    for name in mistyped:
        # Nearer than usual: $near of other languages is not $ne.
        if near := get_close_matches(name.lower(), KEY_OPERATORS, n=1, cutoff=0.8):
            return f"; did you mean {near[0]!r}?"
    return ""


def _scalar(key: str, value: object) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidFilterError(f"{key!r} is compared with {value}, which no document can hold")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    hint = f": {{{key!r}: {{'$in': {value!r}}}}}" if isinstance(value, list | tuple) else ""
    raise InvalidFilterError(
        f"{key!r} is compared with {kind_of(value)}, expected a string, number, boolean or "
        f"None; for one of several use $in{hint}"
    )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float can hold, and Qdrant compares floats
        return False


def _bound(key: str, operator: str, value: object) -> Bound:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    number = as_number(value)
    if number is not None and _is_finite(number):
        return number
    moment = as_moment(value)
    if moment is None:
        raise InvalidFilterError(
            f"{operator} of {key!r} has {value!r}, expected a number or a moment such as "
            "'2024-05-01' or '2024-05-01T12:00:00Z'"
        )
    return moment
