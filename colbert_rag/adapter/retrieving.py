"""What a retriever does, whatever the framework."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from colbert_rag.adapter.index import SharedIndex, path_of
from colbert_rag.adapter.model import SharedModel
from colbert_rag.index import Document, Hit
from colbert_rag.index.handle import MEMORY
from colbert_rag.index.how import How
from colbert_rag.inputs import check_query, is_address
from colbert_rag.remote import RemoteIndex
from colbert_rag.remote.address import base_of
from colbert_rag.settings import wanted_hits

if TYPE_CHECKING:  # who asks a server needs no torch
    from colbert_rag.index import Index

NODE_KEY = "_llama_index_node"
"""Where the metadata of a stored document holds the LlamaIndex node it came from."""
SOURCE_KEY = "_llama_index_source"
"""Where it holds the id of the LlamaIndex document that the node was cut from."""
START_KEY = "_text_start"
"""Where it says after how many characters the text itself begins: others are encoded with it."""

OWN_KEYS = (NODE_KEY, SOURCE_KEY, START_KEY)


def check_metadata(metadata: Mapping[str, object], where: str) -> None:
    """Refuse metadata that uses a key of ours; `where` says whose it is.

    Raises:
        ValueError: it does.
    """
    for key in OWN_KEYS:
        if key in metadata:
            raise ValueError(f"metadata of {where} uses the key {key!r}: rename it")


def _check_asked(queries: Sequence[str], k: int) -> None:
    for query in queries:
        check_query(query)
    wanted_hits("k", k)


def as_given(document: Document) -> Document:
    """The document without what a retriever added to its text and its metadata."""
    start = document.metadata.get(START_KEY)
    metadata = {key: value for key, value in document.metadata.items() if key not in OWN_KEYS}
    return Document(
        document.id,
        document.text[start:] if isinstance(start, int) else document.text,
        metadata,
    )


class Retrieving(SharedIndex):
    """The public fields of a retriever, and what it does whatever the framework.

    Documents are cut at `document_length` tokens when they are stored, whatever `long_documents`
    says: split long ones first.
    """

    score: Literal["mean", "sum"] = "mean"
    """`"mean"` similarity of the query's vectors, from -1 to 1; `"sum"` is ColBERT's own score."""

    exact: bool | None = None
    """Whether every document is read; False and None as in `Index.search`."""
    effort: int | None = None
    """How much a search that is not exact does, 1 to 5; None is what `recall` chose, else 3,
    or 4 from 33 million vectors on."""

    @model_validator(mode="after")
    def _refuse_ways_that_contradict(self) -> Self:
        How.checked(self.exact, self.effort)
        return self

    @model_validator(mode="after")
    def _refuse_to_search_nothing(self) -> Self:
        if self.index is None or self.index == MEMORY:
            raise ValueError(
                f"index is {self.index!r}, expected the path of a file, the address of a server or "
                "an open index; to make one in memory, give documents to from_documents, or nodes "
                "to from_defaults"
            )
        remote = self._remote_index()
        if remote is not None and not (
            is_address(self.model) and base_of(self.model) == remote.name
        ):
            raise ValueError(
                f"model is {self.model!r}, but the index at {remote.name} is a server's, which "
                "encodes with its own model: leave model out"
            )
        return self

    @property
    def is_remote(self) -> bool:
        """Whether the index is a server's, so that a search has only to wait."""
        return self._remote_index() is not None

    def find(
        self, query: str, k: int, filter: Mapping[str, object] | None, how: How | None = None
    ) -> list[Hit]:
        """The best documents on the chosen scale, best first; raises what `find_many` does."""
        (hits,) = self.find_many([query], k, filter, how)
        return hits

    def find_many(
        self,
        queries: Sequence[str],
        k: int,
        filter: Mapping[str, object] | None,
        how: How | None = None,
    ) -> list[list[Hit]]:
        """The same for several queries, which are encoded and searched for together.

        Args:
            queries: The queries.
            k: How many documents of each.
            filter: Which metadata they must have.
            how: How thoroughly to look; None for as the fields say.

        Raises:
            FileNotFoundError: there is no index.
            IndexMismatchError: the index was made by another model.
            InvalidFilterError: the filter is not in the language.
            InvalidQueryError: a query is blank or not a string.
            ServerError: the index is a server's, and it did not answer.
            ValueError: `k` is less than 1.
        """
        _check_asked(queries, k)
        how = how or How(self.exact, self.effort)
        if (remote := self._remote_index()) is not None:
            return self._scaled(
                remote.search_many(queries, k, filter, exact=how.exact, effort=how.effort)
            )
        model = self._model
        index = self._open_index(model)
        # Not `index.search_many`: an index that was given may have been opened without a model.
        return self._scaled(
            index.search_embeddings(
                model.encode_queries(queries), k, filter, exact=how.exact, effort=how.effort
            )
        )

    async def afind(
        self, query: str, k: int, filter: Mapping[str, object] | None, how: How | None = None
    ) -> list[Hit]:
        """`find` in an index that is a server's, awaited."""
        (hits,) = await self.afind_many([query], k, filter, how)
        return hits

    async def afind_many(
        self,
        queries: Sequence[str],
        k: int,
        filter: Mapping[str, object] | None,
        how: How | None = None,
    ) -> list[list[Hit]]:
        """`find_many` in an index that is a server's, awaited."""
        _check_asked(queries, k)
        how = how or How(self.exact, self.effort)
        remote = self._remote_index()
        assert remote is not None  # callers look at `is_remote` first
        return self._scaled(
            await remote.asearch_many(queries, k, filter, exact=how.exact, effort=how.effort)
        )

    def _scaled(self, found: list[list[Hit]]) -> list[list[Hit]]:
        if self.score == "sum":
            return found
        return [[replace(hit, score=hit.mean) for hit in hits] for hits in found]

    def store(self, documents: Iterable[Document], *, show_progress: bool) -> list[str]:
        """Encode and store documents, and return their ids."""
        ids: list[str] = []

        def noted() -> Iterator[Document]:
            for document in documents:
                ids.append(document.id)
                yield document

        index = self._remote_index() or self._open_index(self._model, create=True)
        index.add(noted(), show_progress=show_progress)
        return ids

    def remove(
        self, ids: Iterable[str] | None = None, *, filter: Mapping[str, object] | None = None
    ) -> int:
        """Remove documents by id or by metadata, as `Index.delete`, and return how many there were.

        Raises:
            InvalidFilterError: the filter is not in the language, or would let all pass.
        """
        with self._without_model() as index:
            return index.delete(ids, filter=filter)

    def get(self, ids: Iterable[str]) -> list[Document]:
        """The documents with these ids, as far as they are there."""
        found: list[Document] = []
        with self._without_model() as index:
            for name in ids:
                with contextlib.suppress(KeyError):
                    found += index.get([name])
        return found

    def copy_to(self, file: Path) -> None:
        """Make the index in a file equal to this one; it may be this one.

        Raises:
            IndexMismatchError: the file holds an index of another model.
        """
        from colbert_rag.index import LocalIndex, copy_index

        with self._without_model() as source:
            if isinstance(source, RemoteIndex):
                raise ValueError(
                    f"the index is kept by {source.name}, and cannot be copied from here: open it "
                    "again by its address"
                )
            path = path_of(source)
            if path is not None and file.exists() and file.samefile(path):
                return
            with LocalIndex(file, like=source.info) as target:
                kept = {document.id for document in source}
                target.delete([document.id for document in target if document.id not in kept])
                copy_index(source, target)

    @contextlib.contextmanager
    def _without_model(self) -> Iterator[Index | RemoteIndex]:
        """The index, for work that encodes nothing."""
        if (remote := self._remote_index()) is not None:
            yield remote
            return
        from colbert_rag.index import Index, LocalIndex

        if isinstance(self.index, str):
            with LocalIndex(self.index) as index:
                yield index
        else:
            assert isinstance(self.index, Index)  # a validator saw to it
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


def with_index(path: str | os.PathLike[str] | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a component over the file at `path`, else `index`, else a new one in memory."""
    if path is not None:
        return dict(index=os.fspath(path), **fields)  # an index of the fields, too, is an error
    if "index" in fields:
        return dict(fields)
    from colbert_rag.index import LocalIndex

    named = {name: fields[name] for name in SharedModel.model_fields if name in fields}
    return {**fields, "index": LocalIndex(MEMORY, SharedModel(**named)._model)}
