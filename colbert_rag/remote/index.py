"""`RemoteIndex`: an index behind a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import islice
from typing import Any, Never, Self
from urllib.parse import quote

from colbert_rag.errors import InvalidFilterError, ServerAnswerError
from colbert_rag.index.documents import (
    Changes,
    Document,
    DocumentLike,
    Hit,
    as_documents,
    check_ids,
)
from colbert_rag.index.filters import parse_filter
from colbert_rag.index.handle import Handle
from colbert_rag.index.how import How
from colbert_rag.index.info import IndexInfo, IndexStats
from colbert_rag.inputs import check_query
from colbert_rag.progress import Bar, progress_bar
from colbert_rag.remote.answers import (
    VERSIONS,
    count,
    member,
    read_document,
    read_hits,
    read_several,
)
from colbert_rag.remote.exchange import RETRIES, TIMEOUT, Answer, Plan, Server
from colbert_rag.remote.parts import ask_in_parts, bytes_of
from colbert_rag.remote.replies import NotHeldError, Request
from colbert_rag.remote.values import plain_filter
from colbert_rag.remote.wire import DOCUMENTS, INDEX, SEARCH
from colbert_rag.settings import wanted_hits, whole_number


class RemoteIndex(Handle):
    """The index of `colbert-rag serve --index`: its documents are stored and found there.

    The server encodes queries and documents with its own model, so that nothing here needs torch.
    What an index does with vectors is done where they are: `embeddings`, `encoded`, `sync` and the
    like are not here.

    Pickles without the key, as `RemoteColBERT`.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ) -> None:
        """Say where the server is, as for a `RemoteColBERT`; nothing is asked yet.

        Raises:
            MissingExtraError: the extra `remote` is not installed.
            ValueError: this is no address, or a number is out of range.
        """
        self._server = Server(base=address, api_key=api_key, timeout=timeout, retries=retries)

    @property
    def name(self) -> str:
        """Where the server is."""
        return self._server.base

    @property
    def info(self) -> IndexInfo:
        """Which model made the index."""
        record = member(self._server.send(Request("GET", INDEX)), "info", dict, self.name)
        return IndexInfo.from_json(record, self.name)

    def search(
        self,
        query: str,
        top_k: int = 10,
        filter: Mapping[str, object] | None = None,
        *,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> list[Hit]:
        """The documents with the highest MaxSim, best first; as `Index.search`.

        Raises:
            InvalidFilterError: the filter is not in the language.
            InvalidQueryError: the query is blank or no string.
            ServerError: the server did not answer as it should; its subclass says why.
            ValueError: `top_k` is below 1, and there are documents.
        """
        return self.search_many([query], top_k, filter, exact=exact, effort=effort)[0]

    async def asearch(
        self,
        query: str,
        top_k: int = 10,
        filter: Mapping[str, object] | None = None,
        *,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> list[Hit]:
        """`search`, without holding up the event loop or a thread."""
        (hits,) = await self.asearch_many([query], top_k, filter, exact=exact, effort=effort)
        return hits

    def search_many(
        self,
        queries: Sequence[str],
        top_k: int = 10,
        filter: Mapping[str, object] | None = None,
        *,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """`search` for several queries, in as few requests as the bounds allow."""
        how = How.checked(exact, effort)
        return self._server.run(self._search(queries, top_k, filter, how))

    async def asearch_many(
        self,
        queries: Sequence[str],
        top_k: int = 10,
        filter: Mapping[str, object] | None = None,
        *,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """`search_many`, without holding up the event loop or a thread."""
        how = How.checked(exact, effort)
        return await self._server.arun(self._search(queries, top_k, filter, how))

    def _search(
        self, queries: Sequence[str], top_k: int, filter: Mapping[str, object] | None, how: How
    ) -> Plan[list[list[Hit]]]:
        if isinstance(queries, str):
            raise TypeError(f"queries is one string, expected several: [{queries!r}]")
        asked = list(queries)
        for query in asked:
            check_query(query)
        condition = plain_filter(filter)
        # As in `Searchable`: zero is all of nothing, and no other number is worth a request.
        least = 1 if top_k else min(_documents((yield Request("GET", INDEX)), self.name), 1)
        k = wanted_hits("top_k", top_k, least=least)
        if not (asked and k):
            return [[] for _ in asked]
        # The server divides the sum for the mean, as `Hit.mean` does.
        wanted: dict[str, Any] = {"k": k, "score": "sum"}
        if condition is not None:
            wanted["filter"] = condition
        wanted |= {name: value for name, value in asdict(how).items() if value is not None}

        def request(first: int, last: int) -> Request:
            one = {"query": asked[first]} if last - first == 1 else {"queries": asked[first:last]}
            return Request("POST", SEARCH, {**one, **wanted})

        answers = yield from ask_in_parts(bytes_of(asked), request, _unseen())
        found: list[list[Hit]] = []
        for (first, last), answer in answers:
            several = (
                [answer] if last - first == 1 else read_several(answer, self.name, last - first)
            )
            found += [read_hits(one, self.name) for one in several]
        return found

    def add(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_size: int = 256,
        show_progress: bool = False,
    ) -> Changes:
        """Have documents encoded and stored, `batch_size` of them at a time; as `Index.add`.

        A call that was interrupted can simply be repeated. A request that the server may have
        carried out is not repeated by itself, or its counts would be those of the second time.

        Raises:
            IndexBusyError: another process is writing.
            ServerError: the server did not answer as it should; its subclass says why.
            TypeError: something is not a document, or its metadata not JSON.
        """
        given = as_documents(documents)
        size = whole_number("batch_size", batch_size, least=1)
        total = len(documents) if isinstance(documents, Sequence) else None
        changes = Changes()
        with progress_bar(None, total=total, unit=" documents", show=show_progress) as bar:
            while batch := list(islice(given, size)):
                for answer in self._server.run(self._store(batch, bar)):
                    changes += _changes(answer, self.name)
        return changes

    def _store(self, batch: Sequence[Document], bar: Bar) -> Plan[list[Answer]]:
        records = [asdict(document) for document in batch]

        def request(first: int, last: int) -> Request:
            return Request("POST", DOCUMENTS, {"documents": records[first:last]}, repeatable=False)

        sizes = bytes_of([document.text for document in batch])
        answers = yield from ask_in_parts(sizes, request, bar)
        return [answer for _, answer in answers]

    def delete(
        self, ids: Iterable[str] | None = None, *, filter: Mapping[str, object] | None = None
    ) -> int:
        """Remove documents by their ids or by their metadata, and return how many there were.

        Raises:
            InvalidFilterError: the filter is not in the language, or would let everything pass.
            ServerError: the server did not answer as it should; its subclass says why.
            ValueError: both are given, or neither.
        """
        if (ids is None) == (filter is None):
            raise ValueError("delete takes either ids or a filter")
        if ids is not None:
            listed = check_ids(ids)
            if not listed:
                return 0
            body: dict[str, Any] = {"ids": listed}
        else:
            if parse_filter(filter) is None:
                raise InvalidFilterError("the filter is empty, and would delete every document")
            body = {"filter": plain_filter(filter)}
        answer = self._server.send(Request("DELETE", DOCUMENTS, body, repeatable=False))
        return count(answer, "deleted", self.name)

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked for.

        Raises:
            KeyError: names the first id that the index does not hold.
            ServerError: the server did not answer as it should; its subclass says why.
        """
        found = []
        for name in check_ids(ids):
            try:
                answer = self._server.send(Request("GET", _path(name)))
            except NotHeldError as error:
                self.count()  # says so where there is no index at all
                raise KeyError(f"{self.name} holds no document with id {name!r}") from error
            document = read_document(answer, self.name)
            if document.id != name:
                raise ServerAnswerError(
                    f"{self.name} gives document {document.id[:80]!r} for {name!r}. {VERSIONS}"
                )
            found.append(document)
        return found

    def count(self) -> int:
        """How many documents the index holds."""
        return self.stats().documents

    def stats(self) -> IndexStats:
        """How much the index holds."""
        said = member(self._server.send(Request("GET", INDEX)), "stats", dict, self.name)
        counts = {
            name: count(said, name, self.name)
            for name in _COUNTS
            if name == "documents" or said.get(name) is not None  # what it does not know
        }
        stored = None if said.get("vectors") is None else member(said, "vectors", str, self.name)
        return IndexStats(vectors=stored, **counts)

    def close(self) -> None:
        """Nothing: connections belong to the process."""

    def __getattr__(self, name: str) -> Never:
        """Say of what an index does, and this one does not, where it is to be done."""
        if name in _NOT_HERE:
            raise AttributeError(
                f"{self.name} is the index of a server, and {name} works on its vectors: call it "
                "on the index itself, on the server's machine"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __copy__(self) -> Self:
        """The same one: nothing in it changes."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by address: never the key."""
        return (_restored, (self.name, self._server.timeout, self._server.retries))

    def __repr__(self) -> str:
        """Where it is."""
        return f"{type(self).__name__}({self.name!r})"


_COUNTS = {field.name for field in fields(IndexStats)} - {"vectors"}

_NOT_HERE = (
    *("add_encoded", "compact", "embeddings", "embeddings_for", "encoded"),
    *("search_embeddings", "sync", "update", "verify"),
)


def _restored(address: str, timeout: float, retries: int) -> RemoteIndex:
    return RemoteIndex(address, timeout=timeout, retries=retries)


def _documents(answer: Answer, where: str) -> int:
    """How many documents an index holds, by what its server says of it."""
    return count(member(answer, "stats", dict, where), "documents", where)


def _path(name: str) -> str:
    # Dots, too: a path that ends with ".." is that of the folder above.
    return f"{DOCUMENTS}/{quote(name, safe='').replace('.', '%2E')}"


def _changes(answer: Answer, where: str) -> Changes:
    counts = {name: count(answer, name, where) for name in ("added", "updated", "unchanged")}
    return Changes(**counts)


def _unseen() -> Bar:
    return progress_bar(None, total=None, show=False)
