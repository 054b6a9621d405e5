"""What is looked up in an index file by name: positions, vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.documents import Document, check_found, text_digest
from colbert_rag.index.local.rows import Rows


def positions_of(rows: Rows, ids: Sequence[str], where: str) -> list[int]:
    """The positions of some ids, in their order; `where` names the index.

    Raises:
        KeyError: names those that the index does not hold.
    """
    positions = _found(rows, ids)
    check_found(ids, positions, where)
    return [positions[name] for name in ids]


def remove_found(rows: Rows, ids: Sequence[str]) -> int:
    """Remove the documents that exist under some ids, and count them.

    Raises:
        IndexCorruptError: one is there, and would have been missed.
    """
    return rows.remove(_found(rows, ids))


def _found(rows: Rows, ids: Sequence[str]) -> dict[str, int]:
    positions = rows.positions_of(ids)
    if missing := [name for name in ids if name not in positions]:
        rows.check_missing(missing)
    return positions


def documents_at(rows: Rows, ids: Sequence[str], where: str) -> list[Document]:
    """Documents by their ids, in that order; raises what `positions_of` does."""
    positions = positions_of(rows, ids, where)
    found = rows.documents(positions)
    return [found[position] for position in positions]


def embeddings_at(rows: Rows, ids: Sequence[str], where: str) -> TokenEmbeddings:
    """Vectors by the ids of documents, in that order; raises what `positions_of` does."""
    return vectors_at(rows, positions_of(rows, ids, where))


def vectors_at(rows: Rows, positions: Sequence[int]) -> TokenEmbeddings:
    """Vectors in the order of `positions`, which may repeat."""
    rising = sorted(set(positions))
    vectors = rows.vectors(torch.tensor(rising, dtype=torch.int64))
    if rising == list(positions):
        return vectors
    places = {position: place for place, position in enumerate(rising)}
    return vectors[[places[position] for position in positions]]


def encoded_page(rows: Rows, after: int, size: int) -> tuple[dict[int, Document], TokenEmbeddings]:
    """The documents that follow a position, at most `size`, and their vectors."""
    page = rows.page(after, size)
    return page, vectors_at(rows, list(page))


def vectors_of(rows: Rows, texts: Sequence[str]) -> dict[str, Tensor]:
    """The vectors of those of some texts that the index holds."""
    digests = {text: text_digest(text) for text in texts}
    positions = rows.positions_of_texts(set(digests.values()))
    rising = sorted(set(positions.values()))
    # Not `vectors_at`, which copies all of them into the order of the texts.
    vectors = rows.vectors(torch.tensor(rising, dtype=torch.int64))
    at = dict(zip(rising, vectors, strict=True))
    return {text: at[positions[d]] for text, d in digests.items() if d in positions}
