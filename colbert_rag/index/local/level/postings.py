"""Which documents have a token near a centroid: an inverted list for each block of documents.

Inside a block of at most `BLOCK` documents a number has 16 bits, and a block never changes: what is
added later makes further blocks, and the lists of those that are there stay as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**16


def inverted(
    codes: NDArray[np.int64], lengths: NDArray[np.int64], centroids: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """The documents of each centroid, each once and rising.

    Args:
        codes: `(tokens,)`: the centroid of each token, document after document.
        lengths: `(documents,)`: tokens of each; at most `BLOCK` documents.
        centroids: How many there are.

    Returns:
        Where the list of each centroid begins, `(centroids + 1,)`, and the lists one after another.
    """
    documents = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    pairs = np.unique(codes * BLOCK + documents)
    counts = np.bincount(pairs // BLOCK, minlength=centroids)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
    return starts, (pairs % BLOCK).astype(np.uint16)


def spread(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of several ranges, one range after another."""
    before = np.cumsum(lengths) - lengths
    numbers: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
    return numbers
