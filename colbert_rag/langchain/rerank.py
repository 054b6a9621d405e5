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
            check_query(query)
            return []
        given = {"documents": documents, "query": query}
        return self.as_runnable().invoke(given, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Like `compress_documents`, in a worker thread."""
        if not documents:
            check_query(query)
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

    def _run_many(self, several: Sequence[RerankInput]) -> list[list[Document] | Exception]:
        """The answer to each input, or its error."""
        answers: list[list[Document] | Exception] = []
        read: dict[int, tuple[list[Document], Asked]] = {}
        for place, given in enumerate(several):
            try:
                read[place] = self._read(given)
                answers.append([])
            except (TypeError, ValueError) as error:
                answers.append(error)
        results = self._rerank_many([asked for _, asked in read.values()])
        for (place, (documents, _)), found in zip(read.items(), results, strict=True):
            answers[place] = found if isinstance(found, Exception) else self._best(documents, found)
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
        super().__init__(reranker._run, name=type(reranker).__name__)
        self._run_many = reranker._run_many

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
        """Like `batch`, in a worker thread."""

        async def run(several: list[RerankInput]) -> list[Exception | list[Document]]:
            return await asyncio.to_thread(self._run_many, several)

        return await self._abatch_with_config(
            run, inputs, config, return_exceptions=return_exceptions, **kwargs
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
    documents, query = list(given[0]), given[1]
    check_query(query)
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(
                f"document {index} is {type(document).__name__}, expected "
                "langchain_core.documents.Document"
            )
    return documents, query
