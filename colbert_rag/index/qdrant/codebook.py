"""Token vectors as words of a codebook, and documents and queries as sparse vectors of these words.

Each token of a document is named by the centroid nearest to it. Qdrant's sparse index over these
names is an inverted list, so a search touches only documents that share a name with the query. A
row of the query asks for the centroids nearest to it, each with what it is nearer than the nearest
that was not asked for: the score is then the sum of what the rows gain, as in the first stage of
PLAID (Santhanam et al. 2022, https://arxiv.org/abs/2205.09707). A document with several of these
centroids gains several times where MaxSim takes the largest; it is a first stage, and no score.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

import numpy as np
import torch
from qdrant_client import models
from torch import Tensor

from colbert_rag.computing import computing
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.kmeans import Centroids
from colbert_rag.index.qdrant.collection import Coding

# Indices of a sparse vector have 32 bits, of which a codebook takes its own stretch.
HIGHEST_BASE = 2**32 - 2**24


@dataclass(frozen=True, eq=False, slots=True)
class Codebook:
    """Centroids with numbers of their own.

    Attributes:
        base: The number of the first centroid, drawn at random: it names the codebook. So codes of
            two codebooks can stand in one sparse vector, and a query meets those of its own.
        centroids: The vectors.
    """

    base: int
    centroids: Centroids

    @torch.no_grad()
    def documents(self, embeddings: TokenEmbeddings) -> list[Coding]:
        """The codes of each document, each once and rising."""
        codes, _ = self.centroids.nearest(embeddings.values)
        lengths = embeddings.offsets.diff().tolist()
        return [
            Coding(as_codes((part.unique() + self.base).tolist()), (self.base,))
            for part in codes.split(lengths)
        ]

    @torch.no_grad()
    def query(self, rows: Tensor, probes: int) -> models.SparseVector:
        """The codes that a query looks for, and what each gains, summed over its rows.

        Args:
            rows: `(rows, dim)`, float32, on the CPU.
            probes: Centroids for each row.
        """
        probes = min(probes, len(self.centroids) - 1)
        with computing():
            values, codes = (rows @ self.centroids.values.T).topk(probes + 1, 1)
        gains = values[:, :probes] - values[:, probes:]
        # Where similarities are equal nothing is gained, and yet the document was found.
        gains = gains.clamp_min(_LEAST_GAIN)
        distinct, place = codes[:, :probes].unique(return_inverse=True)
        total = torch.zeros(len(distinct)).index_add_(0, place.flatten(), gains.flatten())
        return models.SparseVector(indices=(distinct + self.base).tolist(), values=total.tolist())

    def own(self, codes: models.SparseVector) -> list[int]:
        """Those of the indices of a sparse vector that are of this codebook."""
        last = self.base + len(self.centroids)
        return [index for index in codes.indices if self.base <= index < last]

    def to_bytes(self) -> bytes:
        """The vectors, in float16, as a file of numpy's."""
        file = io.BytesIO()
        centroids = self.centroids
        np.savez(
            file,
            values=centroids.values.half().numpy(),
            groups=centroids.groups.half().numpy(),
            bounds=centroids.bounds.numpy(),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, base: int, data: bytes) -> Self:
        """The codebook that was written as `data`.

        Raises:
            ValueError: something else was written.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            values, groups, bounds = (torch.from_numpy(file[name]) for name in _PARTS)
        return cls(base, Centroids(values.float(), groups.float(), bounds))


_PARTS = ("values", "groups", "bounds")

_LEAST_GAIN = 1e-6


def codings(codebook: Codebook | None, embeddings: TokenEmbeddings) -> Sequence[Coding | None]:
    """What documents have as codes in a collection with this codebook, or with none."""
    return [None] * len(embeddings) if codebook is None else codebook.documents(embeddings)


def as_codes(indices: list[int]) -> models.SparseVector:
    """A document that has these codes."""
    return models.SparseVector(indices=sorted(indices), values=[1.0] * len(indices))


def digest_of(data: bytes) -> str:
    """What tells whether all of a codebook arrived."""
    return sha256(data).hexdigest()
