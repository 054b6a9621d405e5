"""`QdrantIndex` itself: opening, searching and reading a collection."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qdrant_client import QdrantClient, models
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.base import Index
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import Document, Hit, Stored, check_found, check_ids, text_digest
from colbert_rag.index.how import How
from colbert_rag.index.info import IndexInfo, IndexStats, resolve_info
from colbert_rag.index.qdrant.collection import (
    FETCH,
    MEAN,
    SCROLL,
    TOKENS,
    KeyType,
    create_collection,
    document_of,
    id_of,
    in_requests,
    index_payload,
    mean_of,
    payload_of,
    point_id,
    point_of,
    read_collection,
    vectors_of,
)
from colbert_rag.index.qdrant.filters import key_path, to_qdrant
from colbert_rag.index.qdrant.translation import translated
from colbert_rag.model import Model
from colbert_rag.settings import whole_number

_QUERIES = 16


class QdrantIndex(Index):
    """Documents and token vectors in a collection of Qdrant, scored exactly by its MaxSim.

    Vectors are float16 and compared by dot product. The graph index is switched off: over MaxSim,
    which is no metric, it takes long to build and finds the wrong documents. A search therefore
    reads every document that passes the filter, unless `prefetch` narrows them first and the search
    does not say `exact=True`. `effort` changes nothing here.

    Every method may raise an `IndexStorageError`: the server does not answer, refuses the API key,
    or says something else, which is quoted. The client stays the caller's to close.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        colbert: Model | None = None,
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
            IndexStorageError: the server is too old to remember a model, or does not do its work.
            ValueError: nothing says which model a new collection is for, or `prefetch` does not
                fit the collection.
        """
        if prefetch is not None and prefetch < 1:
            raise ValueError(f"prefetch is {prefetch}, expected at least 1, or None")
        client = translated(client)
        if not client.collection_exists(collection):
            info = resolve_info(None, colbert, like, token_pooling, f"collection {collection!r}")
            create_collection(client, collection, info, prefetch, shard_number, replication_factor)
        name = f"collection {collection!r}"
        stored, has_means = read_collection(client, collection)
        info = resolve_info(stored, colbert, like, token_pooling, name)
        if prefetch is not None and not has_means:
            raise ValueError(
                f"{name} was made without prefetch, so it holds no mean vectors. Leave prefetch "
                "out, or copy it to a new collection that is made with prefetch"
            )
        self._client = client
        self._collection = collection
        self._prefetch = prefetch
        self._has_means = has_means
        self._order = 0
        super().__init__(name, info, colbert)
        for key, kind in (payload_indexes or {}).items():
            index_payload(client, collection, key_path(tuple(key.split("."))), kind)

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked for.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        listed = check_ids(ids)
        found = {id_of(record): document_of(record) for record in self._fetch(set(listed))}
        check_found(listed, found, self.name)
        return [found[name] for name in listed]

    def embeddings(self, ids: Iterable[str]) -> TokenEmbeddings:
        """Stored vectors by id, in the order asked for; float16, on the CPU.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        listed = check_ids(ids)
        records = self._fetch(set(listed), payload=["id"], vectors=True)
        found = {id_of(record): vectors_of(record, self.info.dim) for record in records}
        check_found(listed, found, self.name)
        return TokenEmbeddings.from_list([found[name] for name in listed], dim=self.info.dim)

    def encoded(self, batch_size: int = 256) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
        """Everything the index holds, in order of insertion, batch by batch.

        What is added or removed meanwhile may or may not be among it.
        """
        batch_size = whole_number("batch_size", batch_size, least=1)
        for records in self._in_order(batch_size, vectors=True):
            vectors = [vectors_of(record, self.info.dim) for record in records]
            yield (
                [document_of(record) for record in records],
                TokenEmbeddings.from_list(vectors, dim=self.info.dim),
            )

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order of insertion."""
        for records in self._in_order(SCROLL, vectors=False):
            yield from map(document_of, records)

    def count(self) -> int:
        """How many documents the index holds."""
        return self._client.count(self._collection, exact=True).count

    def stats(self) -> IndexStats:
        """How many documents there are; a server does not count tokens and bytes."""
        return IndexStats(documents=self.count(), vectors="float16", vector_bytes=2 * self.info.dim)

    def compact(self) -> None:
        """Do nothing: the server gives space back on its own."""

    def close(self) -> None:
        """Do nothing: the client belongs to whoever made it."""

    def _search(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, how: How
    ) -> list[list[Hit]]:
        passing = None if condition is None else _passing(condition)
        hits: list[list[Hit]] = []
        matrices = [rows.float().cpu() for rows in queries]
        for start in range(0, len(matrices), _QUERIES):
            some = matrices[start : start + _QUERIES]
            # One more than asked for: it shows whether the last place is shared.
            requests = [self._request(rows, top_k, passing, top_k + 1, how) for rows in some]
            answers = self._client.query_batch_points(self._collection, requests)
            for rows, request, answer in zip(some, requests, answers, strict=True):
                points = self._best(request, answer.points, top_k)
                hits.append([Hit(document_of(at), float(at.score), len(rows)) for at in points])
        return hits

    def _known(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        records = self._fetch(ids, payload=["id", "text_digest", "metadata"])
        payloads = [payload_of(record) for record in records]
        return {
            at["id"]: Stored(bytes.fromhex(at["text_digest"]), at["metadata"]) for at in payloads
        }

    def _held(self, texts: Sequence[str]) -> dict[str, Tensor]:
        digests = {text_digest(text).hex(): text for text in texts}
        listed = list(digests)
        found: dict[str, Tensor] = {}
        for start in range(0, len(listed), FETCH):
            some = models.MatchAny(any=listed[start : start + FETCH])
            chosen = models.Filter(must=[models.FieldCondition(key="text_digest", match=some)])
            for record in self._scroll(chosen, payload=["text_digest"], vectors=True):
                found[digests[payload_of(record)["text_digest"]]] = vectors_of(
                    record, self.info.dim
                )
        return found

    def _write(
        self, documents: Sequence[Document], vectors: TokenEmbeddings, edited: Sequence[Document]
    ) -> None:
        points = (
            point_of(document, rows, order=self._next(), means=self._has_means)
            for document, rows in zip(documents, vectors, strict=True)
        )
        for some in in_requests(points):
            self._client.upsert(self._collection, some, wait=True)
        if edited:
            changes = [
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(
                        payload={"metadata": document.metadata}, points=[point_id(document.id)]
                    )
                )
                for document in edited
            ]
            self._client.batch_update_points(self._collection, changes, wait=True)

    def _next(self) -> int:
        """A number above all earlier ones, also those of other writers, as far as clocks agree."""
        self._order = max(self._order + 1, time.time_ns())
        return self._order

    def _ids_where(self, condition: Condition) -> list[str]:
        found = self._scroll(_passing(condition), payload=["id"])
        return [id_of(record) for record in found]

    def _delete(self, ids: Sequence[str]) -> int:
        held = [record.id for record in self._fetch(set(ids), payload=["id"])]
        if held:
            self._client.delete(self._collection, models.PointIdsList(points=held), wait=True)
        return len(held)

    def _request(
        self, rows: Tensor, top_k: int, passing: models.Filter | None, limit: int, how: How
    ) -> models.QueryRequest:
        request = models.QueryRequest(
            query=rows.tolist(),
            using=TOKENS,
            filter=passing,
            limit=limit,
            with_payload=["id", "text", "metadata", "order"],
        )
        if self._prefetch is not None and not how.exact:
            request.prefetch = models.Prefetch(
                query=mean_of(rows), using=MEAN, filter=passing, limit=max(self._prefetch, top_k)
            )
        return request

    def _best(
        self, request: models.QueryRequest, points: list[models.ScoredPoint], top_k: int
    ) -> list[models.ScoredPoint]:
        """The first `top_k`, ties in order of insertion, which the server does not know."""
        limit = top_k + 1
        while len(points) == limit and points[top_k - 1].score == points[-1].score:
            limit *= 4
            request.limit = limit
            points = self._client.query_batch_points(self._collection, [request])[0].points
        return sorted(points, key=lambda point: (-point.score, payload_of(point)["order"]))[:top_k]

    def _in_order(self, size: int, *, vectors: bool) -> Iterator[list[models.Record]]:
        """All records by rising order of insertion; Qdrant itself scrolls by point id."""
        records = self._scroll(None, payload=["id", "order"])
        names = [
            id_of(record) for record in sorted(records, key=lambda at: payload_of(at)["order"])
        ]
        for start in range(0, len(names), size):
            some = names[start : start + size]
            found = {id_of(record): record for record in self._fetch(some, vectors=vectors)}
            yield [found[name] for name in some if name in found]

    def _fetch(
        self, ids: Iterable[str], *, payload: list[str] | None = None, vectors: bool = False
    ) -> list[models.Record]:
        """Records by our ids, in no order; `payload` names what is wanted of it, None is all."""
        names = [point_id(name) for name in ids]
        step = FETCH if vectors else SCROLL
        records: list[models.Record] = []
        for start in range(0, len(names), step):
            records += self._client.retrieve(
                self._collection,
                names[start : start + step],
                with_payload=True if payload is None else payload,
                with_vectors=[TOKENS] if vectors else False,
            )
        return records

    def _scroll(
        self, chosen: models.Filter | None, *, payload: list[str], vectors: bool = False
    ) -> Iterator[models.Record]:
        """All records that pass `chosen`, by rising point id."""
        offset = None
        while True:
            records, offset = self._client.scroll(
                self._collection,
                scroll_filter=chosen,
                limit=FETCH if vectors else SCROLL,
                offset=offset,
                with_payload=payload,
                with_vectors=[TOKENS] if vectors else False,
            )
            yield from records
            if offset is None:
                return


def _passing(condition: Condition) -> models.Filter:
    return models.Filter.model_validate({"must": [to_qdrant(condition)]})
