"""Values of Python that JSON does not know, as those it does."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime

from colbert_rag.index.filters import parse_filter


def plain_filter(filter: Mapping[str, object] | None) -> dict[str, object] | None:
    """A filter in plain JSON values: sets as lists, dates as the moments they stand for.

    Raises:
        InvalidFilterError: it is not in the language.
    """
    if parse_filter(filter) is None or filter is None:
        return None
    return {key: _plain(value) for key, value in filter.items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return value
