"""MaxSim in one Triton kernel: ragged half-precision rows in, scores out, no matrix in between.

A program scores one tile of query rows (several queries) against a few consecutive documents, and
reads each document's own rows only. Programs that differ in their queries alone are neighbours in
the grid: they run at the same time, so a document comes from memory once and for the other query
tiles from the second-level cache. Tests run the kernel without a GPU under `TRITON_INTERPRET=1`.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
# A kernel's parameters are device values, which Python cannot type; its constants are upper case.
# ruff: noqa: ANN001, ANN202, N803, N806

from __future__ import annotations

import logging
import subprocess
from dataclasses import dataclass

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings

logger = logging.getLogger(__name__)

# Longer queries are cut into pieces whose scores are added up.
_PIECE_ROWS = 128
# Wider vectors are multiplied block by block.
_BLOCK_DIM = 128


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


# Counts change from call to call and gain nothing from a kernel of their own.
@triton.jit(do_not_specialize=["pieces", "documents", "documents_per_program"])
def _maxsim_kernel(
    query_ptr,  # (query rows, DIM)
    piece_start_ptr,  # (pieces,) int64: first row of each piece
    piece_rows_ptr,  # (pieces,) int64
    document_ptr,  # (rows, DIM)
    offset_ptr,  # (documents + 1,) int64
    score_ptr,  # (pieces, documents) float32
    pieces,
    documents,
    documents_per_program,
    query_stride,
    document_stride,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PIECE_ROWS: tl.constexpr,  # room for one piece: a power of two, so that lengths share kernels
    PIECES: tl.constexpr,  # pieces in a tile of queries
    DOCUMENT_ROWS: tl.constexpr,  # rows in a tile of a document
):
    QUERY_ROWS: tl.constexpr = PIECES * PIECE_ROWS
    tiles = tl.cdiv(pieces, PIECES)
    program = tl.program_id(0)
    first_piece = (program % tiles) * PIECES
    first_document = (program // tiles) * documents_per_program

    slots = tl.arange(0, QUERY_ROWS)
    piece = first_piece + slots // PIECE_ROWS
    piece_rows = tl.load(piece_rows_ptr + piece, mask=piece < pieces, other=0)
    counts = slots % PIECE_ROWS < piece_rows  # slots that hold a row of a query
    query_rows = tl.load(piece_start_ptr + piece, mask=counts, other=0) + slots % PIECE_ROWS
    columns = tl.arange(0, BLOCK_DIM)
    query_tile = query_ptr + query_rows[:, None] * query_stride + columns[None, :]
    query = tl.load(query_tile, mask=counts[:, None] & (columns < DIM)[None, :], other=0.0)

    own_pieces = first_piece + tl.arange(0, PIECES)
    own_rows = tl.load(piece_rows_ptr + own_pieces, mask=own_pieces < pieces, other=0)
    own_scores = score_ptr + own_pieces.to(tl.int64) * documents

    for document in range(first_document, min(first_document + documents_per_program, documents)):
        begin = tl.load(offset_ptr + document)
        length = (tl.load(offset_ptr + document + 1) - begin).to(tl.int32)
        best = tl.full((QUERY_ROWS, DOCUMENT_ROWS), float("-inf"), tl.float32)
        for start in range(0, length, DOCUMENT_ROWS):
            # Past its end a document's last row is repeated, which cannot change a maximum: no
            # mask, and nothing to fill in. `begin` is int64, and so is every offset made from it.
            rows = begin + tl.minimum(start + tl.arange(0, DOCUMENT_ROWS), length - 1)
            tile = document_ptr + rows[:, None] * document_stride + columns[None, :]
            similarities = tl.zeros((QUERY_ROWS, DOCUMENT_ROWS), tl.float32)
            if DIM <= BLOCK_DIM:
                right = tl.load(tile, mask=(columns < DIM)[None, :], other=0.0)
                similarities = tl.dot(query, tl.trans(right), similarities)
            else:
                for column in range(0, DIM, BLOCK_DIM):
                    inside = (column + columns < DIM)[None, :]
                    left = tl.load(query_tile + column, mask=counts[:, None] & inside, other=0.0)
                    right = tl.load(tile + column, mask=inside, other=0.0)
                    similarities = tl.dot(left, tl.trans(right), similarities)
            best = _larger(best, similarities)
        # Slots without a row are zero vectors: their maximum is 0 and adds nothing.
        maxima = tl.reshape(tl.reduce(best, 1, _larger), (PIECES, PIECE_ROWS))
        scores = tl.sum(maxima, 1)
        scores = tl.where(length > 0, scores, -own_rows.to(tl.float32))
        tl.store(own_scores + document, scores, mask=own_pieces < pieces)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work is cut: a rule, because autotuning takes seconds for every new query length."""

    piece_rows: int
    pieces: int
    document_rows: int = 64
    block_dim: int = _BLOCK_DIM

    @classmethod
    def of(cls, longest: int, pieces: int, dim: int) -> Tiling:
        """Choose tiles for so many pieces, the longest of so many rows.

        One query leaves the kernel waiting for memory, and small tiles keep many programs in
        flight. Many queries make it wait for arithmetic: 128 query rows use each document row that
        is fetched 128 times, and leave the registers room for two programs on a multiprocessor.
        """
        piece_rows = max(16, triton.next_power_of_2(longest))
        limit = 128 if dim <= _BLOCK_DIM else 64  # wide rows are loaded again for every tile
        together = min(triton.next_power_of_2(pieces), max(1, limit // piece_rows))
        block_dim = min(_BLOCK_DIM, max(16, triton.next_power_of_2(dim)))
        return cls(piece_rows, together, block_dim=block_dim)

    def options(self, dim: int) -> dict[str, int]:
        """Warps for a tile's accumulators, and stages of loads its shared memory has room for."""
        rows = self.piece_rows * self.pieces
        # Fusion is Triton's default, and makes no difference here; 3.9 warns where it is left open.
        return {
            "num_warps": 8 if rows >= 128 else 4,
            "num_stages": 3 if dim <= _BLOCK_DIM else 2,
            "enable_fp_fusion": True,
        }


def maxsim_many(
    queries: TokenEmbeddings, documents: TokenEmbeddings, tiling: Tiling | None = None
) -> Tensor:
    """Score every query against every document, on the documents' device.

    Extra memory: the queries and both offsets on the device.

    Args:
        queries: `(query_rows, dim)`, ragged; cast to the documents' type.
        documents: `(rows, dim)`, ragged, float16 or bfloat16.
        tiling: Tiles other than the rule gives; tests use small ones.

    Returns:
        `(queries, documents)`, float32.
    """
    device = documents.device
    owners, starts, lengths = _pieces(queries.offsets)
    scores = torch.empty(len(owners), len(documents), dtype=torch.float32, device=device)
    if scores.numel():
        launch(
            queries.values.to(device, documents.dtype),
            starts.to(device, non_blocking=True),
            lengths.to(device, non_blocking=True),
            documents.values,
            documents.offsets.to(device, non_blocking=True),
            scores,
            tiling or Tiling.of(int(lengths.max()), len(owners), documents.dim),
        )
    if len(owners) == len(queries):
        return scores
    whole = scores.new_zeros(len(queries), len(documents))
    return whole.index_add_(0, owners.to(device), scores)


def _pieces(offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut queries into pieces of at most `_PIECE_ROWS`: their query, first row, number of rows."""
    lengths = offsets.diff()
    counts = ((lengths + _PIECE_ROWS - 1) // _PIECE_ROWS).clamp(min=1)
    owners = torch.repeat_interleave(counts)
    within = (
        torch.arange(len(owners), device="cpu") - (counts.cumsum(0) - counts)[owners]
    ) * _PIECE_ROWS
    return owners, offsets[owners] + within, (lengths[owners] - within).clamp(max=_PIECE_ROWS)


def launch(
    queries: Tensor,
    starts: Tensor,
    lengths: Tensor,
    documents: Tensor,
    offsets: Tensor,
    scores: Tensor,
    tiling: Tiling,
) -> None:
    """Fill `scores`, `(pieces, documents)`, from tensors that all live on its device."""
    pieces, count = scores.shape
    # The kernel walks along a row, so the numbers of a row must lie side by side.
    queries, documents = (x if x.stride(1) == 1 else x.contiguous() for x in (queries, documents))
    tiles = triton.cdiv(pieces, tiling.pieces)
    # A query tile is loaded once for about 2048 rows, unless that leaves processors without work.
    by_rows = 2048 * count // max(1, len(documents))
    by_processors = count * tiles // (8 * _processors(scores.device))
    per_program = max(1, min(by_rows, by_processors, 32))
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        _maxsim_kernel[(tiles * triton.cdiv(count, per_program),)](
            queries,
            starts,
            lengths,
            documents,
            offsets,
            scores,
            pieces,
            count,
            per_program,
            queries.stride(0),
            documents.stride(0),
            DIM=documents.shape[1],
            BLOCK_DIM=tiling.block_dim,
            PIECE_ROWS=tiling.piece_rows,
            PIECES=tiling.pieces,
            DOCUMENT_ROWS=tiling.document_rows,
            **tiling.options(documents.shape[1]),
        )


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # the interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


def works_on(device: torch.device) -> bool:
    """Whether the kernel can be built for and run on a CUDA device; if not, say why in the log.

    Triton compiles a launcher with the machine's C compiler, which slim container images lack.
    """
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False  # no tensor cores for bfloat16
    one = TokenEmbeddings.from_list([torch.ones(1, 16, dtype=torch.float16, device="cpu")])
    try:
        return maxsim_many(one, one.to(device)).item() == 16
    except (RuntimeError, OSError, subprocess.SubprocessError, triton.TritonError) as error:
        logger.warning("Scoring in plain torch, because the Triton kernel failed: %s", error)
        return False
