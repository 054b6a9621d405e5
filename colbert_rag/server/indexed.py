"""What a server answers from an index: searches, and changes of its documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from colbert_rag.index import Document, Hit, Index
from colbert_rag.index.documents import as_document, check_ids
from colbert_rag.server.bodies import Deletion, Documents, Search
from colbert_rag.server.errors import ApiError
from colbert_rag.server.service import Json, Service, explained, scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """An index and its model; its methods block, and may be called from any thread.

    Attributes:
        service: The model.
        index: What is searched.
        read_only: Whether clients may only search.
    """

    service: Service
    index: Index
    read_only: bool = False

    def describe(self) -> Json:
        """Which model made the index, and how much it holds."""
        return {
            "object": "index",
            "info": self.index.info.to_json(),
            "stats": asdict(self.index.stats()),
            "read_only": self.read_only,
        }

    def check_search(self, body: Search) -> list[str]:
        """Refuse what is too much, and give the queries.

        Raises:
            ApiError: there is too much of something.
        """
        self.service.check_model(body)
        limits = self.service.limits
        queries = body.asked
        self.service.check_count(len(queries), limits.queries, "queries", "--max-queries")
        self.service.check_texts(queries, body.field)
        if (count := body.k * len(queries)) > limits.documents:
            raise ApiError(
                413,
                f"k asks for {count:,} results of {len(queries):,} queries, expected "
                f"{limits.documents:,} at most: ask for fewer (--max-documents)",
                code="too_many_texts",
                param="k",
            )
        self.service.check_explained(body.k * len(queries), body.explain)
        return queries

    def search(self, body: Search) -> Json:
        """The best documents for one query, or for each of several."""
        found = self.index.search_many(
            body.asked, body.k, body.filter, exact=body.exact, effort=body.effort
        )
        answers = [
            self._found(query, hits, body) for query, hits in zip(body.asked, found, strict=True)
        ]
        head = self.service.head("search")
        return {**head, **answers[0]} if body.queries is None else {**head, "data": answers}

    def _found(self, query: str, hits: Sequence[Hit], body: Search) -> Json:
        results = []
        for hit in hits:
            result: Json = {**_record(hit.document), "score": scaled(hit, body.score)}
            if body.explain:
                explanation = self.service.colbert.explain(query, hit.text)
                result["explanation"] = explained(explanation, body.explain)
            results.append(result)
        return {"query_rows": hits[0].query_rows if hits else 0, "results": results}

    def read(self, body: Documents) -> list[Document]:
        """The documents of a request.

        Raises:
            ApiError: one is none, there are too many, or nothing may be changed.
        """
        self._check_writable()
        limits = self.service.limits
        self.service.check_count(
            len(body.documents), limits.documents, "documents", "--max-documents"
        )
        try:
            documents = [as_document(item) for item in body.documents]
        except (TypeError, ValueError) as error:
            raise ApiError(400, str(error), param="documents") from error
        self.service.check_texts((document.text for document in documents), "documents")
        return documents

    def add(self, documents: Sequence[Document]) -> Json:
        """Encode and store documents; those of known ids are replaced."""
        changes = self.index.add(documents)
        return {**asdict(changes), "ids": [document.id for document in documents]}

    def check_delete(self, body: Deletion) -> None:
        """Refuse what cannot be removed.

        Raises:
            ApiError: nothing may be changed (403), or an id is none (400).
        """
        self._check_writable()
        try:
            check_ids(body.ids or [])
        except ValueError as error:
            raise ApiError(400, str(error), param="ids") from error

    def delete(self, body: Deletion) -> Json:
        """Remove documents by their ids or by their metadata."""
        return {"deleted": self.index.delete(body.ids, filter=body.filter)}

    def get(self, name: str) -> Json:
        """One document.

        Raises:
            ApiError: there is none of that id (404).
        """
        try:
            return _record(self.index.get([name])[0])
        except KeyError as error:
            raise ApiError(
                404, "the index holds no document of this id", code="document_not_found"
            ) from error

    def _check_writable(self) -> None:
        if self.read_only:
            raise ApiError(403, "this server only searches its index (--read-only)")


def _record(document: Document) -> Json:
    metadata: Any = document.metadata
    return {"id": document.id, "text": document.text, "metadata": dict(metadata)}
