"""How much an approximate search does: one table."""

from __future__ import annotations

from dataclasses import dataclass

from colbert_rag.index.how import DEFAULT_EFFORT


@dataclass(frozen=True, slots=True)
class Effort:
    """What one effort means.

    Attributes:
        probes: Centroids whose documents each row of the query looks at.
        by_codes: Documents that are scored by their centroids.
        by_vectors: Of these, documents that are scored exactly.
    """

    probes: int
    by_codes: int
    by_vectors: int

    def for_results(self, top_k: int) -> Effort:
        """The same where `top_k` documents are wanted."""
        by_vectors = max(self.by_vectors, _PER_RESULT * top_k)
        return Effort(self.probes, max(self.by_codes, _PER_VECTORS * by_vectors), by_vectors)

    def saves(self, documents: int) -> bool:
        """Whether it is less work than an exact search, which reads so many documents.

        Where it is not, that one finds more and is faster: vectors of few documents lie scattered
        over SQLite's pages, and are checked; an exact search has all of them mapped, in one piece.
        """
        return documents >= _WORTH * self.by_vectors


EFFORTS = {
    1: Effort(4, 2_048, 128),
    2: Effort(4, 4_096, 256),
    3: Effort(8, 8_192, 512),
    4: Effort(12, 8_192, 1_536),
    5: Effort(32, 16_384, 2_048),
}
"""From the quickest to the most thorough. Once the default finds too little, it is documents scored
exactly that are missing, more than centroids or documents scored by codes (benchmarks/NOTES.md)."""

# From so many vectors on centroids become no more, but wider, and codes tell less apart.
_LARGE = 2**25


def usual(tokens: int) -> int:
    """The number of the effort that an index of so many vectors is searched with."""
    return DEFAULT_EFFORT if tokens < _LARGE else DEFAULT_EFFORT + 1


# The hundredth best needs a wider net than the tenth.
_PER_RESULT, _PER_VECTORS = 5, 4

# An exact search takes two cores so much less for a document than one whose vectors are read one by
# one, together with all that comes before (benchmarks/NOTES.md).
_WORTH = 8
