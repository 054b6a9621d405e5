"""A model that needs no weights, and what a reranker must do whatever its framework."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from colbert_rag import ColBERT, InvalidQueryError, Ranking
from colbert_rag.adapter import Reranking
from colbert_rag.errors import ScoringError
from colbert_rag.scoring import KnownVectors
from tests.helpers.index_fakes import WordEncoder, naive_maxsim


class LengthRanker:
    """Scores a text by its number of letters, so that every score can be told from its text."""

    query_rows = 4

    def __init__(self, scores: Mapping[str, float] | None = None) -> None:
        self.scores = scores or {}
        self.asked: list[list[str]] = []

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        show_progress: bool = False,
    ) -> Ranking:
        self.asked.append(list(texts))
        scores = [self.scores.get(text, float(len(text))) for text in texts]
        return Ranking.from_scores(
            scores, query=query, texts=texts, query_rows=self.query_rows, top_k=top_k
        )


class WordModel(WordEncoder):
    """A whole model that is no `ColBERT`, as one behind a server would be: no weights to load."""

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        known: KnownVectors | None = None,
        show_progress: bool = False,
    ) -> Ranking:
        vectors = {} if known is None else dict(known(texts))
        new = [text for text in texts if text not in vectors]
        vectors |= dict(zip(new, self.encode_documents(new), strict=True))
        (rows,) = self.encode_queries([query])
        scores = [naive_maxsim(rows, vectors[text]) for text in texts]
        return Ranking.from_scores(
            scores, query=query, texts=texts, query_rows=len(rows), top_k=top_k
        )


class RerankerSuite(ABC):
    """The rows that all rerankers share; a subclass says how its framework spells them."""

    @abstractmethod
    def reranker(self, **options: Any) -> Reranking:
        """A reranker with these fields."""

    @abstractmethod
    def items(self, texts: Sequence[Any], ids: Sequence[str] | None = None) -> list[Any]:
        """What the framework's retrievers find, one item for each text; None is no text."""

    @abstractmethod
    def run(self, reranker: Reranking, items: list[Any], query: str) -> list[Any]:
        """Rerank."""

    @abstractmethod
    def read(self, item: Any) -> tuple[str, float]:
        """Text and score of a result."""

    def rerank(self, texts: Sequence[Any], *, query: str = "q", **options: Any) -> list[Any]:
        ids = options.pop("ids", None)
        reranker = self.reranker(**{"colbert": LengthRanker(), "score": "sum", **options})
        return [self.read(item) for item in self.run(reranker, self.items(texts, ids), query)]

    def test_each_text_comes_back_with_its_own_score_best_first(self) -> None:
        results = self.rerank(["bb", "dddd", "a", "ccc"], top_n=None)

        assert results == [("dddd", 4.0), ("ccc", 3.0), ("bb", 2.0), ("a", 1.0)]

    def test_the_default_score_is_the_mean_over_the_rows_of_the_query(self) -> None:
        assert self.rerank(["a", "dd"], score="mean") == [("dd", 0.5), ("a", 0.25)]

    def test_scores_are_plain_python_floats(self) -> None:
        ((_, score),) = self.rerank(["a"], score="mean")

        assert type(score) is float

    @pytest.mark.parametrize(("top_n", "expected"), [(1, 1), (3, 3), (4, 3), (None, 3)])
    def test_top_n_limits_the_results(self, top_n: int | None, expected: int) -> None:
        assert len(self.rerank(["a", "bb", "ccc"], top_n=top_n)) == expected

    @pytest.mark.parametrize("top_n", [0, -1])
    def test_top_n_below_one_is_refused(self, top_n: int) -> None:
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            self.reranker(top_n=top_n)

    def test_a_misspelt_field_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="top_k"):
            self.reranker(top_k=3)

    def test_nothing_to_rank_gives_nothing_and_asks_no_model(self) -> None:
        ranker = LengthRanker()

        assert self.rerank([], colbert=ranker) == []
        assert ranker.asked == []

    @pytest.mark.parametrize("texts", [["a"], []], ids=["with texts", "without texts"])
    @pytest.mark.parametrize("query", ["", " \n"], ids=["empty", "blank"])
    def test_a_query_without_words_is_refused(self, query: str, texts: list[str]) -> None:
        with pytest.raises(InvalidQueryError, match="expected some text to search for"):
            self.rerank(texts, query=query)

    @pytest.mark.parametrize(("score", "lowest"), [("mean", -1.0), ("sum", -4.0)])
    @pytest.mark.parametrize("text", [None, "", " \n"], ids=["none", "empty", "blank"])
    def test_a_missing_text_comes_last_with_the_lowest_score(
        self, text: str | None, score: str, lowest: float
    ) -> None:
        ranker = LengthRanker()

        (*_, last) = self.rerank([text, "a"], score=score, colbert=ranker)

        assert last[1] == lowest
        assert ranker.asked == [["a"]]

    def test_without_any_text_no_model_is_asked_for_a_mean(self) -> None:
        ranker = LengthRanker()

        results = self.rerank(["", " "], score="mean", colbert=ranker)

        assert results == [("", -1.0), (" ", -1.0)]
        assert ranker.asked == []

    def test_without_any_text_the_lowest_sum_still_counts_the_rows_of_the_query(self) -> None:
        assert self.rerank(["", " "], score="sum") == [("", -4.0), (" ", -4.0)]

    def test_equal_texts_are_all_kept(self) -> None:
        assert self.rerank(["a", "bb", "a"]) == [("bb", 2.0), ("a", 1.0), ("a", 1.0)]

    def test_dedupe_keeps_the_first_of_equal_texts(self) -> None:
        assert self.rerank(["a", "bb", "a"], dedupe=True) == [("bb", 2.0), ("a", 1.0)]

    def test_dedupe_keeps_the_first_of_equal_ids(self) -> None:
        texts, ids = ["a", "bb", "ccc"], ["x", "y", "x"]

        assert self.rerank(texts, ids=ids, dedupe=True) == [("bb", 2.0), ("a", 1.0)]

    def test_dedupe_keeps_all_that_have_no_text(self) -> None:
        assert len(self.rerank(["", ""], ids=["x", "y"], dedupe=True)) == 2

    def test_equal_scores_keep_the_order_of_the_input(self) -> None:
        texts = ["d", "b", "longer", "a", "c"]

        results = self.rerank(texts, top_n=None)

        assert [text for text, _ in results] == ["longer", "d", "b", "a", "c"]

    @pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
    def test_a_score_that_is_not_finite_comes_last_and_is_made_finite(self, score: float) -> None:
        ranker = LengthRanker({"lost": score})

        results = self.rerank(["lost", "a", ""], colbert=ranker)

        assert results == [("a", 1.0), ("lost", -4.0), ("", -4.0)]

    def test_an_infinite_score_is_reported_once(self, caplog: pytest.LogCaptureFixture) -> None:
        ranker = LengthRanker({"b": math.inf, "c": math.inf})

        with caplog.at_level(logging.WARNING, logger="colbert_rag"):
            self.rerank(["a", "b", "c"], colbert=ranker)

        assert [record.message for record in caplog.records] == [
            "texts with an infinite score are ranked last"
        ]

    def test_no_finite_score_at_all_is_an_error(self) -> None:
        ranker = LengthRanker({"a": math.nan, "b": math.inf})

        with pytest.raises(ScoringError, match="try dtype='float32'"):
            self.rerank(["a", "b", ""], colbert=ranker)

    def test_a_score_equal_to_the_threshold_passes(self) -> None:
        results = self.rerank(["a", "bb", "ccc"], score_threshold=2.0)

        assert results == [("ccc", 3.0), ("bb", 2.0)]

    def test_the_threshold_applies_to_the_chosen_scale(self) -> None:
        results = self.rerank(["a", "bb", "ccc"], score="mean", score_threshold=0.5)

        assert results == [("ccc", 0.75), ("bb", 0.5)]

    def test_the_threshold_applies_before_top_n(self) -> None:
        results = self.rerank(["a", "bb", "ccc"], score_threshold=2.0, top_n=1)

        assert results == [("ccc", 3.0)]

    def test_the_threshold_also_leaves_out_missing_texts(self) -> None:
        assert self.rerank(["", "a"], score_threshold=-3.9) == [("a", 1.0)]

    @pytest.mark.parametrize("threshold", [math.nan, math.inf])
    def test_a_threshold_that_is_not_finite_is_refused(self, threshold: float) -> None:
        with pytest.raises(ValidationError, match="finite number"):
            self.reranker(score_threshold=threshold)

    def test_inputs_stay_as_they_are_and_a_second_call_answers_the_same(self) -> None:
        reranker = self.reranker(colbert=LengthRanker(), top_n=None)
        items = self.items(["a", "", "ccc", "bb"])
        before = copy.deepcopy(items)

        first = self.run(reranker, items, "q")
        second = self.run(reranker, items, "q")

        assert items == before
        assert [self.read(item) for item in first] == [self.read(item) for item in second]
        assert not {id(item) for item in items} & {id(item) for item in first}

    def test_results_can_be_written_as_json(self) -> None:
        reranker = self.reranker(colbert=LengthRanker())

        results = self.run(reranker, self.items(["a", "", "bb"]), "q")

        assert json.dumps([item.model_dump(mode="json") for item in results], allow_nan=False)

    def test_a_text_scores_the_same_in_any_company(self, tiny_colbert: ColBERT) -> None:
        texts = ["mars is red", "saturn", "jupiter and its storms and rings", "venus"]
        query = "red planet"

        together = self.rerank(texts, query=query, colbert=tiny_colbert, top_n=None)
        alone = [self.rerank([text], query=query, colbert=tiny_colbert)[0] for text in texts]

        assert dict(together) == pytest.approx(dict(alone), abs=1e-5)
        assert dict(together) == pytest.approx(
            dict(zip(texts, tiny_colbert.score(query, texts), strict=True)), abs=1e-5
        )

    def test_an_overlong_query_is_cut(self, tiny_colbert: ColBERT) -> None:
        query = "planet " * 500

        assert len(self.rerank(["mars", "venus"], query=query, colbert=tiny_colbert)) == 2

    def test_a_deep_copy_uses_the_same_model(self, tiny_colbert: ColBERT) -> None:
        reranker = self.reranker(colbert=tiny_colbert)

        assert copy.deepcopy(reranker).ranker is tiny_colbert
        assert reranker.model_copy(deep=True).ranker is tiny_colbert

    def test_a_pickle_is_small_and_uses_the_same_model(self, tiny_colbert: ColBERT) -> None:
        pickled = pickle.dumps(self.reranker(colbert=tiny_colbert, top_n=7))

        restored = pickle.loads(pickled)

        assert len(pickled) < 10_000
        assert restored.top_n == 7
        assert restored.ranker is tiny_colbert

    def test_json_keeps_every_choice_and_opens_an_equal_model(self, tiny_colbert: ColBERT) -> None:
        reranker = self.reranker(colbert=tiny_colbert, top_n=7, score="sum", dedupe=True)

        restored = type(reranker).model_validate_json(self.stored(reranker))

        assert restored.model_dump() == reranker.model_dump()
        assert restored.colbert is None
        assert isinstance(restored.ranker, ColBERT)
        assert restored.ranker.settings == tiny_colbert.settings

    def stored(self, reranker: Reranking) -> str:
        """The reranker as JSON."""
        return reranker.model_dump_json()
