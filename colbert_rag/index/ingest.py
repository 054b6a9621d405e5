"""What happens to documents before an index stores them: skip, reuse, encode, pool, check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import ScoringError
from colbert_rag.index.conditions import Condition, OneOf
from colbert_rag.index.documents import (
    Changes,
    Document,
    DocumentLike,
    Stored,
    as_documents,
    called,
    metadata_json,
    text_digest,
)
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.pooling import pool_tokens
from colbert_rag.inputs import has_words
from colbert_rag.model import Model
from colbert_rag.progress import progress_bar


def in_batches(
    documents: Iterable[Document], size: int, *, total: int | None, show_progress: bool
) -> Iterator[list[Document]]:
    """Documents in groups of at most `size`, in none of which an id occurs twice."""
    with progress_bar(None, total=total, unit=" documents", show=show_progress) as bar:
        batch: dict[str, Document] = {}
        for document in documents:
            if document.id in batch:
                yield list(batch.values())
                bar.update(len(batch))
                batch = {}
            batch[document.id] = document
            if len(batch) == size:  # now, and not when the next comes, which may take long
                yield list(batch.values())
                bar.update(len(batch))
                batch = {}
        if batch:
            yield list(batch.values())
            bar.update(len(batch))


def compare(
    batch: Sequence[Document], known: Mapping[str, Stored]
) -> tuple[list[Document], list[Document], Changes]:
    """Which documents need vectors, which only new metadata, and what that will have changed."""
    fresh: list[Document] = []
    edited: list[Document] = []
    for document in batch:
        held = known.get(document.id)
        if held is None or held.digest != text_digest(document.text):
            fresh.append(document)
        elif metadata_json(held.metadata, canonical=True) != metadata_json(
            document.metadata, canonical=True
        ):
            edited.append(document)
    added = sum(document.id not in known for document in fresh)
    updated = len(fresh) - added + len(edited)
    return fresh, edited, Changes(added, updated, len(batch) - added - updated)


def encode_missing(
    texts: Sequence[str], held: Mapping[str, Tensor], colbert: Model, info: IndexInfo
) -> TokenEmbeddings:
    """Vectors of all texts, in order; each text that is not held is encoded once."""
    missing = [text for text in dict.fromkeys(texts) if text not in held]
    vectors = dict(held)
    if missing:
        encoded = colbert.encode_documents(missing)
        info.check_model(colbert)
        if len(encoded) != len(missing):
            raise ValueError(
                f"the model gave vectors for {len(encoded)} of {len(missing)} documents"
            )
        if info.token_pooling is not None:
            encoded = pool_tokens(encoded, info.token_pooling)
        vectors |= zip(missing, encoded.to("cpu"), strict=True)
    return TokenEmbeddings.from_list([vectors[text] for text in texts], dim=info.dim)


def encode_queries(queries: Sequence[str], colbert: Model, info: IndexInfo) -> TokenEmbeddings:
    """Vectors of queries, by the model that made the index."""
    vectors = colbert.encode_queries(queries)
    info.check_model(colbert)
    return vectors


def check_queries(queries: TokenEmbeddings, dim: int) -> None:
    """Refuse vectors that no index of width `dim` can be searched by.

    Raises:
        ScoringError: one is not finite.
        ValueError: they have another width.
    """
    if queries.dim != dim:
        raise ValueError(f"the queries are {queries.dim} wide, expected {dim} as the index holds")
    if not bool(torch.isfinite(queries.values).all()):
        raise ScoringError("the vectors of a query hold NaN or infinity, so nothing can be ranked")


def check_vectors(
    documents: Sequence[Document], vectors: TokenEmbeddings, dim: int
) -> TokenEmbeddings:
    """The vectors as an index stores them: float16, on the CPU; none of a text without words.

    Raises:
        ValueError: their width or number is wrong, one is not finite, or a document with words has
            none.
    """
    if len(vectors) != len(documents):
        raise ValueError(f"found vectors of {len(vectors)} texts for {len(documents)} documents")
    if vectors.dim != dim:
        raise ValueError(f"the vectors are {vectors.dim} wide, expected {dim} as the index holds")
    halves = vectors.to("cpu", torch.float16)
    worded = torch.tensor([has_words(document.text) for document in documents], dtype=torch.bool)
    if not bool(worded.all()):
        lengths = halves.lengths * worded
        halves = TokenEmbeddings.from_lengths(
            halves.values[worded.repeat_interleave(halves.lengths)], lengths
        )
    empty = (worded & (halves.lengths == 0)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"document {documents[empty[0]].id!r} has no token vectors")
    if not _all_finite(halves.values):
        broken = next(
            document.id
            for document, rows in zip(documents, halves, strict=True)
            if not _all_finite(rows)
        )
        raise ValueError(
            f"the vectors of document {broken!r} hold NaN, infinity, or more than float16 can "
            "express; nothing of its batch was stored"
        )
    return halves


def _all_finite(halves: Tensor) -> bool:
    """Whether float16 values hold neither NaN nor infinity; `isfinite` takes ten times as long."""
    if halves.numel() == 0:
        return True
    # Without the sign, NaN and infinity are the bit patterns from that of infinity on.
    return int((halves.view(torch.int16) & 0x7FFF).max()) < 0x7C00


class SeenSources:
    """Notes which documents went by and where they are from, so as to tell what has vanished.

    Attributes:
        ids: Of the documents that went by.
    """

    def __init__(self, key: str, sources: Iterable[str]) -> None:
        """Read sources under the metadata `key`; `sources` count as seen from the start.

        Raises:
            TypeError: one string instead of several.
            ValueError: the key leads into a nested mapping.
        """
        if isinstance(sources, str):
            raise TypeError(f"sources is one string, expected several: [{sources!r}]")
        if "." in key:
            raise ValueError(f"source_key is {key!r}, expected a key without a dot")
        self.ids: set[str] = set()
        self._key = key
        self._sources = set(sources)

    @property
    def sources(self) -> Condition:
        """Lets pass what is from one of the sources seen so far."""
        return OneOf.of((self._key,), sorted(self._sources))

    def watch(self, documents: Iterable[DocumentLike]) -> Iterator[Document]:
        """The same documents.

        Raises:
            ValueError: one does not say where it is from.
        """
        for document in as_documents(documents):
            source = document.metadata.get(self._key)
            if not isinstance(source, str):
                raise ValueError(
                    f"{called(document)} has {source!r} as its {self._key!r}, expected text: "
                    "without a source nobody can say what has vanished from it"
                )
            self.ids.add(document.id)
            self._sources.add(source)
            yield document
