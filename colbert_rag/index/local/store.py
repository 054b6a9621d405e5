"""The writing side of a `LocalIndex`, and its vectors by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.documents import Document, Known, text_digest
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.rows import Rows
from colbert_rag.index.protocol import IndexInfo


class LocalStore:
    """What `ingest` needs of an index file; each method is a transaction of its own."""

    def __init__(self, database: Database, rows: Rows, info: IndexInfo) -> None:
        """Read and write `rows` of `database`."""
        self.info = info
        self._database = database
        self._rows = rows

    def known(self, ids: Sequence[str]) -> Mapping[str, Known]:
        """What is held under some ids."""
        with self._database.reading():
            return self._rows.known(ids)

    def embeddings_for(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of those of the texts that are held."""
        digests = {text: text_digest(text) for text in texts}
        with self._database.reading():
            positions = self._rows.positions_of_texts(set(digests.values()))
            held = [text for text, digest in digests.items() if digest in positions]
            vectors = self.vectors([positions[digests[text]] for text in held])
        return dict(zip(held, vectors, strict=True))

    def vectors(self, positions: Sequence[int]) -> TokenEmbeddings:
        """Vectors in the order of `positions`, which may repeat."""
        with self._database.reading():
            rising = sorted(set(positions))
            vectors = self._rows.vectors(torch.tensor(rising, dtype=torch.int64))
        if rising == list(positions):
            return vectors
        places = {position: place for place, position in enumerate(rising)}
        return vectors[[places[position] for position in positions]]

    def write(
        self,
        documents: Sequence[Document],
        vectors: TokenEmbeddings,
        edited: Sequence[Document],
    ) -> None:
        """Put documents in place of any with the same ids, and set the metadata of `edited`."""
        with self._database.writing():
            self._rows.remove([document.id for document in documents])
            self._rows.insert(documents, vectors)
            self._rows.set_metadata(edited)
