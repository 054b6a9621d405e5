"""A collection as we lay it out: what it is made with, and documents as its points."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from qdrant_client import QdrantClient, models
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexCorruptError, IndexStorageError
from colbert_rag.index.documents import Document, Stored, text_digest
from colbert_rag.index.info import IndexInfo

KeyType: TypeAlias = Literal["keyword", "integer", "float", "bool", "datetime"]
Record: TypeAlias = models.Record | models.ScoredPoint

TOKENS = "colbert"
MEAN = "mean"
SCROLL = 1000
_INFO = "colbert_rag"
_NAMESPACE = uuid.UUID("8f2b5e0e-6a53-5c2e-9d0f-3f6d3c1f7a10")

# A server refuses requests above 32 MiB. A float16 takes at most 24 bytes as JSON, 17 on average.
_REQUEST_BYTES = 30 * 2**20
_VALUE_BYTES = 24
_FETCH = 64


def create_collection(
    client: QdrantClient,
    collection: str,
    info: IndexInfo,
    prefetch: int | None,
    shard_number: int | None,
    replication_factor: int | None,
) -> None:
    """Make a collection for exact search, which remembers the model.

    Raises:
        IndexStorageError: the server is too old to remember it.
    """
    vectors = {
        TOKENS: models.VectorParams(
            size=info.dim,
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16,
            multivector_config=models.MultiVectorConfig(
                comparator=models.MultiVectorComparator.MAX_SIM
            ),
            hnsw_config=models.HnswConfigDiff(m=0),  # explicit: the default builds a graph
        )
    }
    if prefetch is not None:
        vectors[MEAN] = models.VectorParams(
            size=info.dim, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
        )
    client.create_collection(
        collection,
        vectors_config=vectors,
        shard_number=shard_number,
        replication_factor=replication_factor,
        metadata={_INFO: info.to_json()},
    )
    if _INFO not in (client.get_collection(collection).config.metadata or {}):
        client.delete_collection(collection)
        raise IndexStorageError(
            "the server does not keep the metadata of a collection, so it could not remember which "
            "model made it: upgrade Qdrant to 1.16 or later"
        )
    index_payload(client, collection, "text_digest", "keyword")


def read_collection(client: QdrantClient, collection: str) -> tuple[IndexInfo, bool]:
    """Who made a collection, and whether it holds mean vectors."""
    config = client.get_collection(collection).config
    record = (config.metadata or {}).get(_INFO)
    vectors = config.params.vectors
    if not isinstance(record, dict) or not isinstance(vectors, dict) or TOKENS not in vectors:
        raise IndexCorruptError(
            f"collection {collection!r} was not made by colbert_rag: it does not say which model "
            "its vectors are from. It was left untouched; choose another name"
        )
    return IndexInfo.from_json(record, f"collection {collection!r}"), MEAN in vectors


def index_payload(client: QdrantClient, collection: str, key: str, kind: KeyType) -> None:
    """Let the server find the documents with some value of a key without reading all."""
    options = client.init_options
    if options.get("location") == ":memory:" or options.get("path") is not None:
        return  # the embedded form has no payload indexes, and warns
    client.create_payload_index(collection, key, models.PayloadSchemaType(kind), wait=True)


def _point_id(name: str) -> str:
    """Qdrant takes whole numbers and UUIDs only."""
    return str(uuid.uuid5(_NAMESPACE, name))


def payload_of(record: Record) -> models.Payload:
    """What a point carries beside its vectors."""
    return record.payload or {}


def id_of(record: Record) -> str:
    """Our id of a point."""
    return str(payload_of(record)["id"])


def document_of(record: Record) -> Document:
    """The document that a point holds."""
    payload = payload_of(record)
    return Document(payload["id"], payload["text"], payload["metadata"])


def vectors_of(record: models.Record) -> Tensor:
    """The token vectors of a point, `(rows, dim)`, float16."""
    assert isinstance(record.vector, dict)
    return torch.tensor(record.vector[TOKENS], dtype=torch.float16)


def mean_of(rows: Tensor) -> list[float]:
    """The direction of a text as a whole."""
    mean: list[float] = torch.nn.functional.normalize(rows.mean(0), dim=0).tolist()
    return mean


class Points:
    """The points of a collection by our ids: what `ingest` needs, and reading in batches."""

    def __init__(
        self, client: QdrantClient, collection: str, info: IndexInfo, *, means: bool
    ) -> None:
        """Serve the points of `collection`, which hold mean vectors if `means` is set."""
        self.info = info
        self._client = client
        self._collection = collection
        self._means = means
        self._order = 0

    def known(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        """What is held under some ids."""
        records = self.fetch(ids, payload=["id", "text_digest", "metadata"])
        return {
            id_of(record): Stored(
                bytes.fromhex(payload_of(record)["text_digest"]), payload_of(record)["metadata"]
            )
            for record in records
        }

    def embeddings_for(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of those of the texts that are held."""
        digests = {text_digest(text).hex(): text for text in texts}
        listed = list(digests)
        found: dict[str, Tensor] = {}
        for start in range(0, len(listed), _FETCH):
            some = listed[start : start + _FETCH]
            chosen = models.Filter(
                must=[models.FieldCondition(key="text_digest", match=models.MatchAny(any=some))]
            )
            for record in self.scroll(chosen, payload=["text_digest"], vectors=True):
                found[digests[payload_of(record)["text_digest"]]] = vectors_of(record)
        return found

    def write(
        self,
        documents: Sequence[Document],
        vectors: TokenEmbeddings,
        edited: Sequence[Document],
    ) -> None:
        """Put documents in place of any with the same ids, and set the metadata of `edited`."""
        points: list[models.PointStruct] = []
        size = 0
        for document, rows in zip(documents, vectors, strict=True):
            point, needed = self._point(document, rows)
            if points and size + needed > _REQUEST_BYTES:
                self._client.upsert(self._collection, points, wait=True)
                points, size = [], 0
            points.append(point)
            size += needed
        if points:
            self._client.upsert(self._collection, points, wait=True)
        if edited:
            changes = [
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(
                        payload={"metadata": document.metadata}, points=[_point_id(document.id)]
                    )
                )
                for document in edited
            ]
            self._client.batch_update_points(self._collection, changes, wait=True)

    def _point(self, document: Document, rows: Tensor) -> tuple[models.PointStruct, int]:
        payload = {
            "id": document.id,
            "text": document.text,
            "metadata": document.metadata,
            "text_digest": text_digest(document.text).hex(),
            "order": self._next(),
        }
        size = rows.numel() * _VALUE_BYTES + len(json.dumps(payload))
        if size > _REQUEST_BYTES:
            raise ValueError(
                f"document {document.id!r} with {len(rows)} token vectors takes up to "
                f"{size >> 20} MiB, and Qdrant refuses requests above 32: split it, or make the "
                "index with token_pooling"
            )
        vector: dict[str, models.Vector] = {TOKENS: rows.tolist()}
        if self._means:
            vector[MEAN] = mean_of(rows.float())
        return models.PointStruct(id=_point_id(document.id), vector=vector, payload=payload), size

    def _next(self) -> int:
        """A number above all earlier ones, also those of other writers, as far as clocks agree."""
        self._order = max(self._order + 1, time.time_ns())
        return self._order

    def fetch(
        self, ids: Iterable[str], *, payload: list[str] | None = None, vectors: bool = False
    ) -> list[models.Record]:
        """Points by our ids, in no order; `payload` names what is wanted of it, None is all."""
        names = [_point_id(name) for name in ids]
        step = _FETCH if vectors else SCROLL
        records: list[models.Record] = []
        for start in range(0, len(names), step):
            records += self._client.retrieve(
                self._collection,
                names[start : start + step],
                with_payload=True if payload is None else payload,
                with_vectors=[TOKENS] if vectors else False,
            )
        return records

    def scroll(
        self, chosen: models.Filter | None, *, payload: list[str], vectors: bool = False
    ) -> Iterator[models.Record]:
        """All points that pass `chosen`, by rising point id."""
        offset = None
        while True:
            records, offset = self._client.scroll(
                self._collection,
                scroll_filter=chosen,
                limit=_FETCH if vectors else SCROLL,
                offset=offset,
                with_payload=payload,
                with_vectors=[TOKENS] if vectors else False,
            )
            yield from records
            if offset is None:
                return
