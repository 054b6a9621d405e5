"""What callers give: queries and texts, each checked once, at the public call."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, TypeGuard, runtime_checkable

from colbert_rag.errors import InvalidQueryError


@runtime_checkable
class HasText(Protocol):
    """An object with a text, such as a document of an index."""

    @property
    def text(self) -> str:
        """The text."""


TextLike: TypeAlias = str | Mapping[str, object] | HasText
"""A text, a mapping with `text`, or an object with it."""


ORDERS = {
    "texts": "the query comes first, then the list of texts",
    "text": "the query comes first, then the text",
    "documents": "the documents come first, then the query",
}
"""Where a query stands in a call, by the argument beside it."""


def check_query(query: object, texts: object = None, name: str = "texts") -> None:
    """Refuse what nothing can be compared with.

    Args:
        query: The query.
        texts: What stands beside it in the call, to tell whether the two are swapped.
        name: What that argument is called, of `ORDERS`.

    Raises:
        InvalidQueryError: the query is blank or not a string.
    """
    # Nothing, or a number, is a query gone wrong, and no text that was meant for the other place.
    if isinstance(texts, str) and not isinstance(query, str | int | float | None):
        raise InvalidQueryError(
            f"query is {type(query).__name__} and {name} is a string, expected them the other way "
            f"round: {ORDERS[name]}"
        )
    _checked(query, "query")


def _checked(query: object, name: str) -> str:
    if not isinstance(query, str):
        raise InvalidQueryError(f"{name} is {type(query).__name__}, expected a string")
    if not query.strip():
        raise InvalidQueryError(f"{name} is empty or blank, expected some text to search for")
    return query


def has_words(text: str) -> bool:
    """Whether there is anything in a text to be found by.

    White space, punctuation and control characters are nothing: what ColBERT skips in documents
    (colbert/modeling/colbert.py, `skiplist`), and their kin in other scripts. Of a text of nothing
    else only special tokens are left. These are similar to any query, so that an empty text can
    score above one that is off the topic: it is ranked last whatever its score, and not searched.
    """
    return any(
        character not in string.punctuation and unicodedata.category(character)[0] not in "PZC"
        for character in text
    )


def read_texts(texts: object, name: str = "texts") -> list[str]:
    """The caller's texts as a list of our own, which stays as it is when the caller's changes.

    Raises:
        TypeError: not a list, or something in it has no text; says so of the argument `name`.
    """
    if not _is_list(texts):
        raise TypeError(
            f"{name} is {type(texts).__name__}, expected a list of texts, such as list({name})"
        )
    return [read_text(item, f"{name}[{index}]") for index, item in enumerate(texts)]


TextList: TypeAlias = tuple[list[str], Sequence[object]]
"""Texts, and what the caller gave for each."""


def read_lists(queries: object, texts: object) -> tuple[list[str], list[TextList]]:
    """Queries, and the texts of each: one list for all of them, or a list of lists.

    A list among the items makes it a list of lists, and then all of them must be lists: had the
    number of items a say, three texts would mean something else beside three queries.

    Raises:
        InvalidQueryError: a query is blank or not a string.
        TypeError: `queries` or `texts` is no list, or something in them is of another type.
        ValueError: there are more or fewer lists than queries.
    """
    if not _is_list(queries):
        raise TypeError(
            f"queries is {type(queries).__name__}, expected a list of queries, such as [query]"
        )
    read = [_checked(query, f"queries[{index}]") for index, query in enumerate(queries)]
    if not _is_list(texts):
        raise TypeError(
            f"texts is {type(texts).__name__}, expected a list of texts for all queries, or a list "
            "of lists: one for each query, in the order of the queries"
        )
    given = list(texts)
    lists = {index: item for index, item in enumerate(given) if _is_list(item)}
    if not lists:
        shared = read_texts(given), tuple(given)
        return read, [shared] * len(read)
    if len(lists) < len(given):
        one, other = (
            f"texts[{index}] is {type(given[index]).__name__}"
            for index in (min(lists), min(set(range(len(given))) - set(lists)))
        )
        raise TypeError(
            f"{one} and {other}, expected lists only, one for each query, or no list at all: "
            "texts for all queries"
        )
    if len(lists) != len(read):
        raise ValueError(
            f"texts holds {len(lists)} lists for {len(read)} queries, expected one for each. "
            "For one list of texts for all queries, give it without a list around it"
        )
    return read, [
        (read_texts(item, f"texts[{index}]"), tuple(item)) for index, item in lists.items()
    ]


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Whether something is a list of texts, and neither a text nor what holds one."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | Mapping | HasText)


def is_address(name: object) -> TypeGuard[str]:
    """Whether this is the address of a server, and no hub id, file or folder."""
    return isinstance(name, str) and name[:8].lower().startswith(("http://", "https://"))


def read_text(item: object, name: str = "text") -> str:
    """The text of one item.

    Raises:
        TypeError: it has none; says so of the argument `name`.
    """
    if isinstance(item, str):
        return item
    found = item.get("text") if isinstance(item, Mapping) else getattr(item, "text", None)
    if isinstance(found, str):
        return found
    kind = type(item).__name__
    if isinstance(item, Mapping) and "text" in item:
        kind = f"a mapping whose text is {type(found).__name__}"
    elif isinstance(item, Mapping):
        kind = f"a mapping with the keys {', '.join(map(repr, item))[:80] or 'none'}"
    advice = ": a mapping with the key 'text', or an object with the attribute text"
    if isinstance(getattr(item, "page_content", None), str):
        advice = (
            ". Of a document of LangChain, give the page_content, or give documents to "
            "colbert_rag.langchain.ColBERTRerank"
        )
    raise TypeError(f"{name} is {kind}, expected a string, or something with a text{advice}")
