"""What callers give: queries and texts, each checked once, at the public call."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from colbert_rag.errors import InvalidQueryError


@runtime_checkable
class HasText(Protocol):
    """An object with a text, such as a document of an index."""

    @property
    def text(self) -> str:
        """The text."""


TextLike: TypeAlias = str | Mapping[str, object] | HasText
"""A text, a mapping with `text`, or an object with it."""


def check_query(query: object) -> None:
    """Refuse what nothing can be compared with.

    Raises:
        InvalidQueryError: the query is blank or not a string.
    """
    if not isinstance(query, str):
        raise InvalidQueryError(f"query is {type(query).__name__}, expected a string")
    if not query.strip():
        raise InvalidQueryError("query is empty or blank, expected some text to search for")


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


def read_texts(texts: object) -> list[str]:
    """The caller's texts as a list of our own, which stays as it is when the caller's changes.

    Raises:
        TypeError: not a list, or something in it has no text.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Sequence):
        raise TypeError(
            f"texts is {type(texts).__name__}, expected a list of texts, such as list(texts)"
        )
    return [read_text(item, f"texts[{index}]") for index, item in enumerate(texts)]


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
    raise TypeError(f"{name} is {kind}, expected a string, or something with a text")
