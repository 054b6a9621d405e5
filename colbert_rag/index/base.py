"""`Index`: the one list of what an index does, and what all of them do alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain
from typing import TypeVar

from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import InvalidFilterError
from colbert_rag.index import ingest
from colbert_rag.index.choice import Choice
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import (
    Changes,
    Document,
    DocumentLike,
    Stored,
    as_documents,
    check_found,
    check_ids,
    is_unicode,
)
from colbert_rag.index.filters import parse_filter
from colbert_rag.index.info import IndexStats
from colbert_rag.index.recall import WANTED, Asking, Recall
from colbert_rag.index.searching import Searchable
from colbert_rag.inputs import has_words
from colbert_rag.model import Model
from colbert_rag.settings import whole_number

Result = TypeVar("Result")


class Index(Searchable):
    """Searchable documents: `LocalIndex` keeps them in one file, `QdrantIndex` on a server.

    An engine, in a folder of its own, implements the abstract methods and `close` of `Handle`; its
    constructor calls `resolve_info`.

    Attributes:
        name: The file or collection, for messages.
        info: Which model made the index.
        colbert: The model that encodes, where the index was opened with one.
    """

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
        total = len(documents) if isinstance(documents, Sized) else None
        return self._add(as_documents(documents), batch_size, total, show_progress)

    def _add(
        self, documents: Iterable[Document], batch_size: int, total: int | None, show_progress: bool
    ) -> Changes:
        colbert = self._model()
        size = whole_number("batch_size", batch_size, least=1)
        batches = ingest.in_batches(documents, size, total=total, show_progress=show_progress)
        return self._writing(
            lambda: sum((self._add_batch(batch, colbert) for batch in batches), Changes()),
            show_progress=show_progress,
        )

    def _add_batch(self, batch: Sequence[Document], colbert: Model) -> Changes:
        known = self._known([document.id for document in batch])
        fresh, edited, changes = ingest.compare(batch, known)
        if fresh or edited:
            texts = [document.text for document in fresh]
            held = self.embeddings_for(list(dict.fromkeys(texts)))
            vectors = ingest.encode_missing(texts, held, colbert, self.info)
            self._write(fresh, ingest.check_vectors(fresh, vectors, self.info.dim), edited)
        return changes

    def add_encoded(self, documents: Sequence[Document], embeddings: TokenEmbeddings) -> Changes:
        """Store documents whose vectors exist already, as one batch; needs no model.

        Args:
            documents: One per text of `embeddings`; as in `add`, identical ones are skipped.
            embeddings: As they are to be stored: made by the model of `info`, and pooled if it
                says so.
        """
        given = list(as_documents(documents))
        places = {document.id: place for place, document in enumerate(given)}
        if len(places) < len(given):
            raise ValueError("two of the documents have the same id, and only one can be stored")
        halves = ingest.check_vectors(given, embeddings, self.info.dim)

        def write() -> Changes:
            fresh, edited, changes = ingest.compare(given, self._known(list(places)))
            if fresh or edited:
                rows = [places[document.id] for document in fresh]
                self._write(fresh, halves[rows] if len(rows) < len(given) else halves, edited)
            return changes

        return self._writing(write)

    def update(self, documents: Iterable[DocumentLike], *, show_progress: bool = False) -> Changes:
        """Replace documents that the index holds; new metadata alone needs no encoding.

        Raises:
            KeyError: the index holds no document with one of the ids; nothing was changed.
        """
        given = list(as_documents(documents))
        ids = [document.id for document in given]
        check_found(ids, self._known(ids), self.name)
        return self._add(given, 256, len(given), show_progress)

    def delete(
        self, ids: Iterable[str] | None = None, *, filter: Mapping[str, object] | None = None
    ) -> int:
        """Remove documents by their ids or by their metadata, and return how many there were.

        Args:
            ids: Unknown ones are no error.
            filter: Removes all that pass it; see `colbert_rag.index.filters`.

        Raises:
            InvalidFilterError: the filter is not in the language, or would let everything pass.
            ValueError: both are given, or neither.
        """
        if (ids is None) == (filter is None):
            raise ValueError("delete takes either ids or a filter")
        if ids is not None:
            listed = check_ids(ids)
            return self._writing(lambda: self._delete(listed))
        condition = parse_filter(filter)
        if condition is None:
            raise InvalidFilterError("the filter is empty, and would delete every document")
        # The look and the removal as one, or a document could change between them.
        return self._writing(lambda: self._delete(self._ids_where(condition)))

    def sync(
        self,
        documents: Iterable[DocumentLike],
        *,
        source_key: str = "source",
        sources: Iterable[str] = (),
        batch_size: int = 256,
        show_progress: bool = False,
    ) -> Changes:
        """Add and update documents, and remove those of the same sources that were not given.

        Sources can share an index: the documents of one that is not named here stay. Nothing is
        removed before all is stored, so that an interrupted call can simply be repeated.

        Args:
            documents: As in `add`; each must have a source.
            source_key: The metadata key that says where a document is from.
            sources: Sources that may hold nothing any more.
            batch_size: As in `add`.
            show_progress: Draw a bar.

        Raises:
            ValueError: a document has no source, or `source_key` a dot; nothing is removed then.
        """
        seen = ingest.SeenSources(source_key, sources)
        given = seen.watch(documents)
        changes = Changes()
        if (first := next(given, None)) is not None:  # with none, no model is needed
            changes = self._add(chain([first], given), batch_size, None, show_progress)

        def remove() -> Changes:
            gone = [name for name in self._ids_where(seen.sources) if name not in seen.ids]
            return Changes(removed=self._delete(gone) if gone else 0)

        return changes + self._writing(remove)

    def embeddings_for(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Stored vectors of those of the texts that the index holds; float16, on the CPU.

        With `info.token_pooling` they are the pooled ones.
        """
        # What cannot be stored is not held, and of a text without words no vectors are.
        return self._held([text for text in texts if is_unicode(text) and has_words(text)])

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
    def stats(self) -> IndexStats:
        """How much the index holds."""

    def verify(self) -> None:
        """Read everything that the index holds, and check what can be checked.

        Raises:
            IndexCorruptError: something is damaged; says what (`LocalIndex`).
        """
        for _ in self.encoded():
            pass

    @abstractmethod
    def compact(self) -> None:
        """Give back the space of what was removed."""

    def optimize(self, *, show_progress: bool = False) -> None:
        """Make, or bring up to date, what searches go faster by; nothing, if there is none.

        Args:
            show_progress: Draw a bar.
        """

    def recall(
        self,
        queries: Sequence[str] | TokenEmbeddings | None = None,
        k: int = 10,
        *,
        sample: int = 100,
        wanted: float = WANTED,
    ) -> Recall:
        """Measure what searches that are not exact find, and choose the effort for this index.

        Every effort is compared with the exact search. The smallest one that finds the part
        `wanted` of the best `k` is recorded in the index, unless that is open for reading only.

        Args:
            queries: Such as your users ask; vectors need no model. None takes pieces of stored
                passages, which are a little easier.
            k: How many of the best documents count.
            sample: How many of the queries are asked, at most.
            wanted: From 0 to 1.

        Raises:
            ValueError: every search is exact (see `optimize`), or an argument is out of range.
        """
        asking = Asking(k, sample, wanted)
        self._check_efforts()
        found = asking.compare(self, asking.queries(self, queries, self._passages))
        self._choose(
            Choice(effort=found.chosen, recall=found.reached, k=found.k, queries=found.queries)
        )
        return found

    @abstractmethod
    def _check_efforts(self) -> None:
        """Refuse to measure efforts where every search is exact, by a `ValueError`."""

    @abstractmethod
    def _passages(self, count: int) -> TokenEmbeddings:
        """The vectors of at most so many documents that have words, from all over the index."""

    @abstractmethod
    def _choose(self, choice: Choice) -> None:
        """Record an effort for the searches to come, unless the index is open for reading only."""

    @abstractmethod
    def _known(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        """What is held under some ids."""

    @abstractmethod
    def _held(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of those of the texts that are held."""

    @abstractmethod
    def _write(
        self, documents: Sequence[Document], vectors: TokenEmbeddings, edited: Sequence[Document]
    ) -> None:
        """Put documents in place of any with the same ids, and set the metadata of `edited`."""

    @abstractmethod
    def _ids_where(self, condition: Condition) -> list[str]:
        """The ids of the documents whose metadata passes."""

    @abstractmethod
    def _delete(self, ids: Sequence[str]) -> int:
        """Remove documents, and return how many there were."""

    def _writing(self, work: Callable[[], Result], *, show_progress: bool = False) -> Result:
        """`work()`, without other writers where an engine has one at a time.

        What an engine does afterwards with a large index may draw a bar.
        """
        return work()

    def __repr__(self) -> str:
        """Say where, and which model made it."""
        return f"{type(self).__name__}({self.name!r}, {self.info.checkpoint}, dim {self.info.dim})"
