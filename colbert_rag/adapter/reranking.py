"""What a reranker does, whatever the framework."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from colbert_rag.adapter.index import SharedIndex, path_of
from colbert_rag.errors import ColBERTRagError, ScoringError
from colbert_rag.inputs import has_words, is_address
from colbert_rag.model import AsyncRanker, ManyRanker, Ranker
from colbert_rag.ranking import Ranked, Ranking

logger = logging.getLogger(__name__)

EXPLANATION_KEY = "colbert_explanation"
"""Where in its metadata a result carries the explanation of its score."""


@dataclass(frozen=True, slots=True)
class Reranked:
    """One text that a reranker returns.

    Attributes:
        index: Its position in the input.
        score: On the chosen scale.
        explanation: `Explanation.to_dict()`, if asked for and the text was scored.
    """

    index: int
    score: float
    explanation: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One query and its texts.

    Attributes:
        query: The query.
        kept: Positions in the input of the texts that are answered with.
        scored: Those of them that have words, by position.
    """

    query: str
    kept: Sequence[int]
    scored: Mapping[int, str]


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

    @model_validator(mode="after")
    def _refuse_vectors_elsewhere(self) -> Self:
        if self._remote_index() is not None:
            raise ValueError(
                f"index is {path_of(self.index)!r}, a server's, and its vectors stay there: leave "
                "index out here"
            )
        return self

    def _rerank(
        self, query: str, texts: Sequence[str | None], ids: Sequence[str | None]
    ) -> list[Reranked]:
        """Order texts by their score, best first; equal scores keep the order of the input.

        A text that is missing or without words, or has no finite score, comes last, with the lowest
        score of the scale: a score is always a number that JSON knows.

        Raises:
            ScoringError: not one text received a finite score.
            TypeError: a text is not a string.
        """
        return self._rerank_one(self._asked(query, texts, ids))

    def _rerank_one(self, asked: Asked) -> list[Reranked]:
        (ranking,) = self._rankings([asked]) if self._texts(asked) else (None,)
        return self._answer(asked, ranking)

    async def _arerank_one(self, asked: Asked) -> list[Reranked]:
        """`_rerank_one`, awaiting a model that is elsewhere."""
        (ranking,) = await self._arankings([asked]) if self._texts(asked) else (None,)
        return self._answer(asked, ranking)

    def _rerank_many(self, several: Sequence[Asked]) -> list[list[Reranked] | Exception]:
        """What `_rerank` gives for each, or the error it raises, which the others do not share."""
        scored = [asked for asked in several if self._texts(asked)]
        try:
            rankings = self._rankings(scored) if scored else []
        except ScoringError:  # of one of them, and the model does not say which
            return [_tried(self._rerank_one, asked) for asked in several]
        return self._answers(several, rankings)

    async def _arerank_many(self, several: Sequence[Asked]) -> list[list[Reranked] | Exception]:
        """`_rerank_many`, awaiting a model that is elsewhere."""
        scored = [asked for asked in several if self._texts(asked)]
        try:
            rankings = await self._arankings(scored) if scored else []
        except ScoringError:
            found = await asyncio.gather(*map(self._arerank_one, several), return_exceptions=True)
            return [_ours(one) for one in found]
        return self._answers(several, rankings)

    def _answers(
        self, several: Sequence[Asked], rankings: Sequence[Ranking]
    ) -> list[list[Reranked] | Exception]:
        """The answer to each, from the rankings of those that have something to rank."""
        following = iter(rankings)
        return [
            _tried(self._answer, asked, next(following) if self._texts(asked) else None)
            for asked in several
        ]

    def _texts(self, asked: Asked) -> list[str]:
        """What a model is to rank.

        A sum is at least the number of the query's rows below zero, and only the model knows them:
        it is asked even where there is nothing to rank.
        """
        if asked.scored or not asked.kept or self.score == "mean":
            return list(asked.scored.values())
        return [""]

    def _asked(self, query: str, texts: Sequence[str | None], ids: Sequence[str | None]) -> Asked:
        """What there is to rank.

        Raises:
            TypeError: a text is not a string.
        """
        for index, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                raise TypeError(f"the text of {index} is {type(text).__name__}, expected a string")
        kept = _first_of_each(texts, ids) if self.dedupe else range(len(texts))
        scored = {index: text for index in kept if (text := texts[index]) and has_words(text)}
        return Asked(query, kept, scored)

    def _answer(self, asked: Asked, ranking: Ranking | None) -> list[Reranked]:
        """The results of one query, from the ranking of those of its texts that have words.

        Raises:
            ScoringError: not one text received a finite score.
        """
        if not asked.kept:
            return []
        places: dict[int, Ranked] = {}
        if ranking is not None and asked.scored:
            places = _finite_places(ranking, list(asked.scored))
        lowest = -1.0 if self.score == "mean" or ranking is None else -float(ranking.query_rows)
        scores = {
            index: float(place.mean if self.score == "mean" else place.score)
            for index, place in places.items()
        }
        scores |= {index: lowest for index in asked.kept if index not in places}
        results = [Reranked(index, score) for index, score in scores.items()]
        if self.score_threshold is not None:
            results = [result for result in results if result.score >= self.score_threshold]
        results = results[: self.top_n]
        if not self.explain or ranking is None:
            return results
        return [
            replace(result, explanation=ranking.explain(places[result.index].rank - 1).to_dict())
            if result.index in places
            else result
            for result in results
        ]

    def _rankings(self, several: Sequence[Asked]) -> Sequence[Ranking]:
        """Let the model rank, with what the index knows of the texts.

        Raises:
            IndexMismatchError: the model is no longer the one that made the index.
            ValueError: the index holds pooled vectors, which no text that is encoded now has.
        """
        if self.index is None:
            return self._ranked(self.ranker, several, {})
        model = self._model
        index = self._open_index(model)
        if index.info.token_pooling is not None:
            raise ValueError(
                f"the index was made with token_pooling={index.info.token_pooling}, so its scores "
                "and those of other texts cannot be compared: use an index without it"
            )
        rankings = self._ranked(model, several, {"known": index.embeddings_for})
        index.info.check_model(model)  # it may have been loaded anew, from other files
        return rankings

    def _ranked(
        self, ranker: Ranker, several: Sequence[Asked], options: Mapping[str, Any]
    ) -> Sequence[Ranking]:
        """All at once where the model can, but one by one to explain: those keep the vectors."""
        queries = [asked.query for asked in several]
        lists = [self._texts(asked) for asked in several]
        chosen = {**options, "show_progress": self.show_progress}
        if len(several) > 1 and isinstance(ranker, ManyRanker) and not self.explain:
            return ranker.rank_many(queries, lists, **chosen)
        if self.explain and isinstance(ranker, AsyncRanker) and "known" not in options:
            chosen |= {"explain": True, "top_k": self.top_n}
        return [
            ranker.rank(query, texts, **chosen) for query, texts in zip(queries, lists, strict=True)
        ]

    @property
    def _awaited(self) -> bool:
        """Whether a call has only to wait for a server, and needs no thread for that."""
        return self.index is None and (
            is_address(self.model)
            if self.colbert is None
            else isinstance(self.colbert, AsyncRanker)
        )

    async def _arankings(self, several: Sequence[Asked]) -> Sequence[Ranking]:
        """`_rankings` of a model that is elsewhere."""
        ranker = self.ranker
        assert isinstance(ranker, AsyncRanker)  # callers look at `_awaited` first
        queries = [asked.query for asked in several]
        lists = [self._texts(asked) for asked in several]
        if len(several) > 1 and not self.explain:
            return await ranker.arank_many(queries, lists, show_progress=self.show_progress)
        chosen: dict[str, Any] = {"show_progress": self.show_progress}
        if self.explain:
            chosen |= {"explain": True, "top_k": self.top_n}
        return await asyncio.gather(
            *(
                ranker.arank(query, texts, **chosen)
                for query, texts in zip(queries, lists, strict=True)
            )
        )


def _ours(found: list[Reranked] | BaseException) -> list[Reranked] | Exception:
    """What came of one call; an error that is not its own is raised."""
    if isinstance(found, BaseException) and not isinstance(found, ColBERTRagError):
        raise found
    return found


def _tried(answer: Callable[..., list[Reranked]], *arguments: object) -> list[Reranked] | Exception:
    try:
        return answer(*arguments)
    except ColBERTRagError as error:
        return error


def _finite_places(ranking: Ranking, indices: Sequence[int]) -> dict[int, Ranked]:
    """The places that have a finite score, best first, by the position of the text in the input.

    Raises:
        ScoringError: no place has one.
    """
    places = {indices[place.index]: place for place in ranking if math.isfinite(place.score)}
    if not places:
        raise ScoringError(
            f"not one of {len(ranking)} texts has a finite score; try dtype='float32'"
        )
    if any(math.isinf(place.score) for place in ranking):  # of NaN, the model itself warns
        logger.warning("texts with an infinite score are ranked last")
    return places


def _first_of_each(texts: Sequence[str | None], ids: Sequence[str | None]) -> list[int]:
    """The indices whose id and text no earlier one of them has; a missing text equals none."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for index, (text, identity) in enumerate(zip(texts, ids, strict=True)):
        keys = {("id", identity)} if identity else set()
        if text and has_words(text):
            keys.add(("text", text))
        if not keys & seen:
            kept.append(index)
            seen |= keys
    return kept
