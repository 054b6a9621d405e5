"""Rerank documents that any retriever found."""

# Annotations are not postponed here: LangChain makes the schema of a step from those of its
# function, and would look up their names in its own module.

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    Callbacks,
)
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import Field, PrivateAttr

from colbert_rag.adapter.reranking import EXPLANATION_KEY, Asked, Reranked, Reranking
from colbert_rag.inputs import check_query
from colbert_rag.langchain.documents import Watch, text_to_rank

RerankInput = Mapping[str, Any] | tuple[Sequence[Document], str]
"""What `as_runnable` takes: a mapping with `documents` and a query, or the two as a pair."""

QUERY_KEYS = ("query", "question", "input")
"""Where a mapping holds its query: our own word, and those of LangChain's chains."""


class ColBERTRerank(Reranking, BaseDocumentCompressor):
    """Order retrieved documents by late interaction, and keep the best.

    The model opens at the first query, or in `load()`, and is shared with every component that
    names the same one. Scores go to `metadata["relevance_score"]`. They order documents; they are
    not probabilities.

    With `explain`, a prompt that prints metadata prints the explanation too: several kilobytes for
    each document.
    """

    rank_fields: tuple[str, ...] = ()
    """Metadata whose values, in this order, are ranked in front of the text, such as `("title",)`.
    An explanation is of both; what is returned stays as it was."""
    score_key: str = "relevance_score"
    """Where in its metadata a returned document carries its score."""

    _watch: Watch = PrivateAttr(default_factory=Watch)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best documents, best first; the given ones stay as they are.

        Args:
            documents: What a retriever found, in any order.
            query: What they are ranked by.
            callbacks: Handlers that see this as one run; without them, the caller's own.

        Raises:
            InvalidQueryError: `query` is blank or not a string.
            ScoringError: no document received a finite score.
            TypeError: an item of `documents` is not a `Document`.
        """
        if not documents:  # not worth a run
            check_query(query, documents, "documents")
            return []
        given = {"documents": documents, "query": query}
        return self.as_runnable().invoke(given, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Like `compress_documents`, awaiting a server, and in a worker thread without one."""
        if not documents:
            check_query(query, documents, "documents")
            return []
        given = {"documents": documents, "query": query}
        return await self.as_runnable().ainvoke(given, {"callbacks": callbacks})

    def as_runnable(self) -> Runnable[RerankInput, list[Document]]:
        """This reranker as a step of a chain.

        Its input is a mapping with `documents` and one of `query`, `question`, `input`, or a pair
        `(documents, query)`. Its `batch` and `abatch` rank for all inputs at once, each distinct
        text encoded once, unless `explain` is set.
        """
        return _Step(self)

    def as_retriever(self, base: RetrieverLike) -> BaseRetriever:
        """A retriever that asks `base` and reranks what it finds.

        Every field of this reranker is a field of the retriever too, but `score_key` and
        `rank_fields`, so `configurable_fields(top_n=...)` works on it. Its `batch` runs in threads,
        so that what `base` does belongs to the run of its query; they share what they encode.
        """
        return ColBERTRerankRetriever(base=base, reranker=self, **_reranking_fields(self))

    def _run(self, given: RerankInput) -> list[Document]:
        documents, asked = self._read(given)
        return self._best(documents, self._rerank_one(asked))

    async def _arun(self, given: RerankInput) -> list[Document]:
        documents, asked = self._read(given)
        return self._best(documents, await self._arerank_one(asked))

    def _run_many(self, several: Sequence[RerankInput]) -> list[list[Document] | Exception]:
        """The answer to each input, or its error."""
        read = [self._tried(given) for given in several]
        results = self._rerank_many([one[1] for one in read if isinstance(one, tuple)])
        return self._answers_of(read, results)

    async def _arun_many(self, several: Sequence[RerankInput]) -> list[list[Document] | Exception]:
        """`_run_many`, awaiting a server."""
        if not self._awaited:
            return await asyncio.to_thread(self._run_many, several)
        read = [self._tried(given) for given in several]
        results = await self._arerank_many([one[1] for one in read if isinstance(one, tuple)])
        return self._answers_of(read, results)

    def _tried(self, given: RerankInput) -> tuple[list[Document], Asked] | Exception:
        try:
            return self._read(given)
        except (TypeError, ValueError) as error:
            return error

    def _answers_of(
        self,
        read: Sequence[tuple[list[Document], Asked] | Exception],
        results: Sequence[list[Reranked] | Exception],
    ) -> list[list[Document] | Exception]:
        following = iter(results)
        answers: list[list[Document] | Exception] = []
        for one in read:
            if isinstance(one, Exception):
                answers.append(one)
                continue
            found = next(following)
            answers.append(found if isinstance(found, Exception) else self._best(one[0], found))
        return answers

    def _best(self, documents: Sequence[Document], found: Sequence[Reranked]) -> list[Document]:
        return [self._returned(documents[result.index], result) for result in found]

    def _read(self, given: RerankInput) -> tuple[list[Document], Asked]:
        """The documents of an input, and what there is to rank."""
        documents, query = _read(given)
        watched = self._watch.over(documents, self.rank_fields)
        texts = [text_to_rank(document, self.rank_fields) for document in watched]
        return documents, self._asked(query, texts, [document.id for document in documents])

    def _returned(self, document: Document, result: Reranked) -> Document:
        added: dict[str, Any] = {self.score_key: result.score}
        if self.explain:
            added[EXPLANATION_KEY] = result.explanation
        return document.model_copy(update={"metadata": {**document.metadata, **added}})


class _Step(RunnableLambda[RerankInput, list[Document]]):
    """A reranker in a chain, which a batch of inputs asks once."""

    def __init__(self, reranker: ColBERTRerank) -> None:
        super().__init__(
            reranker._run,
            afunc=reranker._arun if reranker._awaited else None,
            name=type(reranker).__name__,
        )
        self._run_many = reranker._run_many
        self._arun_many = reranker._arun_many

    def batch(
        self,
        inputs: list[RerankInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """All inputs at once, as a run each."""
        return self._batch_with_config(
            self._run_many, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[RerankInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Like `batch`, awaiting a server, and in a worker thread without one."""
        return await self._abatch_with_config(
            self._arun_many, inputs, config, return_exceptions=return_exceptions, **kwargs
        )


class ColBERTRerankRetriever(Reranking, BaseRetriever):
    """A retriever whose results another one found; made by `ColBERTRerank.as_retriever`."""

    base: RetrieverLike
    """Finds the documents."""
    reranker: ColBERTRerank = Field(repr=False)
    """Reranks them, after taking over the fields of this retriever."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: object
    ) -> list[Document]:
        found = self.base.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return self._reranker().compress_documents(found, query, run_manager.get_child())

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: object
    ) -> list[Document]:
        found = await self.base.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return await self._reranker().acompress_documents(found, query, run_manager.get_child())

    def _reranker(self) -> ColBERTRerank:
        # A copy, not a new object: a subclass keeps its class and its own fields.
        return self.reranker.model_copy(update=_reranking_fields(self))


def _reranking_fields(component: Reranking) -> dict[str, Any]:
    return {name: getattr(component, name) for name in Reranking.model_fields}


def _read(given: RerankInput) -> tuple[list[Document], str]:
    """Documents and query, checked."""
    if isinstance(given, Mapping):
        queries = [given[key] for key in QUERY_KEYS if key in given]
        if "documents" not in given or not queries:
            raise ValueError(
                f"the input has the keys {', '.join(map(repr, given))}, expected 'documents' and "
                f"one of {', '.join(map(repr, QUERY_KEYS))}"
            )
        given = (given["documents"], queries[0])
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(
            f"the input is {type(given).__name__}, expected a mapping with 'documents' and "
            "'query', or a pair (documents, query)"
        )
    check_query(given[1], given[0], "documents")
    documents, query = list(given[0]), given[1]
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(
                f"document {index} is {type(document).__name__}, expected "
                "langchain_core.documents.Document"
            )
    return documents, query
