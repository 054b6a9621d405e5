"""What goes into an index and what comes out of it: documents, hits, and what a write changed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from operator import add
from textwrap import shorten
from typing import TypeAlias, Union

from colbert_rag.wording import kind_of

# Spelled with Union: `|` cannot join a class and the name of what is being defined.
Json: TypeAlias = Union[bool, int, float, str, Sequence["Json"], Mapping[str, "Json"], None]  # noqa: UP007


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be found, under a name of its own.

    Attributes:
        id: Unique in the index.
        text: What is encoded.
        metadata: JSON values only. A key that contains a dot is stored, but no filter reaches it:
            in filters a dot leads into a nested mapping.
    """

    id: str
    text: str
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found.

    Attributes:
        document: The document.
        score: MaxSim: the sum over the query's rows of the best similarity each finds.
        query_rows: How many similarities the score sums.
    """

    document: Document
    score: float
    query_rows: int

    @property
    def mean(self) -> float:
        """The mean similarity, from -1 to 1: comparable between queries, as the sum is not."""
        return self.score / self.query_rows

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id

    @property
    def text(self) -> str:
        """The document's text."""
        return self.document.text

    @property
    def metadata(self) -> Mapping[str, Json]:
        """The document's metadata."""
        return self.document.metadata


@dataclass(frozen=True, slots=True)
class Stored:
    """What an index holds under an id, as far as a write needs it.

    Attributes:
        digest: `text_digest` of the text.
        metadata: The metadata.
    """

    digest: bytes
    metadata: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a write did, in documents; every document given is counted once.

    Attributes:
        added: Under an id the index did not know.
        updated: Under a known id, with another text or other metadata.
        unchanged: Already there, word for word; skipped without encoding.
        removed: Not given to `sync`, though from one of its sources.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0

    def __add__(self, other: Changes) -> Changes:
        """Both together."""
        return Changes(*map(add, astuple(self), astuple(other)))


DocumentLike: TypeAlias = Document | str | Mapping[str, Json]


def as_document(item: DocumentLike) -> Document:
    """Read a document, a bare text, or a mapping with `text` and perhaps `id` and `metadata`.

    A document without an id gets one from its text, so that adding the same text again is no news.
    The result shares nothing with `item`.

    Raises:
        TypeError: an id, text or metadata value has a type we cannot store.
        ValueError: an id is empty, a number is not finite, or a string is not valid Unicode.
    """
    if isinstance(item, str):
        item = Document("", item)
    elif isinstance(item, Mapping):
        item = _from_mapping(item)
    elif not isinstance(item, Document):
        raise TypeError(
            f"found {type(item).__name__}, expected a Document, a text, or a mapping with 'text'"
        )
    if not isinstance(item.text, str):
        raise TypeError(f"{called(item)} has a text of type {type(item.text).__name__}")
    if not isinstance(item.id, str):
        raise TypeError(f"id {item.id!r} is {kind_of(item.id)}, expected str")
    try:
        name = item.id or text_digest(item.text).hex()
        document = Document(name, item.text, _plain_metadata(item))
        for part in (document.id, document.text, metadata_json(document.metadata)):
            part.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{called(item)} holds a lone surrogate ({error}), which is not valid Unicode"
        ) from error
    return document


def as_documents(documents: Iterable[DocumentLike]) -> Iterator[Document]:
    """Each of what a caller gives, as a document.

    Raises:
        TypeError: a single document instead of several, or something that is none.
    """
    if isinstance(documents, str | Mapping | Document):
        raise TypeError("documents is a single document, expected several: put it in a list")
    try:  # not by its class: what has no more than `__getitem__` can be read, too
        given = iter(documents)
    except TypeError as error:
        found = type(documents).__name__
        raise TypeError(
            f"documents is {found}, expected several: a list of documents, or a generator"
        ) from error
    return map(as_document, given)


def _from_mapping(item: Mapping[str, Json]) -> Document:
    unknown = sorted(map(str, item.keys() - {"id", "text", "metadata"}))
    if "text" not in item or unknown:
        found = ", ".join(map(repr, sorted(map(str, item)))) or "none"
        raise ValueError(
            f"a document has the keys {found}, expected 'text' and perhaps 'id' and 'metadata'; "
            "put anything else under 'metadata'"
        )
    if item.get("id", None) == "":
        raise ValueError("a document has the empty id ''; leave 'id' out to get one from the text")
    metadata = item.get("metadata")
    # Types are checked once, by `as_document`, for both kinds of input.
    return Document(
        "" if item.get("id") is None else item["id"],  # type: ignore[arg-type]
        item["text"],  # type: ignore[arg-type]
        {} if metadata is None else metadata,  # type: ignore[arg-type]
    )


def _plain_metadata(document: Document) -> dict[str, Json]:
    if not isinstance(document.metadata, Mapping):
        raise TypeError(
            f"{called(document)} has metadata of type {type(document.metadata).__name__}, "
            "expected a mapping"
        )
    try:
        return {_key(key): _plain(value, str(key)) for key, value in document.metadata.items()}
    except (TypeError, ValueError) as error:
        raise type(error)(f"metadata of {called(document)}: {error}") from error
    except RecursionError:
        raise ValueError(
            f"metadata of {called(document)} is nested too deeply, or holds itself"
        ) from None


def called(document: Document) -> str:
    """A document in a message: by its id, or by how it begins where it has none yet."""
    if document.id:
        return f"document {document.id!r}"
    beginning = document.text if isinstance(document.text, str) else ""
    return f"the document that begins {shorten(beginning, 40, placeholder='...')!r}"


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key {key!r} is {kind_of(key)}, expected str")
    return key


def _plain(value: Json, where: str) -> Json:
    """Copy a JSON value, naming the key of anything that is not one."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where!r} is {value}, which JSON cannot express")
        return value
    if isinstance(value, Mapping):
        return {_key(key): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, where) for inner in value]
    raise TypeError(
        f"{where!r} is {kind_of(value)}; store a JSON value instead, such as the ISO 8601 "
        "text of a date"
    )


def text_digest(text: str) -> bytes:
    """Sixteen bytes that stand for a text; equal exactly for equal texts."""
    return hashlib.sha256(text.encode()).digest()[:16]


def metadata_json(metadata: Mapping[str, Json], *, canonical: bool = False) -> str:
    """Metadata as one line of JSON; `canonical` spells equal metadata equally."""
    return json.dumps(
        metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=canonical
    )


def is_unicode(text: str) -> bool:
    """Whether a text can be stored: Python's may hold half a character, a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_ids(ids: Iterable[str]) -> list[str]:
    """The ids as a list.

    Raises:
        TypeError: one string instead of several, or an id that is no string.
        ValueError: an id is not valid Unicode.
    """
    if isinstance(ids, str):
        raise TypeError(f"ids is the one string {ids!r}, expected several: [{ids!r}]")
    if isinstance(ids, Mapping):
        raise TypeError(f"ids is the mapping {ids!r}; to remove by metadata, pass it as filter=")
    listed = list(ids)
    for name in listed:
        if not isinstance(name, str):
            raise TypeError(f"id {name!r} is {kind_of(name)}, expected str")
        if not is_unicode(name):
            raise ValueError(f"id {name!r} holds a lone surrogate, which is not valid Unicode")
    return listed


def check_found(ids: Iterable[str], found: Container[str], where: str) -> None:
    """Refuse ids that an index does not hold; `where` names the index.

    Raises:
        KeyError: names them.
    """
    missing = [name for name in ids if name not in found]
    if missing:
        some = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise KeyError(f"{where} holds no document with id {some}")
