"""Token pooling: replace groups of similar token vectors of a document by their mean.

Ward clustering on cosine distance (Clavié, Chaffin & Adams 2024, https://arxiv.org/abs/2409.14683),
with the choices of sentence-transformers 6.2, `HierarchicalTokenPooling`: the first vector, [CLS],
is left alone, and every vector leaves with unit length.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from colbert_rag.computing import computing
from colbert_rag.embeddings import TokenEmbeddings

Matrix = npt.NDArray[np.float64]

_PROTECTED = 1


def pool_tokens(documents: TokenEmbeddings, factor: float) -> TokenEmbeddings:
    """Merge the vectors of each document to about `1 / factor` of their number.

    Returns:
        float32, on the CPU; groups stand where their first token stood.
    """
    values = documents.values.to("cpu", torch.float32)
    pooled = [_pooled(rows, factor) for rows in TokenEmbeddings(values, documents.offsets)]
    joined = TokenEmbeddings.from_list(pooled, dim=documents.dim)
    return TokenEmbeddings(torch.nn.functional.normalize(joined.values, dim=-1), joined.offsets)


def _pooled(rows: Tensor, factor: float) -> Tensor:
    free = rows[_PROTECTED:]
    groups = max(int(len(free) // factor), 1)
    if groups >= len(free):
        return rows
    with computing():
        distances = (1 - free @ free.T).clamp_(0, 2).double().numpy()
    labels = torch.from_numpy(_ward(distances, groups))
    count = int(labels.max()) + 1
    sums = torch.zeros(count, rows.shape[1]).index_add_(0, labels, free)
    sizes = torch.bincount(labels, minlength=count)
    return torch.cat([rows[:_PROTECTED], sums / sizes[:, None]])


def _ward(distances: Matrix, groups: int) -> npt.NDArray[np.int64]:
    """Labels of at most `groups` clusters, numbered by first member.

    The nearest-neighbour chain (Müllner 2011, https://arxiv.org/abs/1109.2378): follow nearest
    neighbours until two are each other's, merge them, go on from what is left of the chain.
    """
    # Ward's update is linear in squares, and the square root changes no order: squares throughout.
    squares = distances**2
    count = len(squares)
    np.fill_diagonal(squares, np.inf)
    sizes = np.ones(count)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < count - 1:
        if not chain:
            chain.append(int(sizes.argmax()))  # any that is left
        while True:
            row = squares[chain[-1]]
            nearest = int(row.argmin())
            # On a tie, the one we came from: otherwise the chain could run in circles.
            if len(chain) > 1 and row[chain[-2]] <= row[nearest]:
                break
            chain.append(nearest)
        gone, kept = chain.pop(), chain.pop()
        merges.append((float(squares[gone, kept]), gone, kept))
        _merge(squares, sizes, gone, kept)
    merges.sort(key=lambda merge: merge[0])
    height = merges[count - groups - 1][0]
    labels = np.arange(count)
    for distance, first, second in merges:
        if distance <= height:
            # The lowest member leads, so that groups are numbered in order of appearance.
            low, high = sorted((labels[first], labels[second]))
            labels[labels == high] = low
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _merge(squares: Matrix, sizes: npt.NDArray[np.float64], gone: int, kept: int) -> None:
    """Lance and Williams' update for Ward's criterion; `gone` becomes part of `kept`.

    Infinity on the diagonal, and towards what is gone, stays infinity by the same formula.
    """
    a, b = sizes[gone], sizes[kept]
    updated = (a + sizes) * squares[gone]
    updated += (b + sizes) * squares[kept]
    updated -= sizes * squares[gone, kept]
    updated /= a + b + sizes
    squares[kept], squares[:, kept] = updated, updated
    squares[gone], squares[:, gone] = np.inf, np.inf
    sizes[kept], sizes[gone] = a + b, 0
