"""MaxSim in plain torch: per block of rows, one matrix product and one segmented maximum.

On the CPU the maximum over each document's rows is a product with a sparse matrix of ones, reduced
by `amax` instead of by addition. Of the segmented maxima torch offers it is the only one that is
vectorised, parallel and exact for every float type: per row of 32 similarities 6 ns on two AVX2
cores, against 13 for `scatter_reduce_`, 87 for `segment_reduce`, and 99 for the matrix product
itself (benchmarks/NOTES.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from colbert_rag.codings import CodedEmbeddings
from colbert_rag.embeddings import TokenEmbeddings

# A block holds this many similarities: on the CPU 1 MiB of float32 for each core, which stays in
# its cache; elsewhere 64 MiB, which keeps a large device busy.
_CELLS_PER_THREAD = 2**18
_MAX_THREADS = 16
_CELLS_ON_ACCELERATORS = 2**24
# Queries are multiplied together up to this many rows: enough for the matrix product to be bound by
# arithmetic, few enough to leave the block a useful number of document rows.
_QUERY_ROWS = 256
# A block of a short query would otherwise be very tall, and its converted copy large.
_LEAST_WIDTH = 32

with warnings.catch_warnings():
    # torch announces once per process that CSR tensors are in beta. What is used of them is one
    # documented reduction that the tests check, so the notice is not the user's concern; said here,
    # it is also not an error in a process that turns warnings into errors.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0], [], [], (0, 0), device="cpu", check_invariants=False)


@torch.no_grad()
def maxsim_many(queries: TokenEmbeddings, documents: TokenEmbeddings | CodedEmbeddings) -> Tensor:
    """Score every query against every document, on the documents' device.

    Extra memory: the similarities of one block (1 MiB in float32 for each of at most 16 threads; 64
    MiB on an accelerator) and, where the products have another type than `documents`, a copy of the
    block's rows (4 MiB per thread at 128 dimensions). A longer document is scored in pieces.

    Args:
        queries: `(query_rows, dim)`, ragged; cast to the type of the products.
        documents: `(rows, dim)`, ragged. Stored ones are multiplied in float32, others in
            `product_dtype(documents.values)`.

    Returns:
        `(queries, documents)`, float32.
    """
    values, starts = documents.values, documents.offsets
    # Not by way of the documents' type: that would round a query which the products need not round.
    convert: Callable[[Tensor, Tensor], object] | None
    if isinstance(documents, CodedEmbeddings):
        dtype, convert = torch.float32, documents.coding.decode
    else:
        dtype = product_dtype(values)
        convert = None if values.dtype == dtype else _converted
    vectors = queries.values.to(values.device, dtype)
    # The type is said, because the caller may have set another default.
    scores = torch.empty(len(queries), len(documents), dtype=torch.float32, device=values.device)
    query_starts = queries.offsets.tolist()
    chunks = list(runs_of_documents(queries.offsets, _QUERY_ROWS))
    width = max((query_starts[j] - query_starts[i] for i, j in chunks), default=1)
    block = _Block(vectors, width, convert)
    for first, last in runs_of_documents(starts, block.rows):
        block.load(values[starts[first] : starts[last]], starts[first : last + 1] - starts[first])
        for begin, end in chunks:
            base = query_starts[begin]
            maxima = block.maxima(vectors[base : query_starts[end]])  # (documents, query_rows)
            for query in range(begin, end):
                rows = slice(query_starts[query] - base, query_starts[query + 1] - base)
                torch.sum(maxima[:, rows], 1, out=scores[query, first:last])
    without_rows = (documents.lengths == 0).nonzero()[:, 0].to(values.device)
    scores[:, without_rows] = -queries.lengths.to(scores)[:, None]
    return scores


def product_dtype(values: Tensor) -> torch.dtype:
    """The float type in which similarities with `values` are computed: float32 at least.

    Half precision is a way of storing vectors, not of scoring them. A product of bfloat16 vectors
    that is itself rounded to bfloat16 moves a similarity by up to 1/256, so that near ties change
    places: two ways to score the same vectors would then disagree, by up to 0.09 in a sum of 32.
    """
    return torch.promote_types(values.dtype, torch.float32)


def _converted(rows: Tensor, out: Tensor) -> None:
    out.copy_(rows)


def runs_of_documents(offsets: Tensor, rows: int) -> Iterator[tuple[int, int]]:
    """Cut texts into runs `(first, last)` of at most `rows` rows and texts, but one at least."""
    bounds = offsets.numpy()
    first, count = 0, len(bounds) - 1
    while first < count:
        fitting = int(np.searchsorted(bounds, bounds[first] + rows, side="right")) - 1
        last = max(first + 1, min(fitting, first + rows))
        yield first, last
        first = last


class _Block:
    """Some whole documents and their similarities, in memory that every block reuses."""

    def __init__(
        self, vectors: Tensor, width: int, convert: Callable[[Tensor, Tensor], None] | None
    ) -> None:
        """Reserve room for similarities of `width` query rows, in the type of `vectors`.

        `convert` brings rows into that type; None where they have it.
        """
        self._convert = convert
        cells = _CELLS_ON_ACCELERATORS
        if vectors.device.type == "cpu":
            cells = _CELLS_PER_THREAD * min(torch.get_num_threads(), _MAX_THREADS)
        self.rows = max(1, cells // max(width, _LEAST_WIDTH))
        self._similarities = vectors.new_empty(self.rows * width)
        self._copy = vectors.new_empty(0, vectors.shape[1])

    def load(self, rows: Tensor, bounds: Tensor) -> None:
        """Take the rows of documents that begin and end at `bounds`."""
        self._bounds, self._rows = bounds, rows
        if len(rows) <= self.rows:
            self._rows = self._products_rows(rows)

    def _products_rows(self, rows: Tensor) -> Tensor:
        """At most as many rows as fit a block, in the type of the products."""
        if self._convert is None:
            return rows
        if len(self._copy) < len(rows):
            self._copy = self._copy.new_empty(self.rows, self._copy.shape[1])
        self._convert(rows, out := self._copy[: len(rows)])
        return out

    def maxima(self, vectors: Tensor) -> Tensor:
        """Each document's best similarity with each of `vectors`: `(documents, width)`, float32."""
        if len(self._rows) > self.rows:  # one document longer than a block
            pieces = map(self._products_rows, self._rows.split(self.rows))
            maxima = [self._multiply(piece, vectors).amax(0) for piece in pieces]
            return torch.stack(maxima).amax(0, keepdim=True).float()
        similarities = self._multiply(self._rows, vectors)
        if similarities.device.type == "cpu":
            return maxima_by_product(similarities, self._bounds).float()
        return maxima_by_scatter(similarities, self._bounds).float()

    def _multiply(self, rows: Tensor, vectors: Tensor) -> Tensor:
        # Rows first, because the other order does not spread over threads.
        shape = (len(rows), len(vectors))
        return torch.mm(
            rows, vectors.t(), out=self._similarities[: shape[0] * shape[1]].view(shape)
        )


def maxima_by_product(similarities: Tensor, bounds: Tensor, rows: Tensor | None = None) -> Tensor:
    """Each document's maxima, as a sparse matrix of ones times the similarities; CPU only.

    Args:
        similarities: `(rows, width)`.
        bounds: Where documents begin and end, `(documents + 1,)`, rising from 0.
        rows: Which row of the similarities each row of the documents has, `(bounds[-1],)`; by
            default they have theirs in order.

    Returns:
        `(documents, width)` in the type of `similarities`; 0 for a document without rows.
    """
    if rows is None:
        # int32 halves what is read beside the similarities.
        rows = torch.arange(len(similarities), dtype=torch.int32, device="cpu")
    ones = ones_at(bounds.int(), rows, similarities)
    maxima: Tensor = torch.sparse.mm(ones, similarities, "amax")
    return maxima


def ones_at(bounds: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A sparse matrix that has a one for each of the `rows` of `values` between two bounds.

    Args:
        bounds: `(documents + 1,)`, rising from 0; of the type of `rows`.
        rows: `(bounds[-1],)`.
        values: What it is to be multiplied by.
    """
    # Compressed by rows, it needs for each document exactly its bounds.
    return torch.sparse_csr_tensor(
        bounds,
        rows,
        torch.ones(len(rows), dtype=values.dtype, device=values.device),
        (len(bounds) - 1, len(values)),
        device=values.device,
        check_invariants=False,
    )


def maxima_by_scatter(similarities: Tensor, bounds: Tensor) -> Tensor:
    """Each document's maxima on any device; as `maxima_by_product`, but -inf without rows."""
    documents, (rows, width) = len(bounds) - 1, similarities.shape
    lengths = bounds.diff().to(similarities.device, non_blocking=True)
    # Given the output size, an accelerator need not be waited for.
    document = torch.repeat_interleave(lengths, output_size=rows)  # (rows,)
    maxima = similarities.new_full((documents, width), -torch.inf)
    return maxima.scatter_reduce_(0, document[:, None].expand(rows, width), similarities, "amax")
