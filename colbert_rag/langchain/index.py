"""An index as LangChain's indexing API sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.indexing.base import DeleteResponse, DocumentIndex, UpsertResponse
from pydantic import ConfigDict

from colbert_rag.langchain.documents import to_document
from colbert_rag.langchain.retriever import ColBERTRetriever


class ColBERTIndex(DocumentIndex):
    """The index of a `ColBERTRetriever`, to be kept equal to its sources.

    `langchain_core.indexing.index(documents, record_manager, ColBERTIndex(retriever=...), ...)`
    stores what is new, skips what is there and, with `cleanup`, removes what has vanished.
    """

    model_config = ConfigDict(extra="forbid")

    retriever: ColBERTRetriever
    """Stores and finds the documents."""

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Store documents; a known id is replaced. `kwargs` go to `add_documents`."""
        return {"succeeded": self.retriever.add_documents(items, **kwargs), "failed": []}

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Remove documents; unknown ids are no failure. `kwargs` go to `ColBERTRetriever.delete`.

        Raises:
            ValueError: nothing says which.
        """
        if ids is None:
            raise ValueError("ids is None, expected the ids of the documents to remove")
        return {"num_deleted": self.retriever.delete(ids, **kwargs), "num_failed": 0, "failed": []}

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """The documents with these ids, as far as they are there."""
        return [to_document(document) for document in self.retriever.get(ids, **kwargs)]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return self.retriever.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await self.retriever.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
