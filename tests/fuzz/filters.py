"""Metadata filters: in our own language, in LlamaIndex's, and as translated for Qdrant."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colbert_rag.errors import InvalidFilterError
from colbert_rag.index.filters import parse_filter

MOMENTS = {
    "2024-05-01": 0.0,
    "2024-05-01T00:00:00Z": 0.0,
    "2024-05-01T02:00:00+02:00": 0.0,
    "2024-04-30T23:59:59.5Z": -0.5,
    "2024-05-01T00:00:01": 1.0,
    "2024-05-02": 86_400.0,
}
"""Moments, in seconds after the first."""

STRINGS = ("", "a", "A", "1", "true", "ü", "u\u0308", "a\x1b[2J", "2024-02-30", *MOMENTS)
NUMBERS = (0, 1, 1.0, -1, 1.5, -0.0, 2**53, 2**53 + 1, -(2**53) - 1, 1e300, 5e-324, 10)
PLAIN = (*STRINGS, *NUMBERS, True, False, None)
BEYOND = re.compile(r"9007199254740993")
KEYS = ("n", "s", "a b", "größe", "a-b", "x[]", "[0]", "ä\n", "metadata", "0", "-")
PATHS = (*KEYS, "m.n", "m.s", "m.m.n", "n.n")
JUNK: Sequence[object] = (
    float("nan"),
    float("inf"),
    10**400,
    [],
    {},
    "",
    [[]],
    {"$gt": None},
    {"a": 1},
    {"$in": "abc"},
    {"$eq": [1]},
    {"$not": {}},
    b"x",
    {1},
    "\ud800",
    {"$gt": 1, "$lt": "2024-05-01"},
)


@dataclass(frozen=True)
class Case:
    """Some metadata, and a filter in one of two languages.

    Attributes:
        filter: As `parse_filter` takes it; of LlamaIndex, (condition, parts), where a part is such
            a pair again, or (key, operator, value).
        llama_index: Whether it is LlamaIndex's.
        valid: Whether it is in the language.
    """

    metadata: Mapping[str, object]
    filter: object
    llama_index: bool = False
    valid: bool = True


def prepare() -> None:
    from llama_index.core.vector_stores import MetadataFilters
    from qdrant_client.local.payload_filters import check_filter

    # The first input would import these, and torch with them.
    from colbert_rag.index.qdrant.filters import to_qdrant
    from colbert_rag.llama_index.filters import to_filter

    assert MetadataFilters
    assert check_filter
    assert to_qdrant
    assert to_filter


# Drawing


def _value(rng: random.Random, depth: int = 2) -> object:
    kind = rng.random()
    if kind < 0.25 and depth:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 0.4 and depth:
        return _metadata(rng, depth - 1)
    return rng.choice(PLAIN)


def _metadata(rng: random.Random, depth: int = 3) -> dict[str, object]:
    keys = (*KEYS, "n", "n", "s", "m", "m")
    found = {rng.choice(keys): _value(rng, depth) for _ in range(rng.randrange(5))}
    if depth and rng.random() < 0.5:
        found["m"] = _metadata(rng, depth - 1)
    return found


def _found(metadata: Mapping[str, object], above: str = "") -> dict[str, list[object]]:
    """What there is to filter by: paths, and the plain values at each."""
    found: dict[str, list[object]] = {}
    for key, value in metadata.items():
        if isinstance(value, dict):
            found |= _found(value, f"{above}{key}.")
        else:
            values = value if isinstance(value, list) else [value]
            found[above + key] = [one for one in values if not isinstance(one, dict | list)]
    return found


Known = Mapping[str, Sequence[object]]


def _plain(rng: random.Random, near: Sequence[object]) -> object:
    return rng.choice(near) if near and rng.random() < 0.6 else rng.choice(PLAIN)


def _condition(rng: random.Random, near: Sequence[object]) -> object:
    kind = rng.randrange(4)
    if kind == 0:
        return _plain(rng, near)
    found: dict[str, object] = {}
    for _ in range(rng.choice((1, 1, 2))):
        operator = rng.choice(("$eq", "$ne", "$in", "$nin"))
        one = operator in ("$eq", "$ne")
        found[operator] = (
            _plain(rng, near) if one else [_plain(rng, near) for _ in range(rng.randrange(4))]
        )
    if kind == 1:
        found |= _bounds(rng, near)
    return _bounds(rng, near) if kind == 2 else found


def _bounds(rng: random.Random, near: Sequence[object]) -> dict[str, object]:
    numbers = [one for one in near if isinstance(one, int | float) and not isinstance(one, bool)]
    moments = [one for one in near if one in MOMENTS]
    among = rng.choice([kind for kind in (numbers, moments) if kind] or [NUMBERS, tuple(MOMENTS)])
    more = tuple(MOMENTS) if isinstance(among[0], str) else NUMBERS
    operators = rng.sample(("$gt", "$gte", "$lt", "$lte"), rng.choice((1, 1, 2, 4)))
    return {operator: rng.choice(rng.choice((among, more))) for operator in operators}


def _filter(rng: random.Random, known: Known, depth: int = 3) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.random()
        if kind < 0.3 and depth:
            parts = [_filter(rng, known, depth - 1) for _ in range(rng.randrange(1, 4))]
            found[rng.choice(("$and", "$or"))] = parts
        elif kind < 0.4 and depth:
            found["$not"] = _filter(rng, known, depth - 1)
        else:
            path = rng.choice(PATHS if not known or rng.random() < 0.2 else list(known))
            found[path] = _condition(rng, known.get(path, ()))
    return found


def _spoiled(rng: random.Random, filter: object) -> object:
    """The same filter with junk at some place."""
    if isinstance(filter, dict) and filter and rng.random() < 0.8:
        key = rng.choice(list(filter))
        if rng.random() < 0.2:
            return {**filter, rng.choice(("$gt", "$x", "", ".", "a..b", "$", 1, None)): filter[key]}
        return {**filter, key: _spoiled(rng, filter[key])}
    if isinstance(filter, list) and filter:
        return [*filter[1:], _spoiled(rng, filter[0])]
    return rng.choice(JUNK)


LLAMA_OPERATORS = ("==", "!=", ">", ">=", "<", "<=", "in", "nin", "any", "all", "contains")


def _llama_index(rng: random.Random, known: Known, depth: int = 2) -> tuple[object, ...]:
    parts: list[object] = []
    for _ in range(rng.randrange(1, 4)):
        if depth and rng.random() < 0.3:
            parts.append(_llama_index(rng, known, depth - 1))
            continue
        operator = rng.choice((*LLAMA_OPERATORS, "is_empty"))
        value: object = rng.choice((1, 1.5, "a", "1", 10, -1))
        if operator in ("in", "nin", "any", "all"):
            value = rng.sample(("a", "A", "1", "ü"), rng.randrange(1, 4))
        elif operator in (">", ">=", "<", "<="):
            value = rng.choice((*(n for n in NUMBERS if abs(n) < 2**53), *MOMENTS))
        elif operator == "is_empty":
            value = None
        path = rng.choice(PATHS if not known or rng.random() < 0.2 else list(known))
        parts.append((path, operator, value))
    return rng.choice(("and", "or", "not")), tuple(parts)


def draw(rng: random.Random) -> Case:
    metadata = _metadata(rng)
    if rng.random() < 0.25:
        return Case(metadata, _llama_index(rng, _found(metadata)), llama_index=True)
    filter = _filter(rng, _found(metadata))
    if rng.random() < 0.3:
        return Case(metadata, _spoiled(rng, filter), valid=False)
    return Case(metadata, filter)


# What a filter means, by the words of docs/indexes.md


def _holds(metadata: Mapping[str, object], filter: Mapping[str, object]) -> bool:
    return all(_entry(metadata, key, value) for key, value in filter.items())


def _entry(metadata: Mapping[str, object], key: str, value: object) -> bool:
    if key == "$not":
        return not _holds(metadata, value)  # type: ignore[arg-type]
    if key in ("$and", "$or"):
        found = [_holds(metadata, part) for part in value]  # type: ignore[attr-defined]
        return all(found) if key == "$and" else any(found)
    elements = _elements(metadata, key)
    if not isinstance(value, dict):
        return _has(elements, [value])
    plain = {
        "$eq": lambda operand: _has(elements, [operand]),
        "$ne": lambda operand: not _has(elements, [operand]),
        "$in": lambda operand: _has(elements, operand),
        "$nin": lambda operand: not _has(elements, operand),
    }
    bounds = {operator: bound for operator, bound in value.items() if operator not in plain}
    return all(plain[op](value[op]) for op in value if op in plain) and (
        not bounds or any(_inside(element, bounds) for element in elements)
    )


def _elements(metadata: object, key: str) -> list[object]:
    for part in key.split("."):
        if not isinstance(metadata, dict) or part not in metadata:
            return []
        metadata = metadata[part]
    return metadata if isinstance(metadata, list) else [metadata]


def _has(elements: list[object], wanted: Sequence[object]) -> bool:
    return any(_equal(element, one) for element in elements or [None] for one in wanted)


def _equal(one: object, other: object) -> bool:
    kinds = [bool, str, type(None), dict, list]
    alike = all(isinstance(one, kind) == isinstance(other, kind) for kind in kinds)
    return alike and not isinstance(one, dict | list) and one == other


def _inside(element: object, bounds: Mapping[str, object]) -> bool:
    def number(value: object) -> object:
        if isinstance(value, str):
            return MOMENTS.get(value)
        return None if isinstance(value, bool | list | dict | None) else value

    compare: dict[str, Callable[..., bool]] = {
        "$gt": lambda a, b: a > b,
        "$gte": lambda a, b: a >= b,
        "$lt": lambda a, b: a < b,
        "$lte": lambda a, b: a <= b,
    }
    return number(element) is not None and all(
        isinstance(element, str) == isinstance(bound, str)
        and compare[operator](number(element), number(bound))
        for operator, bound in bounds.items()
    )


def _meant(filter: tuple[object, ...]) -> dict[str, object]:
    """LlamaIndex's filter in our language, by the words of its enumeration."""
    condition, parts = filter
    listed = [
        _meant(part) if len(part) == 2 else _single(*part)
        for part in parts  # type: ignore[attr-defined]
    ]
    return {"not": {"$not": {"$or": listed}}, "and": {"$and": listed}, "or": {"$or": listed}}[
        str(condition)
    ]


def _single(key: str, operator: str, value: object) -> dict[str, object]:
    if operator == "all":
        return {"$and": [{key: each} for each in value]}  # type: ignore[attr-defined]
    names = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte", "!=": "$ne", "nin": "$nin"}
    names |= {"in": "$in", "any": "$in"}
    return {key: {names.get(operator, "$eq"): value}}


# Running


def run(case: Case, folder: Path) -> None:
    filter = case.filter
    if case.llama_index:
        from colbert_rag.llama_index.filters import to_filter

        given = to_filter(_llama(filter))  # type: ignore[arg-type]
        filter = _meant(filter)  # type: ignore[arg-type]
    else:
        given = filter  # type: ignore[assignment]
    try:
        condition = parse_filter(given)
    except InvalidFilterError:
        assert not case.valid, "a filter of the language was refused"
        return
    found = condition is None or condition.matches(case.metadata)  # type: ignore[arg-type]
    if case.valid:
        assert found == _holds(case.metadata, filter), f"matches: {found}"  # type: ignore[arg-type]
    if condition is not None:
        _compare_with_qdrant(case, condition, found)


def _llama(filter: tuple[object, ...]) -> object:
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

    condition, parts = filter
    return MetadataFilters(
        condition=condition,
        filters=[
            _llama(part)
            if len(part) == 2
            else MetadataFilter(key=part[0], operator=part[1], value=part[2])
            for part in parts  # type: ignore[attr-defined]
        ],
    )


def _compare_with_qdrant(case: Case, condition: object, found: bool) -> None:
    from qdrant_client import models
    from qdrant_client.local.payload_filters import check_filter

    from colbert_rag.index.qdrant.filters import to_qdrant

    if BEYOND.search(repr(case)):  # Qdrant compares ranges as doubles
        return
    try:
        translated = to_qdrant(condition)  # type: ignore[arg-type]
    except InvalidFilterError:
        return
    passing = models.Filter.model_validate({"must": [translated]})
    answer = check_filter(passing, {"metadata": case.metadata}, 0, {})
    assert answer == found, f"Qdrant says {answer}"


CORPUS: tuple[Case, ...] = ()
