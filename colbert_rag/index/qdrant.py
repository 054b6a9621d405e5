"""`QdrantIndex`: the same index in a Qdrant collection, for corpora that outgrow one machine."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexCorruptError, IndexStorageError, MissingExtraError
from colbert_rag.index.base import StoredIndex
from colbert_rag.index.conditions import Condition, qdrant_key
from colbert_rag.index.documents import Document, Hit, Known, check_ids, text_digest
from colbert_rag.index.protocol import Encoder, IndexInfo, resolve_info

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise MissingExtraError("qdrant-client", extra="qdrant") from error

KeyType: TypeAlias = Literal["keyword", "integer", "float", "bool", "datetime"]
Record: TypeAlias = models.Record | models.ScoredPoint

_TOKENS = "colbert"
_MEAN = "mean"
_INFO = "colbert_rag"
_NAMESPACE = uuid.UUID("8f2b5e0e-6a53-5c2e-9d0f-3f6d3c1f7a10")

# A server refuses requests above 32 MiB. A float16 takes at most 24 bytes as JSON, 17 on average.
_REQUEST_BYTES = 30 * 2**20
_VALUE_BYTES = 24
_FETCH = 64
_SCROLL = 1000
_QUERIES = 16


class QdrantIndex(StoredIndex):
    """Documents and token vectors in a collection of Qdrant, scored exactly by its MaxSim.

    Vectors are float16 and compared by dot product. The graph index is switched off: over MaxSim,
    which is no metric, it takes long to build and finds the wrong documents. A search therefore
    reads every document that passes the filter, unless `prefetch` narrows them first.

    Errors of the connection are those of qdrant-client. The client stays the caller's to close.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        colbert: Encoder | None = None,
        *,
        like: IndexInfo | None = None,
        token_pooling: float | None = None,
        prefetch: int | None = None,
        payload_indexes: Mapping[str, KeyType] | None = None,
        shard_number: int | None = None,
        replication_factor: int | None = None,
    ) -> None:
        """Open a collection, or make one.

        Args:
            client: In memory, on a path, or for a server or cluster.
            collection: Its name.
            colbert: The model that encodes; may be None for an existing collection, as in
                `LocalIndex`.
            like: Instead of a model, for a new collection: the `info` of another index.
            token_pooling: As in `LocalIndex`.
            prefetch: Score only this many documents, those whose mean vector is nearest to the
                query's: faster, no longer exact. The collection must be made with it, since mean
                vectors are stored beside the others then.
            payload_indexes: Metadata keys that filters use often, and the type their values have
                in every document, such as `{"author.name": "keyword", "year": "integer"}`.
            shard_number: Of a new collection on a cluster.
            replication_factor: Of a new collection on a cluster.

        Raises:
            IndexCorruptError: the collection was not made by this package.
            IndexMismatchError: it was made by another model or recipe.
            IndexStorageError: the server is too old to remember a model.
            ValueError: nothing says which model a new collection is for, or `prefetch` does not
                fit the collection.
        """
        if prefetch is not None and prefetch < 1:
            raise ValueError(f"prefetch is {prefetch}, expected at least 1, or None")
        if not client.collection_exists(collection):
            info = resolve_info(None, colbert, like, token_pooling, f"collection {collection!r}")
            _create(client, collection, info, prefetch, shard_number, replication_factor)
        name = f"collection {collection!r}"
        stored, has_means = _read(client, collection)
        info = resolve_info(stored, colbert, like, token_pooling, name)
        if prefetch is not None and not has_means:
            raise ValueError(
                f"{name} was made without prefetch, so it holds no mean vectors. Leave prefetch "
                "out, or copy it to a new collection that is made with prefetch"
            )
        self._client = client
        self._collection = collection
        self._prefetch = prefetch
        self._points = _Points(client, collection, info, means=has_means)
        super().__init__(name, self._points, colbert)
        for key, kind in (payload_indexes or {}).items():
            _index_payload(client, collection, qdrant_key(tuple(key.split("."))), kind)

    def delete(self, ids: Iterable[str]) -> int:
        """Remove documents, and return how many there were; unknown ids are no error."""
        held = [record.id for record in self._points.fetch(set(check_ids(ids)), payload=["id"])]
        if held:
            self._client.delete(self._collection, models.PointIdsList(points=held), wait=True)
        return len(held)

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked for.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        listed = check_ids(ids)
        found = {_id(record): _document(record) for record in self._points.fetch(set(listed))}
        self._found([name for name in listed if name not in found])
        return [found[name] for name in listed]

    def embeddings(self, ids: Iterable[str]) -> TokenEmbeddings:
        """Stored vectors by id, in the order asked for; float16, on the CPU.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        listed = check_ids(ids)
        records = self._points.fetch(set(listed), payload=["id"], vectors=True)
        found = {_id(record): _vectors(record) for record in records}
        self._found([name for name in listed if name not in found])
        return TokenEmbeddings.from_list([found[name] for name in listed], dim=self.info.dim)

    def encoded(self, batch_size: int = 256) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
        """Everything the index holds, in order of insertion, batch by batch.

        What is added or removed meanwhile may or may not be among it.
        """
        for records in self._in_order(batch_size, vectors=True):
            vectors = [_vectors(record) for record in records]
            yield (
                [_document(record) for record in records],
                TokenEmbeddings.from_list(vectors, dim=self.info.dim),
            )

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order of insertion."""
        for records in self._in_order(_SCROLL, vectors=False):
            yield from map(_document, records)

    def count(self) -> int:
        """How many documents the index holds."""
        return self._client.count(self._collection, exact=True).count

    def compact(self) -> None:
        """Do nothing: the server gives space back on its own."""

    def close(self) -> None:
        """Do nothing: the client belongs to whoever made it."""

    def _search(
        self, queries: TokenEmbeddings, k: int, condition: Condition | None
    ) -> list[list[Hit]]:
        passing = None
        if condition is not None:
            passing = models.Filter.model_validate({"must": [condition.to_qdrant()]})
        hits: list[list[Hit]] = []
        matrices = [rows.float().cpu() for rows in queries]
        for start in range(0, len(matrices), _QUERIES):
            # One more than asked for: it shows whether the last place is shared.
            requests = [
                self._request(rows, k, passing, k + 1)
                for rows in matrices[start : start + _QUERIES]
            ]
            answers = self._client.query_batch_points(self._collection, requests)
            for request, answer in zip(requests, answers, strict=True):
                hits.append(self._best(request, answer.points, k))
        return hits

    def _request(
        self, rows: Tensor, k: int, passing: models.Filter | None, limit: int
    ) -> models.QueryRequest:
        request = models.QueryRequest(
            query=rows.tolist(),
            using=_TOKENS,
            filter=passing,
            limit=limit,
            with_payload=["id", "text", "metadata", "order"],
        )
        if self._prefetch is not None:
            request.prefetch = models.Prefetch(
                query=_mean(rows), using=_MEAN, filter=passing, limit=max(self._prefetch, k)
            )
        return request

    def _best(
        self, request: models.QueryRequest, points: list[models.ScoredPoint], k: int
    ) -> list[Hit]:
        """The first `k`, ties in order of insertion, which the server does not know."""
        limit = k + 1
        while len(points) == limit and points[k - 1].score == points[-1].score:
            limit *= 4
            request.limit = limit
            points = self._client.query_batch_points(self._collection, [request])[0].points
        ordered = sorted(points, key=lambda point: (-point.score, _payload(point)["order"]))
        return [Hit(_document(point), float(point.score)) for point in ordered[:k]]

    def _in_order(self, size: int, *, vectors: bool) -> Iterator[list[models.Record]]:
        """All records by rising order of insertion; Qdrant itself scrolls by point id."""
        records = self._points.scroll(None, payload=["id", "order"])
        names = [_id(record) for record in sorted(records, key=lambda at: _payload(at)["order"])]
        for start in range(0, len(names), size):
            some = names[start : start + size]
            found = {_id(record): record for record in self._points.fetch(some, vectors=vectors)}
            yield [found[name] for name in some if name in found]


class _Points:
    """The points of a collection by our ids: what `ingest` needs, and reading in batches."""

    def __init__(
        self, client: QdrantClient, collection: str, info: IndexInfo, *, means: bool
    ) -> None:
        self.info = info
        self._client = client
        self._collection = collection
        self._means = means
        self._order = 0

    def known(self, ids: Sequence[str]) -> Mapping[str, Known]:
        records = self.fetch(ids, payload=["id", "text_digest", "metadata"])
        return {
            _id(record): Known(
                bytes.fromhex(_payload(record)["text_digest"]), _payload(record)["metadata"]
            )
            for record in records
        }

    def embeddings_for(self, texts: Sequence[str]) -> dict[str, Tensor]:
        digests = {text_digest(text).hex(): text for text in texts}
        listed = list(digests)
        found: dict[str, Tensor] = {}
        for start in range(0, len(listed), _FETCH):
            some = listed[start : start + _FETCH]
            chosen = models.Filter(
                must=[models.FieldCondition(key="text_digest", match=models.MatchAny(any=some))]
            )
            for record in self.scroll(chosen, payload=["text_digest"], vectors=True):
                found[digests[_payload(record)["text_digest"]]] = _vectors(record)
        return found

    def write(
        self,
        documents: Sequence[Document],
        vectors: TokenEmbeddings,
        edited: Sequence[Document],
    ) -> None:
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
        vector: dict[str, models.Vector] = {_TOKENS: rows.tolist()}
        if self._means:
            vector[_MEAN] = _mean(rows.float())
        return models.PointStruct(id=_point_id(document.id), vector=vector, payload=payload), size

    def _next(self) -> int:
        """A number above all earlier ones, also those of other writers, as far as clocks agree."""
        self._order = max(self._order + 1, time.time_ns())
        return self._order

    def fetch(
        self, ids: Iterable[str], *, payload: list[str] | None = None, vectors: bool = False
    ) -> list[models.Record]:
        names = [_point_id(name) for name in ids]
        step = _FETCH if vectors else _SCROLL
        records: list[models.Record] = []
        for start in range(0, len(names), step):
            records += self._client.retrieve(
                self._collection,
                names[start : start + step],
                with_payload=True if payload is None else payload,
                with_vectors=[_TOKENS] if vectors else False,
            )
        return records

    def scroll(
        self, chosen: models.Filter | None, *, payload: list[str], vectors: bool = False
    ) -> Iterator[models.Record]:
        offset = None
        while True:
            records, offset = self._client.scroll(
                self._collection,
                scroll_filter=chosen,
                limit=_FETCH if vectors else _SCROLL,
                offset=offset,
                with_payload=payload,
                with_vectors=[_TOKENS] if vectors else False,
            )
            yield from records
            if offset is None:
                return


def _create(
    client: QdrantClient,
    collection: str,
    info: IndexInfo,
    prefetch: int | None,
    shard_number: int | None,
    replication_factor: int | None,
) -> None:
    vectors = {
        _TOKENS: models.VectorParams(
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
        vectors[_MEAN] = models.VectorParams(
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
    _index_payload(client, collection, "text_digest", "keyword")


def _read(client: QdrantClient, collection: str) -> tuple[IndexInfo, bool]:
    """Who made a collection, and whether it holds mean vectors."""
    config = client.get_collection(collection).config
    record = (config.metadata or {}).get(_INFO)
    vectors = config.params.vectors
    if not isinstance(record, dict) or not isinstance(vectors, dict) or _TOKENS not in vectors:
        raise IndexCorruptError(
            f"collection {collection!r} was not made by colbert_rag: it does not say which model "
            "its vectors are from. It was left untouched; choose another name"
        )
    return IndexInfo.from_json(record, f"collection {collection!r}"), _MEAN in vectors


def _index_payload(client: QdrantClient, collection: str, key: str, kind: KeyType) -> None:
    options = client.init_options
    if options.get("location") == ":memory:" or options.get("path") is not None:
        return  # the embedded form has no payload indexes, and warns
    client.create_payload_index(collection, key, models.PayloadSchemaType(kind), wait=True)


def _point_id(name: str) -> str:
    """Qdrant takes whole numbers and UUIDs only."""
    return str(uuid.uuid5(_NAMESPACE, name))


def _payload(record: Record) -> models.Payload:
    return record.payload or {}


def _id(record: Record) -> str:
    return str(_payload(record)["id"])


def _document(record: Record) -> Document:
    payload = _payload(record)
    return Document(payload["id"], payload["text"], payload["metadata"])


def _vectors(record: models.Record) -> Tensor:
    assert isinstance(record.vector, dict)
    return torch.tensor(record.vector[_TOKENS], dtype=torch.float16)


def _mean(rows: Tensor) -> list[float]:
    """The direction of a text as a whole."""
    mean: list[float] = torch.nn.functional.normalize(rows.mean(0), dim=0).tolist()
    return mean
