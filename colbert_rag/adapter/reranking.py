"""What a reranker does, whatever the framework."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from colbert_rag.adapter.model import check_query
from colbert_rag.adapter.shared_index import SharedIndex
from colbert_rag.errors import ScoringError
from colbert_rag.ranking import Ranking

logger = logging.getLogger(__name__)

EXPLANATION_KEY = "colbert_explanation"
"""Where in its metadata a result carries the explanation of its score."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One text's place among the results.

    Attributes:
        index: Its position in the input.
        score: On the chosen scale.
        explanation: `Explanation.to_dict()`, if asked for and the text was scored.
    """

    index: int
    score: float
    explanation: Mapping[str, object] | None = None


class Reranking(SharedIndex):
    """The public fields of a reranker, and what it does whatever the framework.

    With `index`, texts that the index holds are not encoded: their stored vectors are used, which
    are float16. Those of other texts are not added to it. The index must be one without token
    pooling.
    """

    top_n: int | None = Field(default=3, ge=1)
    """How many to return; None for all."""
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """Leave out what scores below this, on the scale that `score` chooses."""
    score: Literal["mean", "sum"] = "mean"
    """`"mean"` similarity of the query's vectors, from -1 to 1; `"sum"` is ColBERT's own score."""
    dedupe: bool = False
    """Keep only the first of those with the same id or the same text."""
    explain: bool = False
    """Say which words made each score, as plain values under `colbert_explanation` in the metadata;
    None there for what has no text to score."""
    show_progress: bool = False
    """Draw a progress bar on standard error."""

    def _rerank(
        self, query: str, texts: Sequence[str | None], ids: Sequence[str | None]
    ) -> list[Placed]:
        """Order texts by their score, best first; equal scores keep the order of the input.

        A text that is missing or blank, or has no finite score, comes last, with the lowest score
        of the scale: a score is always a number that JSON knows.

        Raises:
            InvalidQueryError: the query is blank.
            TypeError: the query or a text is not a string.
            ScoringError: not one text received a finite score.
        """
        check_query(query)
        _check_texts(texts)
        kept = _first_of_each(texts, ids) if self.dedupe else list(range(len(texts)))
        if not kept:
            return []
        present = [index for index in kept if (text := texts[index]) and text.strip()]
        if not present and self.score == "mean":
            return self._chosen([Placed(index, -1.0) for index in kept])
        # The lowest sum depends on the query's rows, which only the model can count.
        ranking = self._ranking(query, [texts[index] or "" for index in present] or [""])
        rows = ranking.query_rows
        divisor, lowest = (rows, -1.0) if self.score == "mean" else (1, -float(rows))
        ranks = {present[at]: rank for at, rank in _finite(ranking).items()} if present else {}
        best = [Placed(at, float(ranking[rank].score) / divisor) for at, rank in ranks.items()]
        chosen = self._chosen([*best, *(Placed(at, lowest) for at in kept if at not in ranks)])
        if not self.explain:
            return chosen
        return [
            replace(place, explanation=ranking.explain(ranks[place.index]).to_dict())
            if place.index in ranks
            else place
            for place in chosen
        ]

    def _chosen(self, ordered: list[Placed]) -> list[Placed]:
        if self.score_threshold is not None:
            ordered = [place for place in ordered if place.score >= self.score_threshold]
        return ordered[: self.top_n]

    def _ranking(self, query: str, texts: Sequence[str]) -> Ranking:
        """Let the model rank, with what the index knows of the texts.

        Raises:
            ValueError: the index holds pooled vectors, which no text that is encoded now has.
        """
        if self.index is None:
            return self.ranker.rank(query, texts, show_progress=self.show_progress)
        colbert = self._model
        index = self._open_index(colbert)
        if index.info.token_pooling is not None:
            raise ValueError(
                f"the index was made with token_pooling={index.info.token_pooling}, so its scores "
                "and those of other texts cannot be compared: use an index without it"
            )
        return colbert.rank(
            query, texts, known=index.embeddings_for, show_progress=self.show_progress
        )


def _finite(ranking: Ranking) -> dict[int, int]:
    """The rank of each text that has a finite score, best first, by its position in the input.

    Raises:
        ScoringError: none has.
    """
    ranks = {at.index: rank for rank, at in enumerate(ranking) if math.isfinite(at.score)}
    if not ranks:
        raise ScoringError(
            f"not one of {len(ranking)} texts has a finite score; try dtype='float32'"
        )
    if any(math.isinf(place.score) for place in ranking):  # of NaN, the model itself warns
        logger.warning("texts with an infinite score are ranked last")
    return ranks


def _check_texts(texts: Sequence[object]) -> None:
    for index, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"the text of {index} is {type(text).__name__}, expected a string")


def _first_of_each(texts: Sequence[str | None], ids: Sequence[str | None]) -> list[int]:
    """The indices whose id and text no earlier one of them has; a missing text equals none."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for index, (text, identity) in enumerate(zip(texts, ids, strict=True)):
        keys = {("id", identity)} if identity else set()
        if text and text.strip():
            keys.add(("text", text))
        if not keys & seen:
            kept.append(index)
            seen |= keys
    return kept
