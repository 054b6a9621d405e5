"""What a retriever does, whatever the framework."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from colbert_rag.adapter.model import SharedModel, check_query
from colbert_rag.adapter.shared_index import MEMORY, SharedIndex, path_of
from colbert_rag.colbert import ColBERT
from colbert_rag.index import Document, Hit, Index, LocalIndex, copy_index

NODE_KEY = "_llama_index_node"
"""Where the metadata of a stored document holds the LlamaIndex node it came from."""


class Retrieving(SharedIndex):
    """The public fields of a retriever, and what it does whatever the framework.

    Documents are cut at `document_length` tokens when they are stored, whatever `long_documents`
    says: split long ones first.
    """

    score: Literal["mean", "sum"] = "mean"
    """`"mean"` similarity of the query's vectors, from -1 to 1; `"sum"` is ColBERT's own score."""

    @model_validator(mode="after")
    def _refuse_to_search_nothing(self) -> Self:
        if self.index is None or self.index == MEMORY:
            raise ValueError(
                f"index is {self.index!r}, expected the path of a file or an open index; to make "
                "one in memory, give documents to from_documents, or nodes to from_defaults"
            )
        return self

    def _find(self, query: str, k: int, filter: Mapping[str, object] | None) -> list[Hit]:
        """The best documents on the chosen scale, best first.

        Raises:
            FileNotFoundError: there is no index.
            IndexMismatchError: the index was made by another model.
            InvalidFilterError: the filter is not in the language.
            InvalidQueryError: the query is blank.
            TypeError: the query is not a string.
            ValueError: `k` is less than 1.
        """
        check_query(query)
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        colbert = self._model
        index = self._open_index(colbert)
        queries = colbert.encode_queries([query])
        hits = index.search_embeddings(queries, k, filter)[0]
        if self.score == "sum":
            return hits
        return [replace(hit, score=hit.mean) for hit in hits]

    def _store(self, documents: Iterable[Document], *, show_progress: bool) -> list[str]:
        """Encode and store documents, and return their ids."""
        ids: list[str] = []

        def noted() -> Iterator[Document]:
            for document in documents:
                ids.append(document.id)
                yield document

        index = self._open_index(self._model, create=True)
        index.add(noted(), show_progress=show_progress)
        return ids

    def _remove(self, ids: Iterable[str]) -> int:
        """Remove documents, and return how many there were."""
        with self._without_model() as index:
            return index.delete(ids)

    def _copy_to(self, file: Path) -> None:
        """Make the index in a file equal to this one; it may be this one.

        Raises:
            IndexMismatchError: the file holds an index of another model.
        """
        with self._without_model() as source:
            path = path_of(source)
            if path is not None and file.exists() and file.samefile(path):
                return
            with LocalIndex(file, like=source.info) as target:
                kept = {document.id for document in source}
                target.delete([at.id for at in target if at.id not in kept])
                copy_index(source, target)

    @contextlib.contextmanager
    def _without_model(self) -> Iterator[Index]:
        """The index, for work that encodes nothing."""
        if isinstance(self.index, str):
            with LocalIndex(self.index) as index:
                yield index
        else:
            assert self.index is not None  # a validator saw to it
            yield self.index

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle the index by its path.

        Raises:
            TypeError: it has none.
        """
        if path_of(self.index) is None:
            raise TypeError(
                f"a retriever over {self.index!r} cannot be pickled: use an index in a file, or "
                "make the retriever where it is needed"
            )
        return super().__getstate__()


def in_memory(fields: Mapping[str, Any]) -> LocalIndex:
    """A new index that ends with the component whose fields these are."""
    named = {name: fields[name] for name in SharedModel.model_fields if name in fields}
    model = SharedModel(**named).ranker
    if not isinstance(model, ColBERT):
        raise TypeError(f"colbert is {type(model).__name__}, expected a ColBERT")
    return LocalIndex(MEMORY, model)
