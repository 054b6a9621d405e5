"""`Explanation`: why a document got its score, to read, to store and to cite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from colbert_rag.explanation.alignment import Match, Token, align, read_until, scored, similarities
from colbert_rag.explanation.html_view import to_html
from colbert_rag.explanation.overview import Overview, overview
from colbert_rag.explanation.passage import Passage, best_passage
from colbert_rag.explanation.text_view import to_text
from colbert_rag.tokenizer import Span, TextTokenizer


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Explanation:
    """Which document token each query token matched, and what that adds to the score.

    `print(explanation)` shows it in a terminal, and a notebook shows it by itself.

    Attributes:
        query: The query.
        text: The document.
        matches: One for each query token that counts, in order; their similarities are the score.
        document_tokens: The document tokens that count, in order.
        similarities: Of each query token with each document token, `(query_rows, document_rows)`,
            float32.
        query_read: Characters of the query that the model read: all, or those before the cut.
        text_read: Where what the model read lies in the document.
        is_window: Whether that is the best of several windows.
    """

    query: str
    text: str
    matches: tuple[Match, ...]
    document_tokens: tuple[Token, ...]
    similarities: NDArray[np.float32]
    query_read: int
    text_read: Span
    is_window: bool

    @classmethod
    def of(
        cls,
        query: str,
        text: str,
        *,
        vectors: tuple[Tensor, Tensor],
        tokenizer: TextTokenizer,
        window: Span | None = None,
    ) -> Explanation:
        """Explain a score from the vectors it was computed from.

        Args:
            query: The query.
            text: The document.
            vectors: Those of the query and of the document, `(rows, dim)` each.
            tokenizer: What made the tokens of both.
            window: Which part of the document its vectors are of; None for all of it.
        """
        start, stop = window or (0, len(text))
        part = text[start:stop]
        asked, found = tokenizer.spans(query, "query"), tokenizer.spans(part, "document")
        query_tokens, document_tokens = scored(asked), scored(found, offset=start)
        similarity = similarities(*vectors)
        return cls(
            query=query,
            text=text,
            matches=align(query_tokens, document_tokens, similarity),
            document_tokens=document_tokens,
            similarities=similarity,
            query_read=read_until(asked, query),
            text_read=(start, start + read_until(found, part)),
            is_window=window is not None,
        )

    @property
    def score(self) -> float:
        """The sum of the matches' similarities, as `ColBERT.score` gives it."""
        return math.fsum(match.similarity for match in self.matches)

    @cached_property
    def overview(self) -> Overview:
        """Words instead of tokens: what the views show."""
        return overview(self)

    def best_passage(self, width: int = 280) -> Passage:
        """The stretch of the document that carries most of the score, for a citation.

        It consists of whole sentences where they carry nearly as much as the best cut inside
        sentences would, and else of whole words. It is empty where nothing in the text matched.

        Args:
            width: Characters at most. A single word that is longer is cut.

        Raises:
            ValueError: `width` is less than 1.
        """
        if width < 1:
            raise ValueError(f"width is {width}, expected at least 1 character")
        return best_passage(self.text, self.overview.places, width)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; a number that is not finite becomes None."""
        return {
            "query": self.query,
            "text": self.text,
            "score": _finite(self.score),
            "query_read": self.query_read,
            "text_read": list(self.text_read),
            "is_window": self.is_window,
            "matches": [
                {
                    "query": _token(match.query),
                    "document": None if match.document is None else _token(match.document),
                    "similarity": _finite(match.similarity),
                    "share": _finite(match.share),
                }
                for match in self.matches
            ],
        }

    def to_text(self, *, width: int = 100, document: bool = False, styled: bool = False) -> str:
        """A table of the query's words and their matches, for a terminal.

        Args:
            width: Columns to fill.
            document: Show the document as well, with its matches marked; of a long one, the part
                that matters most.
            styled: Mark matches by a terminal's colours instead of brackets.
        """
        return to_text(self, width=width, document=document, styled=styled)

    def __repr__(self) -> str:
        """A table for the terminal."""
        return self.to_text()

    def to_html(self) -> str:
        """The document with its matches marked: one element with a style of its own."""
        return to_html(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _token(token: Token) -> dict[str, object]:
    start, stop = token.span or (None, None)
    return {"token": token.text, "role": token.role, "start": start, "stop": stop}
