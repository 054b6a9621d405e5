"""LlamaIndex's metadata filters in the language of our indexes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from colbert_rag.errors import InvalidFilterError
from colbert_rag.index.filters import parse_filter

_Filter = dict[str, Any]

_OPERATORS: Mapping[FilterOperator, Callable[[str, Any], _Filter]] = {
    FilterOperator.EQ: lambda key, value: {key: {"$eq": value}},
    FilterOperator.NE: lambda key, value: {key: {"$ne": value}},
    FilterOperator.GT: lambda key, value: {key: {"$gt": value}},
    FilterOperator.GTE: lambda key, value: {key: {"$gte": value}},
    FilterOperator.LT: lambda key, value: {key: {"$lt": value}},
    FilterOperator.LTE: lambda key, value: {key: {"$lte": value}},
    FilterOperator.IN: lambda key, value: {key: {"$in": value}},
    FilterOperator.NIN: lambda key, value: {key: {"$nin": value}},
    # A condition on a list holds if it does for one element.
    FilterOperator.ANY: lambda key, value: {key: {"$in": value}},
    FilterOperator.ALL: lambda key, value: {"$and": [{key: {"$eq": each}} for each in value]},
    FilterOperator.CONTAINS: lambda key, value: {key: {"$eq": value}},
    FilterOperator.IS_EMPTY: lambda key, value: {key: {"$eq": None}},
}


def to_filter(filters: MetadataFilters | None) -> _Filter | None:
    """The same filter as a plain dict; None, or one without conditions, lets every node pass.

    Raises:
        InvalidFilterError: an operator or value has no counterpart.
    """
    if filters is None or not filters.filters:
        return None
    found = _group(filters)
    parse_filter(found)  # now, and not at the first query
    return found


def _group(filters: MetadataFilters) -> _Filter:
    if not filters.filters:
        raise InvalidFilterError("a MetadataFilters inside another one is empty: leave it out")
    parts = [
        _group(part) if isinstance(part, MetadataFilters) else _single(part)
        for part in filters.filters
    ]
    if filters.condition == FilterCondition.NOT:  # as LlamaIndex reads it: none of them holds
        return {"$not": {"$or": parts}}
    return {"$or" if filters.condition == FilterCondition.OR else "$and": parts}


def _single(filter: MetadataFilter) -> _Filter:
    if filter.operator not in _OPERATORS:
        raise InvalidFilterError(
            f"the filter on {filter.key!r} has the operator {filter.operator.value!r}, expected "
            f"one of {', '.join(repr(operator.value) for operator in _OPERATORS)}: nothing here "
            "searches inside a text"
        )
    if filter.operator == FilterOperator.ALL and not filter.value:
        raise InvalidFilterError(f"the filter on {filter.key!r} asks for all of no values")
    return _OPERATORS[filter.operator](filter.key, filter.value)
