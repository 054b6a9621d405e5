"""Centroids of token vectors: found by k-means in two levels, and the nearest one of each vector.

One level would compare every vector with every centroid. In two, the vectors are first parted into
about the square root as many groups, and each group has centroids of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from colbert_rag.computing import computing
from colbert_rag.maxsim.torch_kernel import ones_at

# Rounds of Lloyd's algorithm: with 16, recall was the same to the third digit.
_ROUNDS = 8

# Vectors compared with centroids at once.
_ROWS = 2**16

MOST = 2**16
"""Centroids that two bytes tell apart."""

# Centroids for so many vectors are this times the square root, at most a few fewer than `MOST`:
# rounding may add one for each group.
_CENTROIDS, _ASKED = 12, MOST - 2**9

# Of the sample: vectors for each centroid, and bytes of float16 at most.
_SAMPLED, _SAMPLE_BYTES = 64, 640 * 2**20

SPREAD = 4
"""Of so many of a document's vectors one is in the sample, so that many documents are in it."""

# Vectors of the sample for each group, and for each centroid at the least.
_PER_GROUP, _LEAST = 256, 8

# In how many of the nearest groups the nearest centroid of a vector is looked for.
_NEAR = 4


@dataclass(frozen=True, eq=False, slots=True)
class Centroids:
    """Unit vectors that stand for all others, in groups.

    Attributes:
        values: `(centroids, dim)`, float32.
        groups: `(groups, dim)`, float32: the centre of each group.
        bounds: `(groups + 1,)`, int64: where the centroids of each begin and end.
    """

    values: Tensor
    groups: Tensor
    bounds: Tensor

    def __len__(self) -> int:
        """The number of centroids."""
        return len(self.values)

    def to(self, device: str) -> Centroids:
        """The same on another device; bounds stay on the CPU."""
        return Centroids(self.values.to(device), self.groups.to(device), self.bounds)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The centroid nearest to each vector, `(vectors,)`, int64, and its similarity, float32.

        It is looked for in the nearest groups alone.
        """
        with computing():
            parts = [self._nearest(part) for part in vectors.split(_ROWS)]
        codes, similarities = zip(*parts, strict=True) if parts else ([], [])
        none = torch.zeros(0)
        return torch.cat([none.long(), *codes]), torch.cat([none, *similarities])

    def _nearest(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        vectors = vectors.to(self.values.device, torch.float32)
        near = min(_NEAR, len(self.groups))
        wanted = (vectors @ self.groups.T).topk(near, 1).indices.flatten()
        order = wanted.argsort(stable=True)
        codes = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        similarities = torch.full((len(vectors),), -torch.inf, device=vectors.device)
        counts = torch.bincount(wanted, minlength=len(self.groups)).tolist()
        bounds = self.bounds.tolist()
        for group, rows in enumerate((order // near).split(counts)):
            first, last = bounds[group], bounds[group + 1]
            if first == last or not len(rows):
                continue
            found, code = (vectors[rows] @ self.values[first:last].T).max(1)
            better = found > similarities[rows]
            rows = rows[better]
            similarities[rows], codes[rows] = found[better], code[better] + first
        return codes.cpu(), similarities.cpu()


def centroids_for(vectors: float) -> int:
    """How many centroids an index of so many vectors gets."""
    return min(_ASKED, round(_CENTROIDS * math.sqrt(vectors)))


def sample_for(vectors: float, count: int, dim: int) -> float:
    """How many of the vectors, of width `dim`, such `count` centroids are trained on, at most."""
    return min(vectors, _SAMPLED * count, _SAMPLE_BYTES / (2 * dim))


def train(
    sample: Tensor,
    count: int,
    *,
    seed: int,
    device: str = "cpu",
) -> Centroids:
    """Find about `count` centroids, the same for the same sample and seed.

    Beside the sample, memory is needed for the vectors of one group, in float32.

    Args:
        sample: `(vectors, dim)`, of any float type; at least one.
        count: How many; fewer where the sample has fewer than eight vectors for each.
        seed: Of the vectors that it begins with.
        device: Where to compute.
    """
    count = max(1, min(count, len(sample) // _LEAST))
    random = np.random.default_rng(seed)
    group_count = max(1, round(count**0.5))
    some = _chosen(random, len(sample), group_count * _PER_GROUP)
    groups = _lloyd(sample[some].to(device, torch.float32), group_count, random)
    with computing():
        parts = [(part.to(groups) @ groups.T).argmax(1).cpu() for part in sample.split(_ROWS)]
    group = torch.cat(parts)
    order, sizes = group.argsort(stable=True), torch.bincount(group, minlength=group_count)
    values, counts = [], []
    for rows in order.split(sizes.tolist()):
        share = max(1, min(len(rows) // _LEAST, round(count * len(rows) / len(sample))))
        if len(rows):
            values.append(_lloyd(sample[rows].to(device, torch.float32), share, random))
        counts.append(share if len(rows) else 0)
    bounds = torch.tensor([0, *counts]).cumsum(0)
    return Centroids(torch.cat(values).cpu(), groups.cpu(), bounds)


def _lloyd(vectors: Tensor, count: int, random: np.random.Generator) -> Tensor:
    """Spherical k-means: each centroid is the direction of the sum of the vectors nearest to it."""
    centroids = normalize(vectors[_chosen(random, len(vectors), count)])
    for _ in range(_ROUNDS):
        with computing():
            parts = [(part @ centroids.T).argmax(1) for part in vectors.split(_ROWS)]
            sums, sizes = _summed(vectors, torch.cat(parts), len(centroids))
        empty = (sizes == 0).nonzero()[:, 0]
        sums[empty] = vectors[_chosen(random, len(vectors), len(empty))]
        centroids = normalize(sums)
    return centroids


def _summed(vectors: Tensor, code: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The sum of the vectors of each code, `(count, dim)`, and how many they are."""
    # A product with a sparse matrix of ones: `index_add_` takes a microsecond a row, one by one.
    sizes = torch.bincount(code, minlength=count)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return ones_at(starts, code.argsort(stable=True), vectors) @ vectors, sizes


def _chosen(random: np.random.Generator, population: int, count: int) -> Tensor:
    """Some of `population` numbers, rising; all, if they are no more than `count`."""
    if count >= population:
        return torch.arange(population)
    return torch.from_numpy(np.sort(random.choice(population, count, replace=False)))
