"""MaxSim in whole numbers, with a bound on the error: which documents need no exact score.

Where vectors are stored as int8, a query rounded to int8 too makes a product of whole numbers, for
which processors have instructions that take a fifth of the time of float32 (benchmarks/NOTES.md).
Rounding the query changes a similarity with `d` by at most `|e| |d|`, `e` being what rounding left
of a query row (Cauchy and Schwarz), and a maximum by no more than its similarities. So a document
whose score plus the bound is below the k-th best score minus the bound is none of the k best. That
is proven, not likely, and scores themselves are never given away: a search computes those of what
is left in float32, from the stored vectors and the query as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from colbert_rag.codings import INT8, CodedEmbeddings, int8_parts
from colbert_rag.computing import computing
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.maxsim.torch_kernel import maxima_by_product, runs_of_documents

# A block's rows, for each of at most 16 threads, stay in the processor's cache.
_ROWS_PER_THREAD = 2**13
_MAX_THREADS = 16
# Code is compiled for every shape that is multiplied: widths are multiples of this, and blocks are
# powers of two, multiplied whole.
_WIDTHS = 16
# Queries are multiplied one by one up to this width, where the block has fewer rows.
_WIDEST = 128
# Below, a scale could not be told from 0; above, products leave float32.
_SMALLEST, _LARGEST = 1e-30, 1e30


def bounds(queries: TokenEmbeddings, documents: CodedEmbeddings) -> tuple[Tensor, Tensor] | None:
    """Scores in whole numbers, and by how much each query's are off at most.

    Args:
        queries: Finite vectors, `(query_rows, dim)`, ragged, on the CPU.
        documents: Stored vectors, ragged, on the CPU.

    Returns:
        `(queries, documents)` and `(queries,)`, float32; None where exact scores are computed as
        fast: on other devices, codings and processors, for very long queries and documents. A
        document without rows scores 0.
    """
    if documents.coding is not INT8 or documents.device.type != "cpu":
        return None
    with computing():
        return _bounds(queries, documents) if multiplies_quickly() else None


def _bounds(queries: TokenEmbeddings, documents: CodedEmbeddings) -> tuple[Tensor, Tensor] | None:
    rows = _block_rows(len(documents.values))
    longest = int(queries.lengths.max())
    if int(documents.lengths.max()) > rows or longest > _WIDEST:
        return None
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        vectors = queries.values.to("cpu", torch.float32)
        levels, scales, errors = _rounded(vectors, documents)
        off = torch.stack([rows.sum() for rows in errors.split(queries.lengths.tolist())])
        if not bool((off < _LARGEST).all()):
            return None
        scores = vectors.new_empty(len(queries), len(documents))
        block = _Block(rows, documents, -(-longest // _WIDTHS) * _WIDTHS)
        parts = list(pairwise(queries.offsets.tolist()))
        for first, last in runs_of_documents(documents.offsets, rows):
            block.load(documents, first, last)
            for query, (begin, end) in enumerate(parts):
                maxima = block.maxima(levels[begin:end])
                torch.sum(maxima.mul_(scales[begin:end]), 1, out=scores[query, first:last])
    return scores, off


def _rounded(vectors: Tensor, documents: CodedEmbeddings) -> tuple[Tensor, Tensor, Tensor]:
    """Query rows in int8, their scales, and how far a similarity with each may be off."""
    largest = vectors.abs().amax(1) if vectors.numel() else vectors.new_zeros(len(vectors))
    scales = torch.where(largest > _SMALLEST, largest / 127, 1)
    levels = (vectors / scales[:, None]).round()
    left = (vectors.double() - levels.double() * scales.double()[:, None]).norm(dim=1)
    # Beside it the sums of float32, here and in the exact score: each addition rounds by 2^-24.
    rounding = (documents.dim + 64) * 2.0**-23 * vectors.double().norm(dim=1)
    errors = (left + rounding) * documents.longest() * (1 + 2.0**-20)
    return levels.to(torch.int8), scales, errors.float()


def _block_rows(rows: int) -> int:
    """Of a block: a power of two, no larger than what there is to multiply needs."""
    most = _ROWS_PER_THREAD * min(torch.get_num_threads(), _MAX_THREADS)
    return min(1 << (most.bit_length() - 1), max(32, 1 << (rows - 1).bit_length()))


class _Block:
    """Some whole documents and their similarities, in memory that every block reuses."""

    def __init__(self, rows: int, documents: CodedEmbeddings, width: int) -> None:
        # The device is said at each, because the caller may have set another default; as a context
        # it would cost more than the products of a block.
        row_bytes = documents.values.shape[1]
        self._last = torch.zeros(rows, row_bytes, dtype=torch.uint8, device="cpu")
        self._query = torch.zeros(row_bytes, width, dtype=torch.int8, device="cpu")
        self._products = torch.empty(rows, width, dtype=torch.int32, device="cpu")
        self._similarities = torch.empty(rows, width, dtype=torch.float32, device="cpu")

    def load(self, documents: CodedEmbeddings, first: int, last: int) -> None:
        """Take the documents from `first` to `last`."""
        offsets = documents.offsets[first : last + 1]
        self._bounds = offsets - offsets[0]
        stored = documents.values[offsets[0] : offsets[-1]]
        # Stored rows are multiplied where they are, their scales by 0, and those behind the last
        # document in vain, so that all blocks have one shape.
        block = documents.values[offsets[0] : offsets[0] + len(self._last)]
        if len(block) < len(self._last):
            self._last[: len(stored)].copy_(stored)
            block = self._last
        self._rows = block.view(torch.int8)
        self._scales = int8_parts(stored)[1]

    def maxima(self, query: Tensor) -> Tensor:
        """Each document's best similarity with each row: `(documents, query_rows)`, unscaled."""
        rows, width = len(self._scales), len(query)
        self._query[:-1, :width].copy_(query.t())
        torch._int_mm(self._rows, self._query, out=self._products)
        similarities = self._similarities[:rows].copy_(self._products[:rows])
        similarities.mul_(self._scales[:, None])
        return maxima_by_product(similarities, self._bounds)[:, :width]


@cache
def multiplies_quickly() -> bool:
    """Whether this torch and this processor multiply int8 rightly, and faster than float32.

    The operator is private, and where its library knows no instructions for it, a plain loop takes
    its place, which gives the same and takes ten times as long as float32.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.no_grad():
        return _agrees() and _is_faster()


def _agrees() -> bool:
    random = torch.Generator().manual_seed(0)
    rows, query = (
        torch.randint(-127, 128, shape, generator=random) for shape in ((70, 97), (97, 16))
    )
    rows[0], query[:, 0] = 127, -127  # the largest sum
    out = torch.empty(70, 16, dtype=torch.int32)
    try:
        torch._int_mm(rows.to(torch.int8), query.to(torch.int8), out=out)
    except (AttributeError, RuntimeError):  # another build of torch
        return False
    return torch.equal(out.long(), rows @ query)


def _is_faster() -> bool:
    levels = torch.ones(2048, 128, dtype=torch.int8), torch.ones(128, 32, dtype=torch.int8)
    floats = levels[0].float(), levels[1].float()
    return _seconds(lambda: torch._int_mm(*levels)) < _seconds(lambda: torch.mm(*floats))


def _seconds(work: Callable[[], object]) -> float:
    work()
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
