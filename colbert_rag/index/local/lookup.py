"""What is looked up in an index file by name: its model, positions, vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.documents import check_found
from colbert_rag.index.info import IndexInfo, resolve_info
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.rows import Rows
from colbert_rag.model import Model


def positions_of(rows: Rows, ids: Sequence[str], where: str) -> list[int]:
    """The positions of some ids, in their order; `where` names the index.

    Raises:
        KeyError: names those that the index does not hold.
    """
    positions = rows.positions_of(ids)
    if missing := [name for name in ids if name not in positions]:
        rows.check_missing(missing)
    check_found(ids, positions, where)
    return [positions[name] for name in ids]


def vectors_at(rows: Rows, positions: Sequence[int]) -> TokenEmbeddings:
    """Vectors in the order of `positions`, which may repeat."""
    rising = sorted(set(positions))
    vectors = rows.vectors(torch.tensor(rising, dtype=torch.int64))
    if rising == list(positions):
        return vectors
    places = {position: place for place, position in enumerate(rising)}
    return vectors[[places[position] for position in positions]]


def resolved(
    database: Database,
    colbert: Model | None,
    like: IndexInfo | None,
    token_pooling: float | None,
) -> IndexInfo:
    """What the file records; a new one is made for the model that is given."""
    new = None
    if colbert is not None or like is not None:
        new = resolve_info(None, colbert, like, token_pooling, database.path)
    stored = database.begin(new)
    return resolve_info(stored, colbert, like, token_pooling, database.path)
