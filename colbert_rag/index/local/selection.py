"""The best documents of a search, block by block, with ties in order of insertion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.local.snapshot import Block
from colbert_rag.maxsim import maxsim_stored
from colbert_rag.maxsim.int8_kernel import bounds

# Scores held at once, in float32: bounds memory where documents are short and queries many.
_SCORES = 16 * 2**20

# Rough scores are computed first where a block has this many documents for each one that is wanted.
_WORTH = 4

Best = list[tuple[int, float]]
"""Positions with their MaxSim, best first, ties in order of insertion."""


def best_positions(queries: TokenEmbeddings, blocks: Iterable[Block], k: int) -> list[Best]:
    """The `k` best positions for each query with their MaxSim sums, best first."""
    best: list[Best] = [[] for _ in range(len(queries))]
    for block in blocks:
        some = max(1, _SCORES // len(block.positions))
        for start in range(0, len(queries), some):
            part = queries[start : start + some].to(block.embeddings.device)
            for offset, found in enumerate(_best_in(block, part, k, best[start:])):
                best[start + offset] = merged(best[start + offset], found, k)
    return best


def _best_in(
    block: Block, queries: TokenEmbeddings, k: int, best: Sequence[Best]
) -> Iterator[Best]:
    """For each query what one block adds to the best ones that were found elsewhere."""
    # A text without words has no vectors, and is not found.
    passing = block.embeddings.lengths > 0
    if block.passing is not None:
        passing &= block.passing
    rough = bounds(queries, block.embeddings) if k * _WORTH < len(passing) else None
    if rough is None:
        scores = maxsim_stored(queries, block.embeddings)
        positions = block.positions
        if not bool(passing.all()):
            scores = scores[:, passing.to(scores.device)]
            positions = positions[passing]
        yield from (_best_of(row, positions, k) for row in scores)
        return
    for query, (row, off) in enumerate(zip(*rough, strict=True)):
        least = best[query][-1][1] if len(best[query]) == k else -torch.inf
        places = _possible(row, off, passing, k, least)
        exact = maxsim_stored(queries[query : query + 1], block.embeddings[places])[0]
        yield _best_of(exact, block.positions[places], k)


def _possible(scores: Tensor, off: Tensor, passing: Tensor, k: int, least: float) -> Tensor:
    """Places of all documents that can be among the `k` best, given how far scores are off.

    Those that cannot reach `least`, the last of the `k` best elsewhere, are left out too.
    """
    scores = scores.masked_fill(~passing, -torch.inf)
    certain = max(float(scores.topk(k).values[-1] - off), least)
    return (passing & (scores + off >= certain)).nonzero()[:, 0]


def _best_of(scores: Tensor, positions: Tensor, k: int) -> Best:
    """The `k` best of one block; `topk` alone would break ties at random."""
    if k < len(scores):
        least = scores.topk(k).values[-1]
        chosen = (scores >= least).nonzero()[:, 0]
    else:
        chosen = torch.arange(len(scores), device=scores.device)
    values, order = scores[chosen].cpu().sort(descending=True, stable=True)
    picked = positions[chosen.cpu()[order[:k]]]
    return list(zip(picked.tolist(), values[:k].tolist(), strict=True))


def merged(best: Best, more: Best, k: int) -> Best:
    """The `k` best of both, ties in order of insertion."""
    return sorted(best + more, key=lambda found: (-found[1], found[0]))[:k] if best else more
