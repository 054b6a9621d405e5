"""`LocalIndex`: documents and token vectors in one SQLite file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from colbert_rag.codings import VectorCoding, coding_named
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexBusyError, IndexStorageError
from colbert_rag.index.base import Index, Result
from colbert_rag.index.choice import Choice
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import Document, Hit, Stored, check_ids
from colbert_rag.index.handle import MEMORY
from colbert_rag.index.how import How
from colbert_rag.index.info import IndexInfo, IndexStats
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.level.choice import write_choice
from colbert_rag.index.local.lookup import (
    documents_at,
    embeddings_at,
    encoded_page,
    remove_found,
    vectors_of,
)
from colbert_rag.index.local.opening import resolved
from colbert_rag.index.local.place import Place
from colbert_rag.index.local.rewriting import Rewriting
from colbert_rag.index.local.rows import Rows
from colbert_rag.index.local.searcher import Searcher
from colbert_rag.model import Model
from colbert_rag.settings import whole_number

MEMORY_BUDGET = 4 * 2**30
"""Default bound on the vectors held: about 11 million at dim 96 on a CPU, twice that on a GPU."""

_PAGE = 1024


class LocalIndex(Index):
    """Documents, metadata and token vectors in one file, with exact scores.

    One process writes at a time, any number read; readers see a commit at their next search. A
    killed process loses at most the batch it was working on. Ties keep the order of insertion; a
    document whose text was replaced counts as inserted anew.

    Processes that search a large index on a CPU share one copy of its vectors: a file beside it,
    named as it is with `-vectors` behind, which can be deleted at any time and is made again. A
    very large one is not read whole, but searched by a file with `-level` behind: see `search`.

    All methods may be called from any thread; searches of one index object take turns.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        colbert: Model | None = None,
        *,
        like: IndexInfo | None = None,
        token_pooling: float | None = None,
        vectors: VectorCoding | None = None,
        memory_budget: int = MEMORY_BUDGET,
        busy_timeout: float = 5.0,
        read_only: bool = False,
    ) -> None:
        """Open the index at `path`, or make one there.

        Args:
            path: A file, or `":memory:"` for an index that ends with this object.
            colbert: The model that encodes. Without one, an existing index can be read, copied and
                deleted from, and searched by vectors.
            like: Instead of a model, for a new index: the `info` of another one.
            token_pooling: Merge the vectors of each document to about `1 / token_pooling` of their
                number, such as 2 or 3. Recorded in the file; None follows it.
            vectors: How they are stored: "float16", the default of a new index; "int8", in half of
                the bytes; "int4", in little over a quarter. Recorded in the file; None follows it.
            memory_budget: Bytes of vectors to hold on the device, not counting the copy that
                processes share. What needs more is read from the file in blocks, at every search.
            busy_timeout: Seconds to wait for another writer.
            read_only: Refuse every write to the index.

        Raises:
            FileNotFoundError: there is no index, and nothing says which model to make one for.
            IndexCorruptError: the file is damaged, or something else.
            IndexMismatchError: the index was made by another model, recipe or way of storing.
            IndexStorageError: the file cannot be opened.
            ValueError: `vectors` is no such way.
        """
        memory_budget = whole_number("memory_budget", memory_budget, least=0)
        coding = None if vectors is None else coding_named(vectors)
        self._reopening = {
            "memory_budget": memory_budget,
            "busy_timeout": busy_timeout,
            "read_only": read_only,
        }
        self._database = Database(
            os.fspath(path),
            read_only=read_only,
            create=colbert is not None or like is not None,
            busy_timeout=busy_timeout,
        )
        try:
            info = resolved(self._database, colbert, like, token_pooling, coding)
        except BaseException:
            self._database.close()
            raise
        self._rows = Rows(self._database, info.dim)
        self._searcher = Searcher(
            self._database,
            self._rows,
            info,
            device="cpu" if colbert is None else colbert.device,
            memory_budget=memory_budget,
        )
        self._rewriting = Rewriting(self._database, self._rows, info)
        super().__init__(self._database.path, info, colbert)

    @property
    def vectors(self) -> VectorCoding:
        """How vectors are stored, as of the last look at the file."""
        return self._database.coding.name

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked for.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        return self._database.read(documents_at, self._rows, check_ids(ids), self.name)

    def embeddings(self, ids: Iterable[str]) -> TokenEmbeddings:
        """Stored vectors by id, in the order asked for; float16, on the CPU.

        Raises:
            KeyError: names the ids that the index does not hold.
        """
        return self._database.read(embeddings_at, self._rows, check_ids(ids), self.name)

    def encoded(self, batch_size: int = 256) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
        """Everything the index holds, in order of insertion, batch by batch.

        What is added or removed meanwhile may or may not be among it.
        """
        batch_size = whole_number("batch_size", batch_size, least=1)
        last = 0
        while True:
            page, vectors = self._database.read(encoded_page, self._rows, last, batch_size)
            if not page:
                return
            yield list(page.values()), vectors
            last = max(page)

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order of insertion."""
        last = 0
        while True:
            page = self._database.read(self._rows.page, last, _PAGE)
            if not page:
                return
            yield from page.values()
            last = max(page)

    def count(self) -> int:
        """How many documents the index holds."""
        return self._database.read(self._searcher.count)

    def stats(self) -> IndexStats:
        """How much the index holds, without reading any vector."""
        documents, tokens = self._database.read(self._rows.totals)
        return IndexStats(
            documents=documents,
            tokens=tokens,
            bytes=self._database.size(),
            vectors=self.vectors,
            vector_bytes=self._database.coding.row_bytes(self.info.dim),
            **asdict(self._searcher.held()),
        )

    def verify(self) -> None:
        """Read everything and compare it with its checksums, and what lies beside the index too.

        Raises:
            IndexCorruptError: something is damaged; says what.
        """
        self._database.check_pages()
        self._database.read(self._rows.counters)
        super().verify()
        self._searcher.verify()

    def compact(self) -> None:
        """Give the space of what was removed back; needs as much free space as the index.

        The shared copy of vectors goes, and is made again by the next search.

        Raises:
            IndexBusyError: another process or thread is writing.
            IndexStorageError: there is too little space; the index is as it was.
        """
        self._writing(self._compact)

    def _compact(self) -> None:
        self._rewriting.compact()
        self._searcher.give_back()

    def optimize(self, *, show_progress: bool = False) -> None:
        """Make the level of the index, or bring it up to date; see `search`.

        A large index does so by itself at the end of `add`. Others search and write meanwhile; what
        they add is found exactly, and is in the level with the next call. One that is interrupted
        goes on where it stopped.

        Args:
            show_progress: Draw a bar.

        Raises:
            IndexStorageError: the index is open for reading only.
        """
        self._database.check_writable()
        self._searcher.optimize(show_progress=show_progress)

    def convert(self, vectors: VectorCoding, *, show_progress: bool = False) -> None:
        """Store all vectors in another way: one commit, which a failure or a kill leaves out.

        Documents and order stay. More bits change no vector, and bring back none. Others that have
        the file open follow at their next call. `compact` gives back the space.

        Raises:
            IndexBusyError: another process or thread is writing.
            IndexStorageError: there is too little space; the index is as it was.
            ValueError: `vectors` is none of those that the constructor takes.
        """
        coding = coding_named(vectors)
        self._writing(lambda: self._rewriting.convert(coding, show_progress=show_progress))

    def publish(self, path: str | os.PathLike[str]) -> None:
        """Put all that this index holds in place of all that the index at `path` holds, at once.

        Safe while others have that file open: it is one commit. A search sees all of the old or
        all of the new, in this process and in others, and a failure or a kill leaves the old. The
        file is made if it is not there. One that was made by another model is from then on by this
        one: who has it open with the old model gets an `IndexMismatchError`.

        Raises:
            IndexBusyError: somebody is writing to that index.
            IndexCorruptError: this index, or that file, is damaged; nothing was published.
            IndexStorageError: the disk is full, or the file cannot be written; as before.
            ValueError: `path` is this index.
        """
        place = Place(os.fspath(path))
        if place.path == MEMORY or (place.file and place.file == self._database.place.file):
            raise ValueError(f"path is {place.path!r}, expected the file of another index")
        open_it = partial(LocalIndex, place.path, busy_timeout=self._database.busy_timeout)
        try:
            target = open_it()
        except FileNotFoundError:  # or one that could not be made: ours is the first model there
            target = open_it(like=self.info)
        with target as other:
            other._database.claimed(lambda: self._rewriting.publish(other._database))
            other._searcher.remove_level()
        # Its model may be another one than what was open. And a disk that is full by now is no
        # failure of what was published: the next write makes the level.
        with suppress(IndexBusyError, IndexStorageError), open_it() as published:
            published._searcher.optimize(show_progress=False, by_itself=True)

    def close(self) -> None:
        """Close the file; may be called again, but nothing else."""
        self._database.close()
        self._searcher.forget()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by path: another process opens the file again, with the same model.

        Raises:
            TypeError: the index is in memory, where no other process finds it.
        """
        if self.name == MEMORY:
            raise TypeError(
                f"{self!r} cannot be pickled: it exists in this process only. Give it a file, or "
                "copy it into an index that has one with copy_index"
            )
        return (_reopened, (self._database.place.absolute, self.colbert, self._reopening))

    def _search(
        self, queries: TokenEmbeddings, top_k: int, condition: Condition | None, how: How
    ) -> list[list[Hit]]:
        # One transaction from vectors to texts: no hit can vanish in between.
        return self._database.read(self._searcher.hits, queries, top_k, condition, how)

    def _is_empty(self) -> bool:
        return self._database.read(self._searcher.is_empty)

    def _check_efforts(self) -> None:
        if not self._database.read(self._searcher.has_level):
            raise ValueError(
                f"{self.name} has no level, so every search is exact, and there is nothing to "
                "measure: optimize() makes one, or warns of what is in its way"
            )

    def _passages(self, count: int) -> TokenEmbeddings:
        return self._database.read(self._searcher.sampled, count)

    def _choose(self, choice: Choice) -> None:
        if not self._database.read_only:
            self._database.write(write_choice, self._database, choice)

    def _known(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        return self._database.read(self._rows.known, ids)

    def _held(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self._database.read(vectors_of, self._rows, texts)

    def _write(
        self, documents: Sequence[Document], vectors: TokenEmbeddings, edited: Sequence[Document]
    ) -> None:
        def replace() -> None:
            self._rows.remove([document.id for document in documents])
            self._rows.insert(documents, self._database.coding.encoded(vectors))
            self._rows.set_metadata(edited)

        self._database.write(replace)

    def _delete(self, ids: Sequence[str]) -> int:
        return self._database.write(remove_found, self._rows, ids)

    def _ids_where(self, condition: Condition) -> list[str]:
        found = self._database.read(self._rows.ids_and_metadata)
        return [name for name, metadata in found if condition.matches(metadata)]

    def _writing(self, work: Callable[[], Result], *, show_progress: bool = False) -> Result:
        result = self._database.claimed(work)
        self._searcher.optimize(show_progress=show_progress, by_itself=True)
        return result


def _reopened(path: str, colbert: Model | None, options: Mapping[str, Any]) -> LocalIndex:
    """An index from its pickle; unlike `LocalIndex`, this never makes a new one."""
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no index at {path}, where the pickled one was")
    return LocalIndex(path, colbert, **options)
