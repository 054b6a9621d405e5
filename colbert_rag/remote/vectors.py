"""A plan that has texts encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colbert_rag.progress import progress_bar
from colbert_rag.remote.answers import read_vectors
from colbert_rag.remote.exchange import Plan
from colbert_rag.remote.parts import ask_in_parts, bytes_of
from colbert_rag.remote.replies import Request
from colbert_rag.remote.wire import POOLING

MIB = 2**20

MOST_ENCODED = 128
"""Texts of a request at most: their vectors may take 200 kB each on their way."""

_VECTORS = 8 * MIB
"""Bytes of a text's vectors on their way at most: 8,192 of width 128 take 6."""

if TYPE_CHECKING:
    from colbert_rag.embeddings import TokenEmbeddings


def encode(
    texts: Sequence[str], kind: str, *, where: str, dim: int, show_progress: bool
) -> Plan[TokenEmbeddings]:
    """Token vectors of texts, float32, on the CPU.

    Args:
        texts: The texts.
        kind: "query" or "document".
        where: The server, for messages.
        dim: Width of a vector.
        show_progress: Draw a progress bar on standard error.

    Raises:
        ServerAnswerError: the server gave something else than vectors.
    """
    from colbert_rag.embeddings import TokenEmbeddings

    def request(first: int, last: int) -> Request:
        body = {"input": texts[first:last], "input_type": kind, "encoding_format": "base64"}
        return Request("POST", POOLING, body, most=MIB + (last - first) * _VECTORS)

    if not texts:
        return TokenEmbeddings.from_list([], dim=dim)
    with progress_bar("Encoding", total=len(texts), show=show_progress) as bar:
        answers = yield from ask_in_parts(bytes_of(texts), request, bar, most=MOST_ENCODED)
    return TokenEmbeddings.cat(
        read_vectors(answer, where, count=last - first, dim=dim)
        for (first, last), answer in answers
    )
