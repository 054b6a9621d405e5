"""One query against texts: the windows of long ones, the kept vectors of known ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from colbert_rag.batching import Progress
from colbert_rag.cache import Claim, DocumentCache
from colbert_rag.checkpoint import Checkpoint
from colbert_rag.codings import FLOAT16
from colbert_rag.device import trim_heap
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexMismatchError, ScoringError
from colbert_rag.explanation import Explanation
from colbert_rag.inputs import has_words
from colbert_rag.maxsim import maxsim
from colbert_rag.ranking import Ranked, Ranking
from colbert_rag.settings import Settings
from colbert_rag.text_encoder import TextEncoder
from colbert_rag.tokenizer import Span, TextTokenizer
from colbert_rag.windows import find_windows

logger = logging.getLogger(__name__)

KnownVectors: TypeAlias = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Finds vectors, `(rows, dim)`, that the same model made earlier, of any of the texts."""


TRIM_AFTER = 64 * 2**20
"""Bytes of vectors handled on a CPU after which freed memory goes back to the system. Kept vectors
lie between those that went, so that without it 300 reranks of 100 documents held 150 MiB more."""

KEPT_PLACES = 10
"""Places at the top of a ranking whose vectors it keeps, so as to explain them."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Scored:
    """One query against some texts.

    Attributes:
        query: The query.
        texts: The texts.
        vectors: The query's vectors, `(query_rows, dim)`.
        pieces: Vectors of what was scored: the texts, or the windows of long ones, in order.
        winners: For each text, the number of its best piece.
        scores: For each text, the score of that piece.
        spans: For each text, where that piece lies in it; None where it is the whole text.
    """

    query: str
    texts: Sequence[str]
    vectors: Tensor
    pieces: TokenEmbeddings
    winners: list[int]
    scores: list[float]
    spans: list[Span | None]

    def explanation(self, index: int, tokenizer: TextTokenizer) -> Explanation:
        """Why the text at `index` has its score."""
        piece = self.pieces[self.winners[index]]
        return Explanation.of(
            self.query,
            self.texts[index],
            vectors=(self.vectors, piece),
            tokenizer=tokenizer,
            window=self.spans[index],
        )

    def ranking(
        self,
        items: Sequence[object],
        *,
        top_k: int | None,
        tokenizer: TextTokenizer,
        explain: Callable[[str, str], Explanation],
    ) -> Ranking:
        """The texts in the order of their scores.

        Args:
            items: What the caller gave for each text.
            top_k: Places to return; None for all.
            tokenizer: Made the tokens, and names them in explanations.
            explain: Explains the score of a text whose vectors the ranking does not keep.

        Raises:
            ScoringError: not one score is a number.
        """
        check_scores(self.scores, self.vectors.dtype)
        ranking = Ranking.from_scores(
            self.scores,
            query=self.query,
            texts=self.texts,
            query_rows=len(self.vectors),
            items=items,
            spans=self.spans,
            top_k=top_k,
        )
        # Only these are held: all vectors of a long list would take gigabytes.
        best = [place.index for place in ranking[:KEPT_PLACES]]
        pieces = self.pieces[[self.winners[index] for index in best]]
        query, vectors, kept = self.query, self.vectors, dict(zip(best, pieces, strict=True))

        def explain_place(place: Ranked) -> Explanation:
            if place.index not in kept:
                return explain(query, place.text)
            both = vectors, kept[place.index]
            return Explanation.of(
                query, place.text, vectors=both, tokenizer=tokenizer, window=place.span
            )

        return ranking.explained_by(explain_place)


def check_scores(scores: Sequence[float], dtype: torch.dtype) -> None:
    """Warn of scores that are no numbers.

    Raises:
        ScoringError: none is one.
    """
    lost = sum(map(math.isnan, scores))
    if lost == len(scores):
        raise ScoringError(
            f"none of the {lost} texts has a score that is a number: the model's weights, or "
            f"its arithmetic in {str(dtype).removeprefix('torch.')}, give NaN. "
            "Try dtype='float32'"
        )
    if lost:
        logger.warning("%d of %d texts have no score and are ranked last", lost, len(scores))


def best_windows(
    pieces: Sequence[str], windows: Sequence[Sequence[Span]], scores: Sequence[float]
) -> tuple[list[int], list[Span | None]]:
    """The piece of each text that gives its score: the best one that has words.

    Args:
        pieces: The windows of all texts, in order.
        windows: For each text, where its pieces lie in it.
        scores: Of each piece.

    Returns:
        For each text, the number of its best piece, and where that lies: None if it is the text.
    """
    winners: list[int] = []
    spans: list[Span | None] = []
    start = 0
    for own in windows:
        numbers = range(start, start + len(own))
        winner = start
        if len(own) > 1:
            winner = max(
                numbers, key=lambda i: (not math.isnan(scores[i]), has_words(pieces[i]), scores[i])
            )
        winners.append(winner)
        spans.append(own[winner - start] if len(own) > 1 else None)
        start = numbers.stop
    return winners, spans


class Scorer:
    """MaxSim of a query with texts, encoding only what has not been encoded before."""

    def __init__(self, text_encoder: TextEncoder, cache: DocumentCache, *, windows: bool) -> None:
        """Take a loaded model.

        Args:
            text_encoder: The model.
            cache: Where document vectors are kept.
            windows: Whether long documents are scored window by window, instead of being cut.
        """
        self.text_encoder = text_encoder
        self.cache = cache
        self._windows = windows
        self._handled = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: Settings) -> Scorer:
        """Load a model, with a cache of its own: calls under way go on filling that of theirs.

        Raises:
            CheckpointError: weights or tokenizer are not those of a model we host.
        """
        return cls(
            TextEncoder.of(checkpoint, settings),
            DocumentCache(settings.document_cache or 0),
            windows=settings.long_documents == "windows",
        )

    def score(
        self,
        query: str,
        texts: Sequence[str],
        *,
        known: KnownVectors | None = None,
        show_progress: bool = False,
    ) -> Scored:
        """Score one query with at least one text; what is not `known` is encoded."""
        vectors = self.text_encoder.queries([query])[0]
        pieces, windows = self.pieces(texts)
        documents = self.documents(pieces, known=known, show_progress=show_progress)
        scores = maxsim(vectors, documents).tolist()
        winners, spans = best_windows(pieces, windows, scores)
        return Scored(
            query=query,
            texts=texts,
            vectors=vectors,
            pieces=documents,
            winners=winners,
            scores=[scores[winner] for winner in winners],
            spans=spans,
        )

    def cache_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> None:
        """Put the vectors of texts into the cache."""
        size = self.text_encoder.stretch
        for start in range(0, len(texts), size):
            pieces, _ = self.pieces(texts[start : start + size])
            self.documents(pieces, show_progress=show_progress)

    def pieces(self, texts: Sequence[str]) -> tuple[list[str], list[list[Span]]]:
        """What is encoded for some texts, and where each piece lies in its text."""
        if not self._windows:
            return list(texts), [[(0, len(text))] for text in texts]
        windows = find_windows(self.text_encoder.tokenizer, texts)
        pieces = [
            text[start:stop]
            for text, spans in zip(texts, windows, strict=True)
            for start, stop in spans
        ]
        return pieces, windows

    def documents(
        self,
        texts: Sequence[str],
        *,
        known: KnownVectors | None = None,
        show_progress: bool = False,
        progress: Progress | None = None,
        evict: bool = True,
    ) -> TokenEmbeddings:
        """Vectors of documents, each distinct text encoded at most once.

        Args:
            texts: The documents, or windows of them.
            known: Finds vectors of those that are not in the cache.
            show_progress: Draw a progress bar of this call.
            progress: Told how many have been encoded, instead.
            evict: Whether other texts leave the cache for these.
        """
        unique = list(dict.fromkeys(texts))
        vectors: dict[str, Tensor] = {}
        # More than once only where another call failed that was to encode some of them.
        while missing := [text for text in unique if text not in vectors]:
            claim = Claim()
            with claim.working:
                try:
                    self.cache.claim(claim, missing)
                    vectors |= claim.found
                    if known is not None:
                        vectors |= self._recalled(claim.texts, known, evict=evict)
                    unknown = [text for text in claim.texts if text not in vectors]
                    fresh = self.text_encoder.documents(
                        unknown, show_progress=show_progress, progress=progress
                    )
                    claim.made = dict(zip(unknown, fresh, strict=True))
                    self.cache.put(claim.made, evict=evict)
                finally:
                    self.cache.release(claim)
            if len(unknown) == len(texts):
                return fresh
            vectors |= claim.made
            vectors |= claim.wait()
        documents = TokenEmbeddings.from_list([vectors[text] for text in texts])
        self._trim(documents)
        return documents

    def _trim(self, documents: TokenEmbeddings) -> None:
        """Give back now and then what vectors that came and went have left between those kept."""
        self._handled += documents.values.nbytes
        if documents.device.type == "cpu" and self._handled >= TRIM_AFTER:
            self._handled = 0
            trim_heap()

    def _check_maker(self, known: KnownVectors) -> None:
        """Refuse the method of an index that another model made, before the cache holds a vector.

        Raises:
            IndexMismatchError: scores of its vectors and of ours would be those of two models.
        """
        owner = getattr(known, "__self__", None)
        made_by = getattr(getattr(owner, "info", None), "fingerprint", None)
        if made_by is not None and made_by != self.text_encoder.fingerprint:
            raise IndexMismatchError(
                f"known gives vectors of {owner!r}, whose model has the fingerprint "
                f"{made_by[:12]}, and this one has {self.text_encoder.fingerprint[:12]}. Rank with "
                "the model that made the index, or without known"
            )

    def _recalled(
        self, texts: Sequence[str], known: KnownVectors, *, evict: bool
    ) -> dict[str, Tensor]:
        """Vectors from outside, as the model would give them, and into the cache where exact."""
        if not texts:
            return {}
        self._check_maker(known)
        encoder = self.text_encoder.encoder
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
        # The cache also serves callers without this memory, who were promised `dtype`.
        exact = {text: rows for text, rows in found.items() if _holds(stored[text].dtype, dtype)}
        if not _is_rounded(known):
            self.cache.put(exact, evict=evict)
        return found


def _is_rounded(known: KnownVectors) -> bool:
    """Whether it is the method of an index that stores less than the float type it gives."""
    return getattr(getattr(known, "__self__", None), "vectors", FLOAT16.name) != FLOAT16.name


def _holds(stored: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether a type holds the vectors that a model of `dtype` makes, without rounding them."""
    return torch.finfo(stored).eps <= torch.finfo(dtype).eps
