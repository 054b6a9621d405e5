"""Late-interaction scores (MaxSim) of ragged token vectors, by the fastest way the device has.

Each query token takes its best document token, and the score is the sum of those similarities
(Khattab & Zaharia 2020, https://arxiv.org/abs/2004.12832). Half precision on CUDA runs in one fused
Triton kernel; everything else runs in plain torch, which is also what the kernel is tested against.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from colbert_rag.codings import FLOAT16, CodedEmbeddings
from colbert_rag.computing import computing
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.maxsim import torch_kernel

__all__ = ["maxsim", "maxsim_many"]


def maxsim(query: Tensor, documents: TokenEmbeddings) -> Tensor:
    """Score one query against many documents.

    Args:
        query: Unit-length vectors, `(query_rows, dim)`, on any device and in any float type.
        documents: Unit-length vectors of the tokens that count, ragged, `(rows, dim)`. Scores are
            computed on their device, in float32 whatever float type they are stored in.

    Returns:
        `(documents,)`, float32, on the documents' device; higher is better, at most `query_rows`.
        A document without rows scores `-query_rows`, the least that unit vectors can reach. A NaN
        in a document makes that document's score NaN, and no other.

    Raises:
        ValueError: `query` is not two-dimensional, or differs from `documents` in `dim`.
    """
    if query.ndim != 2:
        raise ValueError(f"query has shape {tuple(query.shape)}, expected (query_rows, dim)")
    return maxsim_many(TokenEmbeddings.from_list([query]), documents)[0]


def maxsim_many(queries: TokenEmbeddings, documents: TokenEmbeddings) -> Tensor:
    """Score every query against every document, as `maxsim` does one query.

    The memory used beyond the result does not grow with the number of documents or queries: the
    similarities exist only for one block of rows at a time (`torch_kernel`), or for one tile inside
    a streaming multiprocessor (`triton_kernel`).

    Args:
        queries: Unit-length vectors, ragged, `(query_rows, dim)`.
        documents: Unit-length vectors of the tokens that count, ragged, `(rows, dim)`.

    Returns:
        `(queries, documents)`, float32, on the documents' device.

    Raises:
        ValueError: `queries` and `documents` differ in `dim`.
        TypeError: either holds something other than floats.
    """
    for role, vectors in (("query", queries), ("document", documents)):
        if not vectors.dtype.is_floating_point:
            raise TypeError(f"the {role} vectors are {vectors.dtype}, expected a float type")
    _check_widths(queries.dim, documents.dim)
    # Inside a caller's autocast, float32 vectors would be multiplied in half precision.
    with torch.autocast(documents.device.type, enabled=False), computing():
        # The kernel multiplies in one type, and in bfloat16 a float32 query would lose digits.
        keeps_query = documents.dtype in (queries.dtype, torch.float16)
        if keeps_query and _has_fused_kernel(documents.device, documents.dtype):
            from colbert_rag.maxsim.triton_kernel import maxsim_many as fused_maxsim_many

            return fused_maxsim_many(queries, documents)
        return torch_kernel.maxsim_many(queries, documents)


def maxsim_stored(queries: TokenEmbeddings, documents: CodedEmbeddings) -> Tensor:
    """`maxsim_many` of vectors as an index stores them, which are decoded block by block."""
    if documents.coding is FLOAT16:
        return maxsim_many(queries, documents.decoded())
    _check_widths(queries.dim, documents.dim)
    with torch.autocast(documents.device.type, enabled=False), computing():
        return torch_kernel.maxsim_many(queries, documents)


def _check_widths(queries: int, documents: int) -> None:
    if queries != documents:
        raise ValueError(
            f"the query vectors have {queries} dimensions and the document vectors {documents}: "
            "encode both with the same model"
        )


@cache
def _has_fused_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    # float32 stays with torch: the tensor cores would round it to TensorFloat-32.
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    if find_spec("triton") is None:
        return False
    from colbert_rag.maxsim.triton_kernel import works_on

    return works_on(device)
