"""Retrieve nodes by late interaction itself."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import BaseNode, IndexNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters

from colbert_rag.adapter.index import read_info
from colbert_rag.adapter.model import SharedModel
from colbert_rag.adapter.retrieving import SOURCE_KEY, Retrieving, with_index
from colbert_rag.index import Document, Hit
from colbert_rag.index.handle import Handle
from colbert_rag.llama_index.filters import to_filter
from colbert_rag.llama_index.nodes import to_document, to_node
from colbert_rag.settings import refuse_unknown, wanted_hits
from colbert_rag.written import write_whole

INDEX_FILE = "colbert.sqlite"
OPTIONS_FILE = "retriever.json"


class ColBERTRetriever(BaseRetriever):
    """Find nodes in an index by late interaction.

    Make one with `from_defaults`, keep it with `persist`, open it again with `from_persist_dir`, or
    give any `index`. The model opens at the first query, or in `load()`, and is shared with
    every component that names the same one.

    A node comes back as it was stored: class, id, metadata, excluded keys and relationships.
    Metadata must be JSON values.
    """

    def __init__(
        self,
        index: Handle | str | os.PathLike[str],
        *,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | None = None,
        score: Literal["mean", "sum"] = "mean",
        exact: bool | None = None,
        effort: int | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
        **model: Any,
    ) -> None:
        """Search an index.

        Args:
            index: The file of a `LocalIndex`, the address of a server, or an open index of any
                kind.
            similarity_top_k: How many nodes to return.
            filters: Which metadata they must have.
            score: `"mean"` similarity of the query's vectors, from -1 to 1; `"sum"` is ColBERT's.
            exact: Whether every node is read; False and None as in `Index.search`.
            effort: How much a search that is not exact does, from 1 to 5; None is what `recall`
                chose for the index, else 3, or 4 from 33 million vectors on.
            metadata_mode: Which metadata is encoded along with the text of nodes that are added.
            callback_manager: As in every retriever.
            object_map: What `IndexNode`s stand for, by `index_id`.
            objects: Those nodes themselves, instead.
            verbose: As in every retriever.
            model: The fields that name the model, as those of `ColBERTRerank`; by default it is the
                one that made the index.

        Raises:
            InvalidFilterError: a filter has no counterpart in our indexes.
            TypeError: there is no such argument.
            ValueError: another argument is out of range.
        """
        names = ("similarity_top_k", "filters", "metadata_mode", *SharedModel.model_fields)
        refuse_unknown("an argument of ColBERTRetriever", model, known=names)
        super().__init__(callback_manager, object_map, objects, verbose)
        place = os.fspath(index) if isinstance(index, os.PathLike) else index
        self._retrieving = Retrieving(index=place, score=score, exact=exact, effort=effort, **model)
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.metadata_mode = MetadataMode(metadata_mode)

    @classmethod
    def from_defaults(
        cls,
        nodes: Iterable[BaseNode] | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> Self:
        """Store nodes in an index, and make a retriever over it.

        Args:
            nodes: They join those that the index holds; one with a known id replaces it. None to
                search what it holds.
            path: The file of the index, which is made if it is not there; without it, and without
                an `index` among the options, the index is in memory.
            show_progress: Draw a progress bar on standard error.
            options: Arguments of the class.
        """
        retriever = cls(**with_index(path, options))
        if nodes is not None:
            retriever.insert_nodes(nodes, show_progress=show_progress)
        return retriever

    @property
    def similarity_top_k(self) -> int:
        """How many nodes to return."""
        return self._similarity_top_k

    @similarity_top_k.setter
    def similarity_top_k(self, similarity_top_k: int) -> None:
        self._similarity_top_k = wanted_hits("similarity_top_k", similarity_top_k)

    @property
    def filters(self) -> MetadataFilters | None:
        """Which metadata nodes must have."""
        return self._filters

    @filters.setter
    def filters(self, filters: MetadataFilters | None) -> None:
        to_filter(filters)  # refuses now what a query could not use
        self._filters = filters

    def insert_nodes(self, nodes: Iterable[BaseNode], *, show_progress: bool = False) -> list[str]:
        """Store nodes, and return their ids; a known id is replaced."""
        documents = (self._document(node) for node in nodes)
        return self._retrieving.store(documents, show_progress=show_progress)

    def delete_nodes(self, node_ids: Sequence[str]) -> int:
        """Remove nodes, and return how many there were; unknown ids are no error."""
        return self._retrieving.remove(node_ids)

    def delete_ref_doc(self, ref_doc_id: str) -> int:
        """Remove the nodes that were cut from a document, and return how many there were."""
        return self._retrieving.remove(filter={SOURCE_KEY: ref_doc_id})

    def persist(self, persist_dir: str | os.PathLike[str]) -> None:
        """Write the index, and what a query was asked to return, into a folder.

        What an earlier `persist` left there is brought up to date, without encoding anything. An
        index that is in that folder already only needs the rest.

        Raises:
            IndexMismatchError: the folder holds an index of another model.
        """
        folder = Path(persist_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._retrieving.copy_to(folder / INDEX_FILE)
        options = {
            "similarity_top_k": self.similarity_top_k,
            "filters": None if self.filters is None else self.filters.model_dump(mode="json"),
            "score": self._retrieving.score,
            "exact": self._retrieving.exact,
            "effort": self._retrieving.effort,
            "metadata_mode": self.metadata_mode.value,
        }
        write_whole(folder / OPTIONS_FILE, json.dumps(options, indent=2))

    @classmethod
    def from_persist_dir(cls, persist_dir: str | os.PathLike[str], **options: Any) -> Self:
        """Open what `persist` wrote.

        Args:
            persist_dir: The folder.
            options: Arguments of the class, instead of those that were kept.

        Raises:
            FileNotFoundError: there is no index in the folder.
            IndexCorruptError: the file is damaged, or something else.
        """
        folder = Path(persist_dir)
        if read_info(str(folder / INDEX_FILE)) is None:
            raise FileNotFoundError(f"there is no {INDEX_FILE} in {folder}; persist writes it")
        kept = json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8"))
        if kept["filters"] is not None:
            kept["filters"] = MetadataFilters.model_validate(kept["filters"])
        return cls(folder / INDEX_FILE, **{**kept, **options})

    def load(self) -> None:
        """Load the weights now instead of at the first query."""
        self._retrieving.load()

    def unload(self) -> None:
        """Give back the memory of the weights, which all components that share them lose."""
        self._retrieving.unload()

    def _document(self, node: BaseNode) -> Document:
        if isinstance(node, IndexNode) and node.obj is not None:
            self.object_map[node.index_id] = node.obj
        return to_document(node, self.metadata_mode)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _found(self._retrieving.find(*self._wanted(query_bundle)))

    # The base class would hold up the event loop.
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._retrieving.is_remote:
            return _found(await self._retrieving.afind(*self._wanted(query_bundle)))
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _wanted(self, query_bundle: QueryBundle) -> tuple[str, int, dict[str, Any] | None]:
        # Read again, since filters can be changed in place.
        return query_bundle.query_str, self.similarity_top_k, to_filter(self.filters)


def _found(hits: Sequence[Hit]) -> list[NodeWithScore]:
    return [NodeWithScore(node=to_node(hit.document), score=hit.score) for hit in hits]
