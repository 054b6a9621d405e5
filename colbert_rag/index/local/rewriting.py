"""Writing all vectors of an index anew: in another coding, or into another file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from colbert_rag.codings import Coding
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.record import Record
from colbert_rag.index.local.rows import Rows
from colbert_rag.progress import progress_bar

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
        self.database.fold()

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

    def publish(self, target: Database) -> None:
        """Put everything in place of what `target` holds, in one commit."""
        self.database.read(target.write, self._replace, target)
        target.fold()

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
