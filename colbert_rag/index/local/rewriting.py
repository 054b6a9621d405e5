"""Writing all of an index anew: in another coding, into another file, or without gaps."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from colbert_rag.codings import Coding
from colbert_rag.errors import IndexBusyError, IndexStorageError
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.record import Record
from colbert_rag.index.local.rows import Rows
from colbert_rag.progress import progress_bar

logger = logging.getLogger(__name__)

_PAGE = 256


@dataclass(frozen=True, slots=True)
class Rewriting:
    """An index of which everything is read; the caller is the one writer of what is written."""

    database: Database
    rows: Rows
    info: IndexInfo

    def convert(self, coding: Coding, *, show_progress: bool) -> None:
        """Store all vectors in `coding`, in one commit."""
        self.database.write(self._convert, coding, show_progress)
        _fold(self.database)

    def _convert(self, coding: Coding, show_progress: bool) -> None:
        if coding is self.database.coding:
            return
        positions = self.rows.positions()
        with progress_bar(None, total=len(positions), unit=" documents", show=show_progress) as bar:
            for some in positions.split(_PAGE):
                self.rows.set_vectors(some, coding.encoded(self.rows.vectors(some)))
                bar.update(len(some))
        # Last, since what is read until then is in the old coding.
        self.database.record(Record(self.info, coding))

    def compact(self) -> None:
        """Give freed pages back to the file system; needs as much free space as the index."""
        self.database.place.check()
        self.database.outside("VACUUM")
        _fold(self.database)

    def publish(self, target: Database) -> None:
        """Put everything in place of what `target` holds, in one commit."""
        self.database.read(target.write, self._replace, target)
        _fold(target)

    def _replace(self, target: Database) -> None:
        rows = Rows(target, self.info.dim)
        rows.clear()
        last = 0
        # Reads of their own, or what is wrong with the source would be said of the target.
        while page := self.database.read(self.rows.page, last, _PAGE):
            positions = torch.tensor(list(page), dtype=torch.int64)
            vectors = self.database.read(self.rows.coded, positions)
            rows.insert(list(page.values()), vectors)
            last = max(page)
        target.record(Record(self.info, self.database.coding))


def _fold(database: Database) -> None:
    """Empty the log into the file, as far as no reader needs it.

    What was written is committed by now. Where a full disk has no room for it in the file as well,
    it stays in the log, and that is no error of the call that wrote it.
    """
    try:
        database.outside("PRAGMA wal_checkpoint(TRUNCATE)")
        # An empty log says nothing about its file, see `check_log`.
        database.write(lambda: None)
    except (IndexBusyError, IndexStorageError) as error:
        logger.warning(
            "%s is committed as a whole, and for now stays in the log beside it (%s): free some "
            "space, and the next write or close folds it into the file",
            database.path,
            error.__cause__ or error,
        )
