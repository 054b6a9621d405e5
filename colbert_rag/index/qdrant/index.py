"""`QdrantIndex` itself: opening, searching and reading a collection."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import get_args

from qdrant_client import QdrantClient, models
from torch import Tensor

from colbert_rag.codings import FLOAT16
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.base import Index
from colbert_rag.index.choice import Choice
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import Document, Hit, Stored, check_found, check_ids, text_digest
from colbert_rag.index.how import How
from colbert_rag.index.info import IndexInfo, IndexStats, resolve_info
from colbert_rag.index.qdrant.codebook import codings
from colbert_rag.index.qdrant.coding import Coder
from colbert_rag.index.qdrant.collection import (
    FETCH,
    SCROLL,
    TOKENS,
    Datatype,
    KeyType,
    create_collection,
    document_of,
    id_of,
    in_requests,
    index_payload,
    payload_of,
    point_id,
    point_of,
    read_collection,
    vectors_of,
)
from colbert_rag.index.qdrant.filters import key_path, to_qdrant
from colbert_rag.index.qdrant.records import Records
from colbert_rag.index.qdrant.shelf import Shelf
from colbert_rag.index.qdrant.stages import Prefetch, Stages, check_prefetch
from colbert_rag.index.qdrant.translation import translated
from colbert_rag.model import Model
from colbert_rag.settings import whole_number

_QUERIES = 16


class QdrantIndex(Index):
    """Documents and token vectors in a collection of Qdrant, scored exactly by its MaxSim.

    Vectors are float16 and compared by dot product. The graph index is switched off: over MaxSim,
    which is no metric, it takes long to build and finds the wrong documents. A search therefore
    reads every document that passes the filter, until `optimize` has given documents codes: from
    then on it scores those that the codes of the query find, and scores them exactly.

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
        prefetch: Prefetch = "auto",
        datatype: Datatype = "float16",
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
            prefetch: What narrows the documents of a search that is not told to be exact. `"auto"`:
                codes, where the collection has them (see `optimize`). None: nothing. A number:
                score only this many documents, those whose mean vector is nearest to the query's;
                the collection must be made with it, since mean vectors are stored then.
            datatype: Of the vectors of a new collection, on a server of 1.19 or later: `"turbo8"`
                takes a half of the space of `"float16"`, `"turbo4"` a quarter. Scores are those
                of what is stored, which nothing rescores, and `embeddings` gives that, too.
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
        check_prefetch(prefetch)
        if datatype not in get_args(Datatype):
            expected = ", ".join(get_args(Datatype))
            raise ValueError(f"datatype is {datatype!r}, expected one of {expected}")
        client = translated(client)
        name = f"collection {collection!r}"
        means = isinstance(prefetch, int)
        if not client.collection_exists(collection):
            create_collection(
                client,
                collection,
                resolve_info(None, colbert, like, token_pooling, name),
                means=means,
                codes=not means,
                datatype=datatype,
                shard_number=shard_number,
                replication_factor=replication_factor,
            )
        held = read_collection(client, collection)
        info = resolve_info(held.info, colbert, like, token_pooling, name)
        if means and not held.means:
            raise ValueError(
                f"{name} was made without prefetch, so it holds no mean vectors. Leave prefetch "
                "out, or copy it to a new collection that is made with prefetch"
            )
        self._client, self._collection = client, collection
        self._records, self._shelf = Records(client, collection), Shelf(client, collection)
        self._stages = Stages(client, collection, held, self._shelf, prefetch)
        self._made_for = held
        self._order = 0
        super().__init__(name, info, colbert)
        for key, kind in (payload_indexes or {}).items():
            index_payload(client, collection, key_path(tuple(key.split("."))), kind)

    @property
    def vectors(self) -> str:
        """How the server stores vectors."""
        return self._made_for.datatype

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked for.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        listed = check_ids(ids)
        found = {id_of(record): document_of(record) for record in self._records.fetch(set(listed))}
        check_found(listed, found, self.name)
        return [found[name] for name in listed]

    def embeddings(self, ids: Iterable[str]) -> TokenEmbeddings:
        """Stored vectors by id, in the order asked for; float16, on the CPU.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        listed = check_ids(ids)
        records = self._records.fetch(set(listed), payload=["id"], vectors=True)
        found = {id_of(record): vectors_of(record, self.info.dim) for record in records}
        check_found(listed, found, self.name)
        return TokenEmbeddings.from_list([found[name] for name in listed], dim=self.info.dim)

    def encoded(self, batch_size: int = 256) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
        """Everything the index holds, in order of insertion, batch by batch.

        What is added or removed meanwhile may or may not be among it.
        """
        batch_size = whole_number("batch_size", batch_size, least=1)
        for records in self._records.in_order(batch_size, vectors=True):
            vectors = [vectors_of(record, self.info.dim) for record in records]
            yield (
                [document_of(record) for record in records],
                TokenEmbeddings.from_list(vectors, dim=self.info.dim),
            )

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order of insertion."""
        for records in self._records.in_order(SCROLL, vectors=False):
            yield from map(document_of, records)

    def count(self) -> int:
        """How many documents the index holds."""
        return self._client.count(self._collection, exact=True).count

    def stats(self) -> IndexStats:
        """How many documents there are; a server does not count tokens and bytes."""
        # What a smaller vector takes, with all that the server keeps beside it, only it knows.
        known = 2 * self.info.dim if self.vectors == FLOAT16.name else None
        return IndexStats(documents=self.count(), vectors=self.vectors, vector_bytes=known)

    def compact(self) -> None:
        """Do nothing: the server gives space back on its own."""

    def close(self) -> None:
        """Do nothing: the client belongs to whoever made it."""

    def optimize(self, *, show_progress: bool = False) -> None:
        """Give documents codes, by which searches find them; from 5,000 documents on by themselves.

        The first call reads all vectors, trains a codebook and stores it in a collection beside
        this one, named as it is with `-codebook` behind. From then on, documents get their codes as
        they are added. Later calls code what is without, and train anew where the collection has
        doubled or its documents have become others. Everybody searches and writes meanwhile, and
        what has no codes is scored exactly.

        Args:
            show_progress: Draw a bar.

        Raises:
            ValueError: the collection was made without a place for codes.
        """
        if not self._made_for.codes:
            raise ValueError(
                f"{self.name} has no place for codes: it was made by an earlier version, or with a "
                "number as prefetch. Copy it with copy_index to a new collection, and optimize that"
            )
        device = "cpu" if self.colbert is None else self.colbert.device
        coder = Coder(self._client, self._collection, self.info.dim, self._shelf, device)
        coder.optimize(show_progress=show_progress)

    def _check_efforts(self) -> None:
        if not self._made_for.codes or self._shelf.current() is None:
            raise ValueError(
                f"{self.name} has no codes, so every search is exact: call optimize() first"
            )

    def _choose(self, choice: Choice) -> None:
        self._shelf.choose(choice)

    def _passages(self, count: int) -> TokenEmbeddings:
        # Point ids choose them, which are as good as random.
        found = islice(self._records.scroll(None, payload=["id"], vectors=[TOKENS]), count)
        vectors = [rows for at in found if len(rows := vectors_of(at, self.info.dim))]
        return TokenEmbeddings.from_list(vectors, dim=self.info.dim)

    def _search(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, how: How
    ) -> list[list[Hit]]:
        passing = None if condition is None else _passing(condition)
        stage = self._stages.choose(how, top_k, passing)
        hits: list[list[Hit]] = []
        matrices = [rows.float().cpu() for rows in queries]
        for start in range(0, len(matrices), _QUERIES):
            some = matrices[start : start + _QUERIES]
            # One more than asked for: it shows whether the last place is shared.
            requests = [self._stages.request(rows, passing, top_k + 1, stage) for rows in some]
            answers = self._client.query_batch_points(self._collection, requests)
            for rows, request, answer in zip(some, requests, answers, strict=True):
                points = self._stages.best(request, answer.points, top_k)
                hits.append([Hit(document_of(at), float(at.score), len(rows)) for at in points])
        return hits

    def _known(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        records = self._records.fetch(ids, payload=["id", "text_digest", "metadata"])
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
            for record in self._records.scroll(chosen, payload=["text_digest"], vectors=[TOKENS]):
                found[digests[payload_of(record)["text_digest"]]] = vectors_of(
                    record, self.info.dim
                )
        return found

    def _write(
        self, documents: Sequence[Document], vectors: TokenEmbeddings, edited: Sequence[Document]
    ) -> None:
        current = self._shelf.current() if self._made_for.codes and documents else None
        codebook = None if current is None else current.codebook
        points = (
            point_of(document, rows, order=self._next(), means=self._made_for.means, coding=coding)
            for document, rows, coding in zip(
                documents, vectors, codings(codebook, vectors), strict=True
            )
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
        found = self._records.scroll(_passing(condition), payload=["id"])
        return [id_of(record) for record in found]

    def _delete(self, ids: Sequence[str]) -> int:
        held = [record.id for record in self._records.fetch(set(ids), payload=["id"])]
        if held:
            self._client.delete(self._collection, models.PointIdsList(points=held), wait=True)
        return len(held)


def _passing(condition: Condition) -> models.Filter:
    return models.Filter.model_validate({"must": [to_qdrant(condition)]})
