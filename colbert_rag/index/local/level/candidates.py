"""Which documents an approximate search scores exactly: found by centroids, then by codes.

First, each row of the query looks at the documents of the centroids nearest to it; one that is
found gains what its centroid is nearer than the nearest that was not looked at, since no document
that was not found can have more of that row. The best by the sum of these gains are then scored by
MaxSim over their codes: as if each token were its centroid (Santhanam et al. 2022, PLAID,
https://arxiv.org/abs/2205.09707, whose first two stages these are).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colbert_rag.index.local.level import postings
from colbert_rag.index.local.level.effort import Effort
from colbert_rag.index.local.level.file import Opened, Part
from colbert_rag.index.local.level.pages import Pages
from colbert_rag.index.local.level.postings import spread
from colbert_rag.maxsim.torch_kernel import maxima_by_product

# So many documents are scored by their codes without a look at the centroids' lists.
_ALL = 2**14

# Where too few documents were found, so many times more centroids are looked at.
_WIDER = 4


@dataclass(frozen=True, eq=False, slots=True)
class _Probes:
    """Centroids that the rows of a query look at.

    Attributes:
        centroids: `(probes,)`, int64.
        gains: `(probes,)`, float32, not negative; rising in each row of the query.
        bounds: `(rows + 1,)`, int64: where the probes of each row begin and end.
    """

    centroids: NDArray[np.int64]
    gains: NDArray[np.float32]
    bounds: NDArray[np.int64]


class Candidates:
    """Finds documents of an open level."""

    def __init__(self, level: Opened) -> None:
        """Reserve memory that every search uses again."""
        self._level = level
        ends = np.cumsum(level.lengths)
        self._starts = ends - level.lengths
        self._latest = np.zeros(postings.BLOCK, np.float32)

    @torch.no_grad()
    def find(self, query: Tensor, effort: Effort, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Numbers of documents in the level, rising; at most `effort.by_vectors`.

        Args:
            query: `(rows, dim)`, float32, on the CPU; at least one row.
            effort: How much to do.
            allowed: `(documents,)`: which may be found.

        Raises:
            DamagedPageError: the file is not what was written.
        """
        count = int(np.count_nonzero(allowed))
        if count <= effort.by_vectors:
            return np.flatnonzero(allowed)
        similarities = self._level.centroids.values @ query.T  # (centroids, rows)
        if count <= max(_ALL, effort.by_codes):
            found = np.flatnonzero(allowed)
        else:
            found = self._probed(similarities, effort, allowed, count)
        if len(found) <= effort.by_vectors:
            return found
        scores = self._by_codes(similarities, found)
        return np.sort(found[_best(scores, effort.by_vectors)])

    def _probed(
        self, similarities: Tensor, effort: Effort, allowed: NDArray[np.bool_], count: int
    ) -> NDArray[np.int64]:
        by_row = similarities.T.contiguous()
        probes = min(effort.probes, len(similarities) - 1)
        while True:
            found, gains = self._gains(_probes(by_row, probes))
            passing = allowed[found]
            found, gains = found[passing], gains[passing]
            if len(found) >= min(effort.by_vectors, count) or probes == len(similarities) - 1:
                break
            probes = min(_WIDER * probes, len(similarities) - 1)
        if len(found) <= effort.by_codes:
            return found
        return np.sort(found[_best(gains, effort.by_codes)])

    def _gains(self, probes: _Probes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Documents that were found, rising, and the sum over rows of what each gains."""
        documents, gains = [], []
        for number, part in enumerate(self._level.parts):
            total = self._gains_in(part, probes)
            found = np.flatnonzero(total)
            documents.append(found + number * postings.BLOCK)
            gains.append(total[found])
        return np.concatenate(documents), np.concatenate(gains)

    def _gains_in(self, part: Part, probes: _Probes) -> NDArray[np.float64]:
        starts, lengths = _lists(part, self._level.pages, probes.centroids)
        documents = part.block.listed[spread(starts, lengths)].astype(np.int64)
        gains = np.repeat(probes.gains, lengths)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        total, latest = np.zeros(len(part.block.positions)), self._latest
        for first, last in pairwise(ends[probes.bounds].tolist()):
            # Of what a row gives a document twice the larger counts, and once: gains rise, and of
            # several values that are assigned to one place numpy keeps the last.
            some = documents[first:last]
            latest[some] = gains[first:last]
            total[some] += latest[some]
        return total

    def _by_codes(self, similarities: Tensor, documents: NDArray[np.int64]) -> NDArray[np.float32]:
        """MaxSim of each document, with its centroid in place of each token."""
        lengths = self._level.lengths[documents]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        codes = np.empty(bounds[-1], np.int32)
        cuts = np.searchsorted(documents, postings.BLOCK * np.arange(len(self._level.parts) + 1))
        for number, part in enumerate(self._level.parts):
            first, last = cuts[number], cuts[number + 1]
            some = documents[first:last]
            begins = self._starts[some] - self._starts[number * postings.BLOCK]
            _check_codes(part, self._level.pages, begins, begins + lengths[first:last])
            rows = spread(begins, lengths[first:last])
            codes[bounds[first] : bounds[last]] = part.block.codes[rows]
        maxima = maxima_by_product(similarities, torch.from_numpy(bounds), torch.from_numpy(codes))
        scores: NDArray[np.float32] = maxima.sum(1).numpy()
        scores[lengths == 0] = -np.inf
        return scores


def _probes(similarities: Tensor, count: int) -> _Probes:
    """The `count` centroids nearest to each row of the query; `similarities` has its rows."""
    values, indices = similarities.topk(count + 1, 1)
    gains = values[:, :count] - values[:, count:]
    # Of equal similarities nothing would be gained, and what is found must be told from the rest.
    gains = gains.clamp_min(torch.finfo(gains.dtype).tiny)
    centroids, gain = (part.flip(1).flatten().numpy() for part in (indices[:, :count], gains))
    return _Probes(centroids, gain, count * np.arange(len(similarities) + 1))


def _lists(
    part: Part, pages: Pages, centroids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the lists of some centroids begin in a block, and how long they are; checked."""
    block, places = part.block, part.block.shape.places
    here = part.begin + places[3] + 4 * centroids
    pages.check(here, here + 8)
    starts = block.starts[centroids].astype(np.int64)
    ends = block.starts[centroids + 1].astype(np.int64)
    lists = part.begin + places[4]
    pages.check(lists + 2 * starts, lists + 2 * ends)
    return starts, ends - starts


def _check_codes(
    part: Part, pages: Pages, begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> None:
    """Check the pages where the codes of some tokens of a block stand."""
    codes = part.begin + part.block.shape.places[2]
    pages.check(codes + 2 * begins, codes + 2 * ends)


def _best(scores: NDArray[np.float32] | NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Where the best stand, in no order; of equal scores the first ones, as in an exact search."""
    scores = np.fmax(scores, -np.inf)  # the largest queries have sums that are no number
    last = np.partition(scores, -count)[-count]
    better = np.flatnonzero(scores > last)
    equal = np.flatnonzero(scores == last)
    return np.concatenate([better, equal])[:count]
