"""A collection as we lay it out: what it is made with, and documents as its points."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from qdrant_client import QdrantClient, models
from torch import Tensor

from colbert_rag.errors import IndexCorruptError, IndexStorageError
from colbert_rag.index.documents import Document, text_digest
from colbert_rag.index.info import IndexInfo

KeyType: TypeAlias = Literal["keyword", "integer", "float", "bool", "datetime"]
Datatype: TypeAlias = Literal["float16", "turbo8", "turbo4"]
Record: TypeAlias = models.Record | models.ScoredPoint

TOKENS = "colbert"
MEAN = "mean"
CODES = "codes"
"""A sparse vector, and in the payload the codebooks that it is written in."""

SCROLL = 1000
_INFO = "colbert_rag"
_NAMESPACE = uuid.UUID("8f2b5e0e-6a53-5c2e-9d0f-3f6d3c1f7a10")

# A server refuses requests above 32 MiB. A float16 takes at most 24 bytes as JSON, 17 on average.
_REQUEST_BYTES = 30 * 2**20
_VALUE_BYTES = 24
_CODE_BYTES = 16
FETCH = 64


def create_collection(
    client: QdrantClient,
    collection: str,
    info: IndexInfo,
    *,
    means: bool,
    codes: bool,
    datatype: Datatype,
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
            datatype=models.Datatype(datatype),
            multivector_config=models.MultiVectorConfig(
                comparator=models.MultiVectorComparator.MAX_SIM
            ),
            hnsw_config=models.HnswConfigDiff(m=0),  # explicit: the default builds a graph
        )
    }
    if means:
        vectors[MEAN] = models.VectorParams(
            size=info.dim, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
        )
    client.create_collection(
        collection,
        vectors_config=vectors,
        sparse_vectors_config={CODES: models.SparseVectorParams()} if codes else None,
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


@dataclass(frozen=True, slots=True)
class Held:
    """What a collection is made for.

    Attributes:
        info: Which model made it.
        means: Whether documents have mean vectors.
        codes: Whether they may have codes.
        datatype: How the server stores token vectors.
    """

    info: IndexInfo
    means: bool
    codes: bool
    datatype: str


def read_collection(client: QdrantClient, collection: str) -> Held:
    """What a collection holds.

    Raises:
        IndexCorruptError: it was made by somebody else.
    """
    config = client.get_collection(collection).config
    record = (config.metadata or {}).get(_INFO)
    vectors = config.params.vectors
    if not isinstance(record, dict) or not isinstance(vectors, dict) or TOKENS not in vectors:
        raise IndexCorruptError(
            f"collection {collection!r} was not made by colbert_rag: it does not say which model "
            "its vectors are from. It was left untouched; choose another name"
        )
    info = IndexInfo.from_json(record, f"collection {collection!r}")
    return Held(
        info,
        means=MEAN in vectors,
        codes=CODES in (config.params.sparse_vectors or {}),
        datatype=models.Datatype(vectors[TOKENS].datatype or models.Datatype.FLOAT32).value,
    )


def index_payload(client: QdrantClient, collection: str, key: str, kind: KeyType) -> None:
    """Let the server find the documents with some value of a key without reading all."""
    options = client.init_options
    if options.get("location") == ":memory:" or options.get("path") is not None:
        return  # the embedded form has no payload indexes, and warns
    client.create_payload_index(collection, key, models.PayloadSchemaType(kind), wait=True)


@dataclass(frozen=True, slots=True)
class Coding:
    """What a document has as codes.

    Attributes:
        codes: Of all codebooks that it is written in.
        bases: These codebooks.
    """

    codes: models.SparseVector
    bases: tuple[int, ...]


def coded_in(base: int) -> models.FieldCondition:
    """Which documents are written in a codebook."""
    return models.FieldCondition(key=CODES, match=models.MatchValue(value=base))


def point_id(name: str) -> str:
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


def vectors_of(record: models.Record, dim: int) -> Tensor:
    """The token vectors of a point, `(rows, dim)`, float16."""
    # A text without words has none, and Qdrant takes no empty list of vectors.
    assert isinstance(record.vector, dict)
    return torch.tensor(record.vector.get(TOKENS, []), dtype=torch.float16).reshape(-1, dim)


def mean_of(rows: Tensor) -> list[float]:
    """The direction of a text as a whole."""
    mean: list[float] = torch.nn.functional.normalize(rows.mean(0), dim=0).tolist()
    return mean


def point_of(
    document: Document,
    rows: Tensor,
    *,
    order: int,
    means: bool,
    coding: Coding | None = None,
) -> tuple[models.PointStruct, int]:
    """The point for a document, and how many bytes it takes in a request, at most.

    Raises:
        ValueError: more than a server takes.
    """
    payload = {
        "id": document.id,
        "text": document.text,
        "metadata": document.metadata,
        "text_digest": text_digest(document.text).hex(),
        "order": order,
    }
    if coding is not None:
        payload[CODES] = list(coding.bases)
    size = rows.numel() * _VALUE_BYTES + len(json.dumps(payload)) + len(rows) * _CODE_BYTES
    if size > _REQUEST_BYTES:
        raise ValueError(
            f"document {document.id!r} with {len(rows)} token vectors takes up to "
            f"{size >> 20} MiB, and Qdrant refuses requests above 32: split it, or make the "
            "index with token_pooling"
        )
    vector: dict[str, models.Vector] = {TOKENS: rows.tolist()} if len(rows) else {}
    if means and len(rows):
        vector[MEAN] = mean_of(rows.float())
    if coding is not None and coding.codes.indices:
        vector[CODES] = coding.codes
    return models.PointStruct(id=point_id(document.id), vector=vector, payload=payload), size


def in_requests(
    points: Iterable[tuple[models.PointStruct, int]],
) -> Iterator[list[models.PointStruct]]:
    """Points with their sizes, in groups of which each fits into one request."""
    group: list[models.PointStruct] = []
    size = 0
    for point, needed in points:
        if group and size + needed > _REQUEST_BYTES:
            yield group
            group, size = [], 0
        group.append(point)
        size += needed
    if group:
        yield group
