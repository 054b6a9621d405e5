"""Writes the documents of a collection in a codebook, and trains one where that is worth it.

Nothing is locked. A document that is not written in the codebook, for whatever reason, is scored
exactly by every search, so a writer that knows nothing of codes, or of a newer codebook, loses
nothing; and two who train at the same time only work twice.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from qdrant_client import QdrantClient, models
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexStorageError
from colbert_rag.index.kmeans import SPREAD, centroids_for, sample_for, train
from colbert_rag.index.qdrant.codebook import HIGHEST_BASE, Codebook, as_codes
from colbert_rag.index.qdrant.collection import (
    CODES,
    TOKENS,
    Coding,
    coded_in,
    index_payload,
    payload_of,
    vectors_of,
)
from colbert_rag.index.qdrant.records import Records
from colbert_rag.index.qdrant.shelf import CodesRecord, Shelf
from colbert_rag.progress import Bar, progress_bar

logger = logging.getLogger(__name__)

_SEED = 0

# A codebook is trained anew when there are so many times the documents that it was trained for, or
# when tokens are so many times as far from their centroids.
_GROWN, _DRIFTED = 2.0, 1.15

# Documents are removed while others are being coded.
_ATTEMPTS = 3


_Coded: TypeAlias = tuple[models.Record, Coding]
"""A document as it was read, with its place in the order, and what it is to have."""


class Coder:
    """Codes one collection."""

    def __init__(
        self, client: QdrantClient, collection: str, dim: int, shelf: Shelf, device: str
    ) -> None:
        """Nothing is done yet; `device` is where centroids are found."""
        self._client, self._collection = client, collection
        self._records = Records(client, collection)
        self._dim, self._shelf, self._device = dim, shelf, device

    def optimize(self, *, show_progress: bool) -> None:
        """Train a codebook if there is none that fits, and write every document in it."""
        documents = self._client.count(self._collection, exact=True).count
        record = self._shelf.record()
        codebook = None if record is None else self._shelf.load(record)
        index_payload(self._client, self._collection, CODES, "integer")
        with progress_bar("code", total=documents, show=show_progress) as bar:
            if record is None or codebook is None or self._is_stale(record, codebook, documents):
                self._exchange(record, codebook, documents, bar)
            else:
                self._fill(codebook, None, bar)

    def _is_stale(self, record: CodesRecord, codebook: Codebook, documents: int) -> bool:
        if documents >= _GROWN * record.documents:
            return True
        return self._distance(codebook) > _DRIFTED * record.distance

    def _exchange(
        self, before: CodesRecord | None, old: Codebook | None, documents: int, bar: Bar
    ) -> None:
        """Train a codebook, and change over to it; others search with the old one meanwhile."""
        sample, count = self._sample(documents)
        if not len(sample):
            return
        centroids = train(sample, count, seed=_SEED, device=self._device)
        # As they will be read: every client must find the same centroid nearest.
        codebook = Codebook.from_bytes(
            secrets.randbelow(HIGHEST_BASE), Codebook(0, centroids).to_bytes()
        )
        digest = self._shelf.put(codebook)
        self._fill(codebook, old, bar)
        record = CodesRecord(
            base=codebook.base,
            digest=digest,
            documents=documents,
            distance=self._distance(codebook),
            retired=() if before is None else (*before.retired, before.base),
        )
        self._shelf.publish(codebook, record)
        self._fill(codebook, old, bar)  # what was added while the others were coded
        if old is not None:
            self._forget(old, codebook)
        self._shelf.tidy()
        logger.info(
            "%s: %d centroids for %d documents", self._collection, len(centroids), documents
        )

    def _sample(self, documents: int) -> tuple[Tensor, int]:
        """Vectors to train with, and how many centroids they are for.

        Documents come by rising point id, which is as good as random.
        """
        random = np.random.default_rng(_SEED)
        chosen: list[Tensor] = []
        count = read = wanted = 0
        share = 1.0
        for page in self._records.pages(None, payload=["order"], vectors=[TOKENS]):
            vectors = self._vectors(page).values
            if not wanted and len(vectors):
                mean = len(vectors) / len(page)
                count = centroids_for(mean * documents)
                most = sample_for(mean * documents, count, self._dim)
                wanted = math.ceil(min(documents, SPREAD * most / mean))
                share = min(1.0, most / (wanted * mean))
            size = math.ceil(share * len(vectors))
            rows = np.sort(random.choice(len(vectors), size, replace=False))
            chosen.append(vectors[torch.from_numpy(rows)])
            read += len(page)
            if wanted and read >= wanted:
                break
        return torch.cat(chosen), count

    def _distance(self, codebook: Codebook) -> float:
        """Of tokens from their centroids, on average, in some documents."""
        page = next(self._records.pages(None, payload=["order"], vectors=[TOKENS]))
        _, similarities = codebook.centroids.nearest(self._vectors(page).values)
        return float((1 - similarities).mean()) if len(similarities) else 0.0

    def _vectors(self, page: Sequence[models.Record]) -> TokenEmbeddings:
        return TokenEmbeddings.from_list(
            [vectors_of(record, self._dim) for record in page], dim=self._dim
        )

    def _fill(self, codebook: Codebook, old: Codebook | None, bar: Bar) -> None:
        """Write what is not written in the codebook, and keep what is in the old one."""
        near = Codebook(codebook.base, codebook.centroids.to(self._device))
        missing = models.Filter(must_not=[coded_in(codebook.base)])
        vectors = [TOKENS] if old is None else [TOKENS, CODES]
        for page in self._records.pages(missing, payload=["order", CODES], vectors=vectors):
            codings = near.documents(self._vectors(page))
            if old is not None:
                codings = [_with(old, at, new) for at, new in zip(page, codings, strict=True)]
            self._write(list(zip(page, codings, strict=True)))
            bar.update(len(page))

    def _forget(self, old: Codebook, codebook: Codebook) -> None:
        """Take the codes of an old codebook out of documents that are in the new one."""
        both = models.Filter(must=[coded_in(old.base), coded_in(codebook.base)])
        for page in self._records.pages(both, payload=["order"], vectors=[CODES]):
            kept = [as_codes(codebook.own(_codes_of(record))) for record in page]
            self._write(
                [(at, Coding(own, (codebook.base,))) for at, own in zip(page, kept, strict=True)]
            )

    def _write(self, coded: Sequence[_Coded]) -> None:
        """Set the codes of documents, but of none that was replaced since it was read."""
        for attempt in range(_ATTEMPTS):
            operations = _operations(coded)
            if not operations:
                return
            try:
                self._client.batch_update_points(self._collection, operations, wait=True)
            except (IndexStorageError, KeyError):  # one was removed, perhaps
                if attempt == _ATTEMPTS - 1:
                    raise
                ids = [record.id for record, _ in coded]
                found = self._client.retrieve(self._collection, ids, with_payload=False)
                there = {record.id for record in found}
                coded = [at for at in coded if at[0].id in there]
            else:
                return


def _with(old: Codebook, record: models.Record, new: Coding) -> Coding:
    """The new codes beside those of an old codebook, if the document has such."""
    if old.base not in payload_of(record).get(CODES, ()):
        return new
    indices = old.own(_codes_of(record)) + list(new.codes.indices)
    return Coding(as_codes(indices), (old.base, *new.bases))


def _operations(coded: Sequence[_Coded]) -> list[models.UpdateOperation]:
    points = [
        models.PointVectors(id=record.id, vector={CODES: coding.codes})
        for record, coding in coded
        if coding.codes.indices
    ]
    operations: list[models.UpdateOperation] = []
    if points:
        changes = models.UpdateVectors(points=points, update_filter=_unchanged(coded))
        operations.append(models.UpdateVectorsOperation(update_vectors=changes))
    for bases in sorted({coding.bases for _, coding in coded}):
        some = [at for at in coded if at[1].bases == bases]
        change = models.SetPayload(payload={CODES: list(bases)}, filter=_unchanged(some))
        operations.append(models.SetPayloadOperation(set_payload=change))
    return operations


def _unchanged(coded: Sequence[_Coded]) -> models.Filter:
    """Who is still as it was read: replacing a document gives it another place in the order."""
    orders = [payload_of(record)["order"] for record, _ in coded]
    return models.Filter(
        must=[
            models.HasIdCondition(has_id=[record.id for record, _ in coded]),
            models.FieldCondition(key="order", match=models.MatchAny(any=orders)),
        ]
    )


def _codes_of(record: models.Record) -> models.SparseVector:
    assert isinstance(record.vector, dict)
    codes = record.vector.get(CODES)
    return codes if isinstance(codes, models.SparseVector) else as_codes([])
