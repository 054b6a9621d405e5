"""What is looked up in an index file by name: positions, vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.documents import check_found
from colbert_rag.index.local.rows import Rows


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
