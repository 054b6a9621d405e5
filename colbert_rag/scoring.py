"""One query against texts: the windows of long ones, the kept vectors of known ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from colbert_rag.cache import DocumentCache
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.maxsim import maxsim
from colbert_rag.text_encoder import TextEncoder
from colbert_rag.tokenizer import Span
from colbert_rag.windows import find_windows

Known: TypeAlias = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Finds vectors, `(rows, dim)`, that the same model made earlier, of any of the texts."""


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """One query against some texts.

    Attributes:
        query: The query's vectors, `(query_rows, dim)`.
        pieces: What was scored: the texts, or the windows of long ones, in order.
        documents: Vectors of the pieces.
        scores: For each text, the score of its best piece.
        winners: For each text, the number of that piece.
        spans: For each text, where that piece lies in it; None where it is the whole text.
    """

    query: Tensor
    pieces: list[str]
    documents: TokenEmbeddings
    scores: list[float]
    winners: list[int]
    spans: list[Span | None]


class Scorer:
    """MaxSim of a query with texts, encoding only what has not been encoded before."""

    def __init__(
        self, text_encoder: TextEncoder, cache: DocumentCache | None, *, windows: bool
    ) -> None:
        """Take a loaded model.

        Args:
            text_encoder: The model.
            cache: Where document vectors are kept, or None.
            windows: Whether long documents are scored window by window, instead of being cut.
        """
        self._text_encoder = text_encoder
        self._cache = cache
        self._windows = windows

    def score(
        self,
        query: str,
        texts: Sequence[str],
        *,
        known: Known | None = None,
        show_progress: bool = False,
    ) -> Scored:
        """Score one query with at least one text; what is not `known` is encoded."""
        vectors = self._text_encoder.queries([query])[0]
        pieces, windows = self._pieces(texts)
        documents = self._documents(pieces, known=known, show_progress=show_progress)
        scores = maxsim(vectors, documents).tolist()
        winners, start = [], 0
        for spans in windows:
            places = range(start, start + len(spans))
            winners.append(max(places, key=lambda i: (not math.isnan(scores[i]), scores[i])))
            start = places.stop
        flat = [span for spans in windows for span in spans]
        return Scored(
            vectors,
            pieces,
            documents,
            [scores[winner] for winner in winners],
            winners,
            [
                flat[winner] if len(spans) > 1 else None
                for winner, spans in zip(winners, windows, strict=True)
            ],
        )

    def cache_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> None:
        """Put the vectors of texts into the cache."""
        size = self._text_encoder.stretch
        for start in range(0, len(texts), size):
            pieces, _ = self._pieces(texts[start : start + size])
            self._documents(pieces, show_progress=show_progress)

    def _pieces(self, texts: Sequence[str]) -> tuple[list[str], list[list[Span]]]:
        """What is encoded for some texts, and where each piece lies in its text."""
        if not self._windows:
            return list(texts), [[(0, len(text))] for text in texts]
        windows = find_windows(self._text_encoder.tokenizer, texts)
        pieces = [
            text[start:stop]
            for text, spans in zip(texts, windows, strict=True)
            for start, stop in spans
        ]
        return pieces, windows

    def _documents(
        self, texts: Sequence[str], *, known: Known | None = None, show_progress: bool
    ) -> TokenEmbeddings:
        """Vectors of documents, each distinct text encoded at most once."""
        unique = list(dict.fromkeys(texts))
        found = {} if self._cache is None else self._cache.get(unique)
        if known is not None:
            found |= self._recalled([text for text in unique if text not in found], known)
        missing = [text for text in unique if text not in found]
        fresh = self._text_encoder.documents(missing, show_progress=show_progress)
        new = dict(zip(missing, fresh, strict=True))
        if self._cache is not None:
            self._cache.put(new)
        if len(missing) == len(texts):
            return fresh
        vectors = found | new
        return TokenEmbeddings.from_list([vectors[text] for text in texts])

    def _recalled(self, texts: Sequence[str], known: Known) -> dict[str, Tensor]:
        """Vectors from outside, as the model would give them, and into the cache where exact."""
        if not texts:
            return {}
        encoder = self._text_encoder.encoder
        device, dtype = encoder.device, encoder.dtype
        stored = known(texts)
        for rows in stored.values():
            if not isinstance(rows, Tensor) or not rows.is_floating_point():
                kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
                raise TypeError(f"known gave vectors of type {kind}, expected tensors of floats")
            if rows.ndim != 2 or rows.shape[1] != encoder.dim:
                raise ValueError(
                    f"known gave vectors of shape {tuple(rows.shape)}, expected (rows, "
                    f"{encoder.dim}) as this model makes them"
                )
        # Copied, since the caller may go on to change his own.
        found = {text: rows.to(device, dtype, copy=True) for text, rows in stored.items()}
        if self._cache is not None:
            # The cache also serves callers without this memory, who were promised `dtype`.
            self._cache.put(
                {text: rows for text, rows in found.items() if _holds(stored[text].dtype, dtype)}
            )
        return found


def _holds(stored: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether a type holds the vectors that a model of `dtype` makes, without rounding them."""
    return torch.finfo(stored).eps <= torch.finfo(dtype).eps
