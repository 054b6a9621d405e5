"""The best documents of a search, block by block, with ties in order of insertion."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.local.snapshot import Block
from colbert_rag.maxsim import maxsim_many

# Scores held at once, in float32: bounds memory where documents are short and queries many.
_SCORES = 16 * 2**20


def best_positions(
    queries: TokenEmbeddings, blocks: Iterable[Block], k: int
) -> list[list[tuple[int, float]]]:
    """The `k` best positions for each query with their MaxSim sums, best first."""
    best: list[list[tuple[int, float]]] = [[] for _ in range(len(queries))]
    for block in blocks:
        some = max(1, _SCORES // len(block.positions))
        for start in range(0, len(queries), some):
            part = queries[start : start + some].to(block.embeddings.device)
            scores = maxsim_many(part, block.embeddings)
            positions = block.positions
            # A text without words has no vectors, and is not found.
            passing = block.embeddings.lengths > 0
            if block.passing is not None:
                passing &= block.passing
            if not bool(passing.all()):
                scores = scores[:, passing.to(scores.device)]
                positions = positions[passing]
            for offset, row in enumerate(scores):
                candidates = _best_of(row, positions, k)
                best[start + offset] = _merged(best[start + offset], candidates, k)
    return best


def _best_of(scores: Tensor, positions: Tensor, k: int) -> list[tuple[int, float]]:
    """The `k` best of one block; `topk` alone would break ties at random."""
    if k < len(scores):
        least = scores.topk(k).values[-1]
        chosen = (scores >= least).nonzero()[:, 0]
    else:
        chosen = torch.arange(len(scores), device=scores.device)
    values, order = scores[chosen].cpu().sort(descending=True, stable=True)
    picked = positions[chosen.cpu()[order[:k]]]
    return list(zip(picked.tolist(), values[:k].tolist(), strict=True))


def _merged(
    best: list[tuple[int, float]], more: list[tuple[int, float]], k: int
) -> list[tuple[int, float]]:
    return sorted(best + more, key=lambda found: (-found[1], found[0]))[:k] if best else more
