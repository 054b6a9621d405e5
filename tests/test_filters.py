"""The filter language, by hand-written expectations that Qdrant's engines are held to as well."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from functools import reduce

import pytest

from colbert_rag.errors import InvalidFilterError
from colbert_rag.index.filters import parse_filter
from tests.helpers.filter_cases import FILTERS, METADATA


@pytest.mark.parametrize(("filter", "expected"), FILTERS.values(), ids=FILTERS)
def test_a_filter_passes_exactly_the_documents_listed_for_it(filter, expected):
    condition = parse_filter(filter)

    passing = {name for name, metadata in METADATA.items() if condition.matches(metadata)}

    assert passing == expected


@pytest.mark.parametrize("filter", [None, {}])
def test_an_empty_filter_lets_everything_pass(filter):
    assert parse_filter(filter) is None


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param(date(2024, 5, 2), id="a date"),
        pytest.param(datetime(2024, 5, 2), id="a naive datetime counts as UTC"),
        pytest.param(datetime(2024, 5, 2, tzinfo=UTC), id="an aware datetime"),
        pytest.param(
            datetime(2024, 5, 2, 2, tzinfo=timezone(timedelta(hours=2))), id="another zone"
        ),
        pytest.param("2024-05-02T00:00", id="ISO text without seconds"),
    ],
)
def test_a_moment_may_be_spelled_in_several_ways(bound):
    condition = parse_filter({"seen": {"$lt": bound}})

    assert condition.matches({"seen": "2024-05-01T23:59:59Z"})
    assert not condition.matches({"seen": "2024-05-02"})


@pytest.mark.parametrize(
    ("filter", "help"),
    [
        pytest.param({"year": {"$gtt": 1}}, r"\$eq, \$ne, \$in", id="unknown operator of a key"),
        pytest.param({"$xor": [{}]}, r"\$and, \$or, \$not", id="unknown operator of filters"),
        pytest.param({"$gt": 1}, "belongs below a key", id="operator without a key"),
        pytest.param({"a": {"b": 1}}, r"write 'a\.b'", id="nested mapping"),
        pytest.param({"a": {}}, "expected one of", id="no operator"),
        pytest.param({"a": [1, 2]}, r"use \$in: \{'a'", id="bare list"),
        pytest.param({"a": {"$in": "xy"}}, "expected a list", id="string for a list"),
        pytest.param({"a": {"$in": [[1]]}}, "compared with a list", id="list in a list"),
        pytest.param({"a": float("nan")}, "no document can hold", id="not a number"),
        pytest.param({"a": {"$gt": "soon"}}, "a number or a moment", id="range of words"),
        pytest.param({"a": {"$gt": 10**400}}, "a number or a moment", id="more than a float"),
        pytest.param({"a": {"$gt": True}}, "a number or a moment", id="range of booleans"),
        pytest.param({"a": {"$gt": "2024-02-30"}}, "a number or a moment", id="no such day"),
        pytest.param({"a": {"$gt": 1, "$lt": "2024-01-01"}}, "mixes", id="mixed range"),
        pytest.param({"a": object()}, "compared with an object", id="some object"),
        pytest.param({"a..b": 1}, "empty part", id="two dots"),
        pytest.param({1: 1}, "expected str", id="key is a number"),
        pytest.param({"$and": []}, "at least one", id="nothing to combine"),
        pytest.param({"$or": {"a": 1}}, "expected a list", id="mapping to combine"),
        pytest.param({"$not": []}, "expected a mapping", id="nothing to negate"),
        pytest.param({"$and": [{}]}, "expected a mapping", id="empty part"),
        pytest.param("year > 2020", "expected a mapping", id="a string"),
        pytest.param(
            reduce(lambda inner, _: {"$not": inner}, range(5_000), {"a": 1}),
            "nested too deeply",
            id="deep",
        ),
    ],
)
def test_what_is_not_in_the_language_is_refused_with_help(filter, help):
    with pytest.raises(InvalidFilterError, match=help):
        parse_filter(filter)


KNOWN = "expected one of $eq, $ne, $in, $nin, $gt, $gte, $lt, $lte"


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ({"$gtt": 3}, f"'year' has '$gtt', {KNOWN}; did you mean '$gt'?"),
        ({"$GTE": 3}, f"'year' has '$GTE', {KNOWN}; did you mean '$gte'?"),
        ({"from": 3, "$le": 3}, f"'year' has 'from', '$le', {KNOWN}; did you mean '$lte'?"),
        ({"$near": 3}, f"'year' has '$near', {KNOWN}"),
        ({"from": 3}, f"'year' has 'from', {KNOWN}; to look inside 'year', write 'year.from'"),
        ({7: 3}, f"'year' has 7, {KNOWN}"),
        ({}, f"'year' has {{}}, {KNOWN}"),
    ],
)
def test_what_is_no_operator_is_told_what_was_meant(operators, message):
    with pytest.raises(InvalidFilterError) as found:
        parse_filter({"year": operators})

    assert str(found.value) == message
