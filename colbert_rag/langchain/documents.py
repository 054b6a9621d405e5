"""LangChain's documents as texts to rank and as documents of an index, and back."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.documents import Document

from colbert_rag.adapter.retrieving import START_KEY, as_given, check_metadata
from colbert_rag.index import Document as StoredDocument
from colbert_rag.index.documents import as_document, metadata_json
from colbert_rag.settings import meant

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """Says of a component, once, that `rank_fields` names what no document has.

    Equal to every other: pydantic compares private attributes.
    """

    told: bool = field(default=False, compare=False)

    def over(self, documents: Iterable[Document], rank_fields: Sequence[str]) -> Iterator[Document]:
        """The same documents; the warning comes after the last."""
        missing = set(rank_fields)
        document = None
        for document in documents:
            yield document
            missing.difference_update(document.metadata)
        if document is None or not missing or self.told:
            return
        self.told = True
        name, keys = min(missing), list(document.metadata)
        near = meant(name, keys)
        held = ", ".join(map(repr, keys)) or "none"
        found = f"; did you mean {near}?" if near else f"; the last one has {held}"
        logger.warning(
            "rank_fields names %r, which is in the metadata of no document%s", name, found
        )


def text_to_rank(document: Document, rank_fields: Sequence[str]) -> str:
    """The values of some metadata and the content, joined by spaces.

    Metadata describes a text and does not replace it: without content there is nothing to rank.
    """
    content = document.page_content
    if not isinstance(content, str) or not content.strip():
        return content
    values = [_shown(document.metadata.get(name)) for name in rank_fields]
    return " ".join([*filter(None, values), content])


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def to_stored(
    document: Document, *, name: str | None, rank_fields: Sequence[str]
) -> StoredDocument:
    """What an index stores of a document, under a name or the document's own id.

    Without either, the id comes from content and metadata, so that adding it again changes
    nothing.

    Raises:
        TypeError: this is no `Document`, or its metadata not JSON.
        ValueError: its metadata uses a key of ours.
    """
    if not isinstance(document, Document):
        raise TypeError(
            f"found {type(document).__name__}, expected langchain_core.documents.Document"
        )
    check_metadata(document.metadata, f"document {name or document.id!r}")
    stored = as_document(
        StoredDocument(name or document.id or "", document.page_content, document.metadata)
    )
    if not (name or document.id):
        stored = replace(stored, id=_name(stored))
    text = text_to_rank(document, rank_fields)
    start = len(text) - len(stored.text)
    if not start:
        return stored
    return replace(stored, text=text, metadata={**stored.metadata, START_KEY: start})


def to_document(stored: StoredDocument, **added: Any) -> Document:
    """The document that was stored, with more metadata."""
    given = as_given(stored)
    return Document(given.text, id=given.id, metadata={**given.metadata, **added})


def _name(document: StoredDocument) -> str:
    """Not from the text alone: two pages that read the same are still two."""
    described = metadata_json(document.metadata, canonical=True)
    return hashlib.sha256(f"{document.text}\n{described}".encode()).hexdigest()[:32]
