"""Retrieve documents by late interaction itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig, run_in_executor
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from colbert_rag.adapter.index import read_info
from colbert_rag.adapter.retrieving import Retrieving, with_index
from colbert_rag.index.documents import Hit
from colbert_rag.index.filters import parse_filter
from colbert_rag.index.how import How
from colbert_rag.inputs import is_address
from colbert_rag.langchain.documents import Watch, to_document, to_stored


class ColBERTRetriever(Retrieving, BaseRetriever):
    """Find documents in an index by late interaction.

    Make one with `from_documents` or `from_texts`, open it again with `open`, or give any `index`.
    The model opens at the first query, or in `load()`, and is shared with every component that
    names the same one. Scores go to `metadata["relevance_score"]`.

    A call may say `k`, `filter`, and `exact` or `effort` for itself: `invoke(query, effort=1)`.

    A document comes back as a plain `Document`, with the id and metadata it was stored with.
    Metadata must be JSON values.
    """

    model_config = ConfigDict(extra="forbid")  # which the base class would undo

    k: int = Field(default=4, ge=1)
    """How many documents to return."""
    filter: dict[str, Any] | None = None
    """Which metadata they must have; see `colbert_rag.index.filters`."""
    rank_fields: tuple[str, ...] = ()
    """Metadata whose values, in this order, are encoded in front of the text of documents that are
    added, such as `("title",)`. They come back as they were given."""
    score_key: str = "relevance_score"
    """Where in its metadata a returned document carries its score."""

    _watch: Watch = PrivateAttr(default_factory=Watch)

    @field_validator("filter")
    @classmethod
    def _check_filter(cls, filter: dict[str, Any] | None) -> dict[str, Any] | None:
        parse_filter(filter)
        return filter

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        path: str | os.PathLike[str] | None = None,
        ids: Iterable[str] | None = None,
        show_progress: bool = False,
        **fields: Any,
    ) -> Self:
        """Store documents in an index, and make a retriever over it.

        Args:
            documents: They join those that the index holds; one with a known id replaces it.
            path: The file of the index, which is made if it is not there; without it, and without
                an `index` among the fields, the index is in memory.
            ids: Instead of the documents' own.
            show_progress: Draw a progress bar on standard error.
            fields: Those of the retriever.
        """
        retriever = cls(**with_index(path, fields))
        retriever.add_documents(documents, ids=ids, show_progress=show_progress)
        return retriever

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        **options: Any,
    ) -> Self:
        """Like `from_documents`, from texts and perhaps the metadata of each."""
        described = (
            ((text, {}) for text in texts)
            if metadatas is None
            else zip(texts, metadatas, strict=True)
        )
        documents = (Document(text, metadata=metadata) for text, metadata in described)
        return cls.from_documents(documents, **options)

    @classmethod
    def open(cls, path: str | os.PathLike[str], **fields: Any) -> Self:
        """A retriever over the index in a file, or at a server's address, with its own model.

        Raises:
            FileNotFoundError: there is no index.
            IndexCorruptError: the file is damaged, or something else.
            IndexStorageError: the file cannot be opened.
        """
        name = os.fspath(path)
        if not is_address(name) and read_info(name) is None:
            raise FileNotFoundError(f"there is no index at {name}; make one with from_documents")
        return cls(index=name, **fields)

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Iterable[str] | None = None,
        show_progress: bool = False,
    ) -> list[str]:
        """Store documents, and return their ids; a known id is replaced.

        A document without an id gets one from its text and metadata, so that adding it again
        changes nothing.
        """
        watched = self._watch.over(documents, self.rank_fields)
        named = zip(watched, repeat(None)) if ids is None else zip(watched, ids, strict=True)
        stored = (
            to_stored(document, name=name, rank_fields=self.rank_fields) for document, name in named
        )
        return self.store(stored, show_progress=show_progress)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove documents, and return how many there were; unknown ids are no error."""
        return self.remove(ids)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """All queries in one search; each is a run of its own, with its own configuration."""
        options = kwargs | {"found": self._found(inputs, **kwargs)}
        return super().batch(inputs, config, return_exceptions=return_exceptions, **options)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Like `batch`, awaiting a server, and in worker threads without one."""
        if self.is_remote:
            found = await self._afound(inputs, **kwargs)
        else:
            found = await run_in_executor(None, partial(self._found, inputs, **kwargs))
        options = kwargs | {"found": found}
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, **options)

    def _found(self, queries: Sequence[str], **options: Any) -> dict[str, list[Hit]]:
        """What one search finds for all queries; nothing where it fails.

        Each query is then searched for in its own run, which is where its error belongs.
        """
        try:
            asked = _asked(queries)
            return dict(zip(asked, self.find_many(asked, *self._wanted(**options)), strict=True))
        except Exception:
            return {}

    async def _afound(self, queries: Sequence[str], **options: Any) -> dict[str, list[Hit]]:
        try:
            asked = _asked(queries)
            found = await self.afind_many(asked, *self._wanted(**options))
            return dict(zip(asked, found, strict=True))
        except Exception:
            return {}

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        found: dict[str, list[Hit]] | None = None,
        **options: Any,
    ) -> list[Document]:
        # Taken, since two results must not share metadata: a query may stand in a batch twice.
        hits = None if found is None else found.pop(query, None)
        if hits is None:
            hits = self.find(query, *self._wanted(**options))
        return self._returned(hits)

    # The base class would drop `k`, `filter` and the like on this way.
    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        **kwargs: Any,
    ) -> list[Document]:
        if not self.is_remote:
            manager = run_manager.get_sync()
            find = partial(self._get_relevant_documents, run_manager=manager, **kwargs)
            return await run_in_executor(None, find, query)
        hits = kwargs.pop("found", {}).pop(query, None)
        if hits is None:
            hits = await self.afind(query, *self._wanted(**kwargs))
        return self._returned(hits)

    def _wanted(
        self,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        exact: bool | None = None,
        effort: int | None = None,
    ) -> tuple[int, Mapping[str, Any] | None, How | None]:
        # Either takes the place of both fields, which it may contradict.
        how = None if exact is effort is None else How.checked(exact, effort)
        return self.k if k is None else k, self.filter if filter is None else filter, how

    def _returned(self, hits: Sequence[Hit]) -> list[Document]:
        return [to_document(hit.document, **{self.score_key: hit.score}) for hit in hits]

    def _get_ls_params(self, **options: Any) -> LangSmithRetrieverParams:
        index = type(self.index).__name__
        if isinstance(self.index, str):
            index = "RemoteIndex" if is_address(self.index) else "LocalIndex"
        return LangSmithRetrieverParams(
            **super()._get_ls_params(**options),
            ls_vector_store_provider=index,
            ls_embedding_provider="colbert",
            ls_embedding_model=self.model,
        )


def _asked(queries: Sequence[str]) -> list[str]:
    """Each query once; a blank one is refused in its own run."""
    return [query for query in dict.fromkeys(queries) if query.strip()]
