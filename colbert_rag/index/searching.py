"""What searches: the half of `Index` that reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import ingest
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import Hit
from colbert_rag.index.filters import parse_filter
from colbert_rag.index.handle import Handle
from colbert_rag.index.how import How
from colbert_rag.index.info import IndexInfo
from colbert_rag.inputs import check_query
from colbert_rag.model import Model
from colbert_rag.settings import wanted_hits


class Searchable(Handle):
    """Documents that can be searched.

    Attributes:
        name: The file or collection, for messages.
        info: Which model made the index.
        colbert: The model that encodes, where the index was opened with one.
    """

    def __init__(self, name: str, info: IndexInfo, colbert: Model | None) -> None:
        """Name what is open."""
        self.name = name
        self.info = info
        self.colbert = colbert

    def search(
        self,
        query: str,
        top_k: int = 10,
        filter: Mapping[str, object] | None = None,
        *,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> list[Hit]:
        """The documents with the highest MaxSim, best first.

        Args:
            query: What to look for.
            top_k: How many documents, at most; of an index that holds none, 0 is all.
            filter: Which metadata a document must have; see `colbert_rag.index.filters`.
            exact: True reads every document that passes; False finds the best with high
                probability and reads few, where the index has what that takes (see `optimize`);
                None decides by size. Scores are exact either way.
            effort: How much a search that is not exact does, from 1 to 5; None takes what
                `recall` chose for this index, else 3, or 4 from 33 million vectors on.

        Raises:
            InvalidFilterError: the filter is not in the language.
            InvalidQueryError: the query is blank or no string.
            TypeError: `exact` or `effort` is of another type.
            ValueError: `top_k` is below 1, and there are documents; `effort` is no number from 1
                to 5, or the index has no model.
        """
        return self.search_many([query], top_k, filter, exact=exact, effort=effort)[0]

    def search_many(
        self,
        queries: Sequence[str],
        top_k: int = 10,
        filter: Mapping[str, object] | None = None,
        *,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """`search` for several queries, which are encoded and scored together."""
        if isinstance(queries, str):
            raise TypeError(f"queries is one string, expected several: [{queries!r}]")
        for query in queries:
            check_query(query)
        condition = parse_filter(filter)  # before the model is loaded for nothing
        top_k = self._places(top_k)
        how = How.checked(exact, effort)
        colbert = self._model()
        if not queries or self._is_empty():
            return [[] for _ in queries]
        vectors = ingest.encode_queries(queries, colbert, self.info)
        return self._search_vectors(vectors, top_k, condition, how)

    def search_embeddings(
        self,
        queries: TokenEmbeddings,
        top_k: int = 10,
        filter: Mapping[str, object] | None = None,
        *,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """`search_many` for queries that are encoded already; needs no model.

        Raises:
            InvalidFilterError: the filter is not in the language.
            ScoringError: the vectors of a query are not finite.
            ValueError: `top_k` is below 1, and there are documents, or the vectors have the wrong
                width.
        """
        condition, how = parse_filter(filter), How.checked(exact, effort)
        top_k = self._places(top_k)
        return self._search_vectors(queries, top_k, condition, how)

    def _search_vectors(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, how: How
    ) -> list[list[Hit]]:
        ingest.check_queries(queries, self.info.dim)
        if not top_k:
            return [[] for _ in queries]
        return self._search(queries, top_k, condition, how)

    def _places(self, top_k: int) -> int:
        """How many documents are asked for; see `read_top_k`, whose rule for zero this is."""
        # Nothing is counted for any other number: in Qdrant that is a request.
        least = 1 if top_k or not self._is_empty() else 0
        return wanted_hits("top_k", top_k, least=least)

    @abstractmethod
    def count(self) -> int:
        """How many documents the index holds."""

    def _is_empty(self) -> bool:
        """Whether it holds none."""
        return self.count() == 0

    @abstractmethod
    def _search(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, how: How
    ) -> list[list[Hit]]:
        """The best documents for each query, with `top_k` at least 1."""

    def _model(self) -> Model:
        if self.colbert is None:
            raise ValueError(
                f"{self.name} was opened without a model, and encoding needs one: pass colbert "
                "when opening it"
            )
        return self.colbert
