"""Which document token each query token took, with the similarities the score was summed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.maxsim import maxsim_many
from colbert_rag.tokenizer import Role, Span, TokenSpans

WITHOUT_DOCUMENT = -1.0
"""What a query token adds where the document has no rows at all: the least a cosine can be."""


@dataclass(frozen=True, slots=True)
class Token:
    """One scored token.

    Attributes:
        text: The token as written in the vocabulary, such as "##ing" or "▁red".
        role: "text" for a token of the caller's text; else "prompt", "marker", "special" or
            "expansion".
        span: Start and end in characters of the caller's text, or None for what is not in it.
    """

    text: str
    role: Role
    span: Span | None


@dataclass(frozen=True, slots=True)
class Match:
    """What one query token found.

    Attributes:
        query: The query token.
        document: The document token most similar to it; None where the document has no rows.
        similarity: Their cosine similarity: what this token adds to the score.
        share: That as a fraction of the score; 0 where the score is 0.
    """

    query: Token
    document: Token | None
    similarity: float
    share: float


def scored(spans: TokenSpans, *, offset: int = 0) -> tuple[Token, ...]:
    """The tokens that count in a score, in the order of their rows.

    Args:
        spans: Of a text, or of the part of it that begins at `offset`.
        offset: Characters of the text before that part.
    """
    tokens = []
    for position in np.flatnonzero(spans.batch.scoring):
        span = spans.spans[position]
        place = None if span is None else (span[0] + offset, span[1] + offset)
        tokens.append(Token(spans.tokens[position], spans.roles[position], place))
    return tuple(tokens)


def read_until(spans: TokenSpans, text: str) -> int:
    """How many characters of a text the model has read, which is all unless it was cut."""
    if not spans.batch.truncated:
        return len(text)
    return max((span[1] for span in spans.spans if span is not None), default=0)


def similarities(query: Tensor, document: Tensor) -> NDArray[np.float32]:
    """Every query row with every document row, `(query_rows, document_rows)`.

    The scorer itself computes them, each row as a text of its own, so that on every device and in
    every float type their maxima are the very numbers a score is summed from.
    """
    return maxsim_many(_row_by_row(query), _row_by_row(document)).cpu().numpy()


def _row_by_row(rows: Tensor) -> TokenEmbeddings:
    return TokenEmbeddings(rows, torch.arange(len(rows) + 1, device="cpu"))


def align(
    query: tuple[Token, ...], document: tuple[Token, ...], similarity: NDArray[np.float32]
) -> tuple[Match, ...]:
    """Each query token with its best document token; of equals the first."""
    if not document:
        best = [WITHOUT_DOCUMENT] * len(query)
        found: list[Token | None] = [None] * len(query)
    else:
        winners = similarity.argmax(axis=1)
        best = similarity[np.arange(len(query)), winners].tolist()
        found = [document[winner] for winner in winners]
    score = sum(best)
    return tuple(
        Match(token, match, value, value / score if score else 0.0)
        for token, match, value in zip(query, found, best, strict=True)
    )
