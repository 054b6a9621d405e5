"""Measures the efforts of a level, and records in the file which one was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.level.choice import Choice
from colbert_rag.index.local.level.effort import EFFORTS
from colbert_rag.index.local.searcher import Searcher
from colbert_rag.index.recall import Asking, Recall

if TYPE_CHECKING:
    from colbert_rag.index.local.index import LocalIndex


def measure(
    index: LocalIndex,
    searcher: Searcher,
    database: Database,
    queries: Sequence[str] | TokenEmbeddings | None,
    *,
    k: int,
    sample: int,
    wanted: float,
) -> Recall:
    """Measure every effort, and record the one that is chosen; see `LocalIndex.recall`."""
    asking = Asking(k, sample, wanted)
    if not database.read(searcher.has_level):
        raise ValueError(
            f"{index.name} has no level, so every search is exact, and there is nothing to "
            "measure: optimize() makes one, or warns of what is in its way"
        )
    asked = asking.queries(index, queries, lambda: database.read(searcher.sampled, asking.sample))
    found = asking.compare(index, asked, EFFORTS)
    choice = Choice(effort=found.chosen, recall=found.reached, k=found.k, queries=found.queries)
    if not database.read_only:
        database.write(choice.write, database)
    return found
