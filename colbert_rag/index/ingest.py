"""What every index does with documents before it stores them: skip, reuse, encode, pool, check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.documents import (
    Changes,
    Document,
    DocumentLike,
    Known,
    as_document,
    metadata_json,
    text_digest,
)
from colbert_rag.index.pooling import pool_tokens
from colbert_rag.index.protocol import Encoder, IndexInfo
from colbert_rag.settings import whole_number


class Store(Protocol):
    """The writing side of an index."""

    @property
    def info(self) -> IndexInfo:
        """Which model made the index."""
        ...

    def known(self, ids: Sequence[str]) -> Mapping[str, Known]:
        """What is held under some ids."""
        ...

    def embeddings_for(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of those of the texts that are held."""
        ...

    def write(
        self,
        documents: Sequence[Document],
        vectors: TokenEmbeddings,
        edited: Sequence[Document],
    ) -> None:
        """Put documents in place of any with the same ids, and set the metadata of `edited`."""
        ...


def add_documents(
    store: Store,
    colbert: Encoder,
    documents: Iterable[DocumentLike],
    *,
    batch_size: int,
    show_progress: bool,
) -> Changes:
    """Encode and store documents, a batch at a time, so that a killed run can be run again."""
    batch_size = whole_number("batch_size", batch_size, least=1)
    if isinstance(documents, str | Mapping):
        raise TypeError("documents is a single document, expected several: put it in a list")
    batches = _batches(documents, batch_size)
    if show_progress:
        batches = _watched(batches, len(documents) if isinstance(documents, Sized) else None)
    changes = Changes()
    for batch in batches:
        changes += _add_batch(store, colbert, batch)
    return changes


def _watched(batches: Iterator[list[Document]], total: int | None) -> Iterator[list[Document]]:
    """The same batches, with a bar that counts those that are done."""
    with tqdm(total=total, unit=" documents") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _batches(documents: Iterable[DocumentLike], size: int) -> Iterator[list[Document]]:
    """Documents in groups in which no id occurs twice."""
    batch: dict[str, Document] = {}
    for item in documents:
        document = as_document(item)
        if document.id in batch:
            yield list(batch.values())
            batch = {}
        batch[document.id] = document
        if len(batch) == size:
            yield list(batch.values())
            batch = {}
    if batch:
        yield list(batch.values())


def _add_batch(store: Store, colbert: Encoder, batch: Sequence[Document]) -> Changes:
    fresh, edited, changes = compare(batch, store.known([document.id for document in batch]))
    if fresh or edited:
        vectors = _encoded(store, colbert, [document.text for document in fresh])
        store.write(fresh, check_vectors(fresh, vectors, store.info.dim), edited)
    return changes


def compare(
    batch: Sequence[Document], known: Mapping[str, Known]
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


def _encoded(store: Store, colbert: Encoder, texts: Sequence[str]) -> TokenEmbeddings:
    """Vectors of all texts, encoding each text once and none that the store holds."""
    distinct = list(dict.fromkeys(texts))
    vectors = store.embeddings_for(distinct)
    missing = [text for text in distinct if text not in vectors]
    if missing:
        encoded = colbert.encode_documents(missing)
        if len(encoded) != len(missing):
            raise ValueError(
                f"the model gave vectors for {len(encoded)} of {len(missing)} documents"
            )
        pooling = store.info.token_pooling
        if pooling is not None:
            encoded = pool_tokens(encoded, pooling)
        vectors |= zip(missing, encoded.to("cpu"), strict=True)
    return TokenEmbeddings.from_list([vectors[text] for text in texts], dim=store.info.dim)


def check_vectors(
    documents: Sequence[Document], vectors: TokenEmbeddings, dim: int
) -> TokenEmbeddings:
    """The vectors as an index stores them: float16, on the CPU.

    Raises:
        ValueError: their width or number is wrong, one is not finite, or a document has none.
    """
    if len(vectors) != len(documents):
        raise ValueError(f"found vectors of {len(vectors)} texts for {len(documents)} documents")
    if vectors.dim != dim:
        raise ValueError(f"the vectors are {vectors.dim} wide, expected {dim} as the index holds")
    halves = vectors.to("cpu", torch.float16)
    empty = (halves.lengths == 0).nonzero()[:, 0].tolist()
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


def add_encoded(
    store: Store, documents: Sequence[Document], embeddings: TokenEmbeddings
) -> Changes:
    """Store documents with the vectors that were made for them."""
    given = [as_document(document) for document in documents]
    if len({document.id for document in given}) < len(given):
        raise ValueError("two of the documents have the same id, and only one can be stored")
    halves = check_vectors(given, embeddings, store.info.dim)
    fresh, edited, changes = compare(given, store.known([document.id for document in given]))
    if len(fresh) < len(given):
        places = {document.id: place for place, document in enumerate(given)}
        halves = halves[[places[document.id] for document in fresh]]
    store.write(fresh, halves, edited)
    return changes
