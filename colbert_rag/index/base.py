"""What both indexes do alike: everything between the caller's texts and the store's vectors."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import InvalidQueryError, ScoringError
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import (
    Changes,
    Document,
    DocumentLike,
    Hit,
    as_document,
    is_unicode,
)
from colbert_rag.index.filters import parse_filter
from colbert_rag.index.ingest import Store, add_documents, add_encoded
from colbert_rag.index.protocol import Encoder, IndexInfo
from colbert_rag.settings import whole_number


class StoredIndex(ABC):
    """The common part of `LocalIndex` and `QdrantIndex`.

    Attributes:
        name: The file or collection, for messages.
        info: Which model made the index.
    """

    def __init__(self, name: str, store: Store, colbert: Encoder | None) -> None:
        """Serve the documents of `store`; `colbert` encodes, where there is one."""
        self.name = name
        self.info: IndexInfo = store.info
        self._store = store
        self._colbert = colbert

    @property
    def colbert(self) -> Encoder | None:
        """The model that encodes, where the index was opened with one."""
        return self._colbert

    def add(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_size: int = 256,
        show_progress: bool = False,
    ) -> Changes:
        """Encode and store documents; `batch_size` of them are committed at a time.

        A known id is replaced, an identical document skipped, a text the index holds under another
        id not encoded again. A call that was interrupted can simply be repeated.

        Args:
            documents: `Document`s, texts, or mappings with `text` and perhaps `id` and `metadata`;
                a generator is read as it goes.
            batch_size: Documents encoded and committed together.
            show_progress: Draw a bar.

        Raises:
            IndexBusyError: another process or thread is writing (`LocalIndex`).
            IndexStorageError: the disk is full, or the file cannot be written (`LocalIndex`).
            TypeError: something is not a document, or its metadata not JSON.
            ValueError: the model gave vectors that cannot be stored, or the index has no model.
        """
        colbert = self._model()
        with self._writing():
            return add_documents(
                self._store,
                colbert,
                documents,
                batch_size=batch_size,
                show_progress=show_progress,
            )

    def add_encoded(self, documents: Sequence[Document], embeddings: TokenEmbeddings) -> Changes:
        """Store documents whose vectors exist already, as one batch; needs no model.

        Args:
            documents: One per text of `embeddings`; as in `add`, identical ones are skipped.
            embeddings: As they are to be stored: made by the model of `info`, and pooled if it
                says so.
        """
        with self._writing():
            return add_encoded(self._store, documents, embeddings)

    def update(self, documents: Iterable[DocumentLike], *, show_progress: bool = False) -> Changes:
        """Replace documents that the index holds; new metadata alone needs no encoding.

        Raises:
            KeyError: the index holds no document with one of the ids; nothing was changed.
        """
        given = [as_document(document) for document in documents]
        ids = [document.id for document in given]
        known = self._store.known(ids)
        self._found([name for name in ids if name not in known])
        return self.add(given, show_progress=show_progress)

    def search(
        self, query: str, k: int = 10, filter: Mapping[str, object] | None = None
    ) -> list[Hit]:
        """The `k` documents with the highest MaxSim sums, best first.

        Args:
            query: What to look for.
            k: How many documents, at most.
            filter: Which metadata a document must have; see `colbert_rag.index.filters`.

        Raises:
            InvalidFilterError: the filter is not in the language.
            InvalidQueryError: the query is empty or no string.
            ValueError: `k` is negative, or the index has no model.
        """
        return self.search_many([query], k, filter)[0]

    def search_many(
        self, queries: Sequence[str], k: int = 10, filter: Mapping[str, object] | None = None
    ) -> list[list[Hit]]:
        """`search` for several queries, which are encoded and scored together."""
        if isinstance(queries, str):
            raise TypeError(f"queries is one string, expected several: [{queries!r}]")
        for query in queries:
            if not isinstance(query, str) or not query.strip():
                raise InvalidQueryError(f"the query is {query!r}, expected text that is not blank")
        parse_filter(filter)  # before the model is loaded for nothing
        colbert = self._model()
        k = whole_number("k", k, least=0)
        if not queries or k == 0 or self.count() == 0:
            return [[] for _ in queries]
        return self.search_embeddings(colbert.encode_queries(queries), k, filter)

    def search_embeddings(
        self, queries: TokenEmbeddings, k: int = 10, filter: Mapping[str, object] | None = None
    ) -> list[list[Hit]]:
        """`search_many` for queries that are encoded already; needs no model.

        Raises:
            InvalidFilterError: the filter is not in the language.
            ScoringError: the vectors of a query are not finite.
            ValueError: `k` is negative, or the vectors have the wrong width.
        """
        k = whole_number("k", k, least=0)
        condition = parse_filter(filter)
        if queries.dim != self.info.dim:
            raise ValueError(
                f"the queries are {queries.dim} wide, expected {self.info.dim} as the index holds"
            )
        if not bool(torch.isfinite(queries.values).all()):
            raise ScoringError(
                "the vectors of a query hold NaN or infinity, so nothing can be ranked"
            )
        if k == 0:
            return [[] for _ in range(len(queries))]
        return self._search(queries, k, condition)

    def embeddings_for(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Stored vectors of those of the texts that the index holds; float16, on the CPU.

        With `info.token_pooling` they are the pooled ones.
        """
        # What cannot be stored is not held.
        return self._store.embeddings_for([text for text in texts if is_unicode(text)])

    @abstractmethod
    def delete(self, ids: Iterable[str]) -> int:
        """Remove documents, and return how many there were; unknown ids are no error."""

    @abstractmethod
    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked for.

        Raises:
            KeyError: names the ids that the index does not hold.
        """

    @abstractmethod
    def embeddings(self, ids: Iterable[str]) -> TokenEmbeddings:
        """Stored vectors by id, in the order asked for; float16, on the CPU.

        Raises:
            KeyError: names the ids that the index does not hold.
        """

    @abstractmethod
    def encoded(self, batch_size: int = 256) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
        """Everything the index holds, in order of insertion, batch by batch.

        What is added or removed meanwhile may or may not be among it.
        """

    @abstractmethod
    def __iter__(self) -> Iterator[Document]:
        """Every document, in order of insertion."""

    @abstractmethod
    def count(self) -> int:
        """How many documents the index holds."""

    @abstractmethod
    def compact(self) -> None:
        """Give back the space of what was removed."""

    @abstractmethod
    def close(self) -> None:
        """Release what the index holds; it cannot be used afterwards."""

    @abstractmethod
    def _search(
        self, queries: TokenEmbeddings, k: int, condition: Condition | None
    ) -> list[list[Hit]]:
        """The best documents for each query, with `k` at least 1."""

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Held during a write."""
        return contextlib.nullcontext()

    def _model(self) -> Encoder:
        if self._colbert is None:
            raise ValueError(
                f"{self.name} was opened without a model, and encoding needs one: pass colbert "
                "when opening it"
            )
        return self._colbert

    def _found(self, missing: Sequence[str]) -> None:
        if missing:
            some = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise KeyError(f"{self.name} holds no document with id {some}")

    def __enter__(self) -> Self:
        """The index itself; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the index."""
        self.close()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """The index itself: frameworks deep-copy components, and a connection is no value."""
        return self

    def __repr__(self) -> str:
        """Say where, and which model made it."""
        kind = type(self).__name__
        return f"{kind}({self.name!r}, {self.info.checkpoint}, dim {self.info.dim})"
