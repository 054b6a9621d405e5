"""Many queries at once: what `rank` gives for each, with every distinct text encoded once."""

from __future__ import annotations

import itertools
import logging
import math
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_rag import ColBERT, LocalIndex, TokenEmbeddings, cache, many, scoring
from colbert_rag.errors import InvalidQueryError, ScoringError
from colbert_rag.index import Document
from colbert_rag.ranking import Ranking, Rankings
from tests.helpers.interrupts import at_every_line, elsewhere
from tests.helpers.oracle import naive_maxsim

WORDS = "mars venus saturn planet red rings ice rock moon dust storm wind".split()
QUERIES = ["which planet is red", "rings of ice", "dust and wind", "a moon of rock"]
TEXTS = [f"{'saturn has rings of ice ' * (number % 5 + 1)}{number}" for number in range(30)]
WORDLESS = ["", " \n", "...", "?!"]


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> ColBERT:
    """A fresh instance, so that counts and caches start at nothing."""
    return ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", dtype="float32")


@pytest.fixture(params=["truncate", "windows"])
def short(request: pytest.FixtureRequest, colbert: Callable[..., ColBERT]) -> ColBERT:
    """A model that reads 12 tokens of a document, without a cache."""
    options = {"document_length": 12, "document_cache": None}
    return colbert("stanford-bert", long_documents=request.param, **options)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch, model: ColBERT) -> Iterator[Counter[str]]:
    """How often each text was given to the encoder."""
    encoder = model._loaded().text_encoder
    encode, counts, lock = encoder.documents, Counter[str](), threading.Lock()

    def counting(texts: Sequence[str], **options: Any) -> TokenEmbeddings:
        with lock:
            counts.update(texts)
        return encode(texts, **options)

    monkeypatch.setattr(encoder, "documents", counting)
    return counts


def budget(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(many, "WAVE_BYTES", {"cpu": size})


def assert_same(found: Ranking, expected: Ranking) -> None:
    """Equal places and scores, but for the order of scores that are nearer than 1e-5."""
    assert (found.query, list(found.texts)) == (expected.query, list(expected.texts))
    assert found.query_rows == expected.query_rows
    assert [place.rank for place in found] == [place.rank for place in expected]
    by_index = {place.index: place for place in expected}
    for place, other in zip(found, expected, strict=True):
        assert place.score == pytest.approx(other.score, abs=1e-5)
        same = by_index.get(place.index)
        if same is not None:  # else beyond top_k there, in a near tie
            assert place.score == pytest.approx(same.score, abs=1e-5)
            assert place.text == same.text
            assert place.item is same.item
            assert place.span == same.span or same.span is not None


sentences = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)
texts = st.lists(sentences | st.sampled_from([*WORDLESS, *TEXTS]), max_size=12)
asked = st.lists(st.sampled_from(QUERIES), min_size=1, max_size=4)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), wave=st.sampled_from([1, 5_000, 2**28]), top_k=st.sampled_from([None, 1, 3]))
def test_each_ranking_is_what_rank_gives(
    short: ColBERT, data: st.DataObject, wave: int, top_k: int | None
) -> None:
    queries = data.draw(asked)
    lists = data.draw(st.lists(texts, min_size=len(queries), max_size=len(queries)))

    with pytest.MonkeyPatch.context() as patch:
        budget(patch, wave)
        found = short.rank_many(queries, lists, top_k=top_k)

    assert len(found) == len(queries)
    assert isinstance(found, Rankings)  # which prints as tables
    for query, own, ranking in zip(queries, lists, found, strict=True):
        assert_same(ranking, short.rank(query, own, top_k=top_k))


def test_one_list_is_ranked_for_every_query(model: ColBERT) -> None:
    given = [*TEXTS, TEXTS[3], "", *WORDLESS]

    found = model.rank_many(QUERIES, given)

    for query, ranking in zip(QUERIES, found, strict=True):
        vectors = model.encode_queries([query])[0]
        scores = [naive_maxsim(vectors, rows) for rows in model.encode_documents(given)]
        assert [place.score for place in sorted(ranking, key=lambda place: place.index)] == (
            pytest.approx(scores, abs=1e-4)
        )
        assert {place.text for place in ranking[-5:]} == set(WORDLESS)
        assert_same(ranking, model.rank(query, given))


def test_what_holds_a_text_is_ranked_and_handed_back(model: ColBERT) -> None:
    items = [{"text": "mars is red", "n": 1}, Document("a", "saturn has rings"), "venus"]

    for ranking in model.rank_many(QUERIES[:2], items):
        assert all(place.item is items[place.index] for place in ranking)
    for ranking, own in zip(
        model.rank_many(QUERIES[:2], [items, tuple(items[:2])]), (items, items[:2]), strict=True
    ):
        assert len(ranking) == len(own)
        assert all(place.item is own[place.index] for place in ranking)


@pytest.mark.parametrize("document_cache", [None, 2000, 2**28])
@pytest.mark.parametrize("wave", [1, 20_000, 2**28])
def test_each_distinct_text_is_encoded_once_whatever_the_cache_holds(
    document_cache: int | None,
    wave: int,
    colbert: Callable[..., ColBERT],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = colbert("stanford-bert", document_cache=document_cache)
    model.unload()
    draw = random.Random(0)
    lists = [draw.choices(TEXTS, k=20) for _ in range(8)]
    queries = [QUERIES[number % 4] for number in range(8)]
    budget(monkeypatch, wave)

    model.rank_many(queries, lists)

    assert model.truncation_info().documents == len(set(itertools.chain(*lists)))
    assert model.truncation_info().queries == 8


def test_each_distinct_window_is_encoded_once(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ColBERT.from_pretrained(
        checkpoint("stanford-bert"),
        device="cpu",
        dtype="float32",
        document_length=20,
        document_cache=None,
        long_documents="windows",
    )
    budget(monkeypatch, 3_000)
    long = " ".join(itertools.islice(itertools.cycle(WORDS), 100))
    lists = [[long, "mars"], ["mars", f"{long} "], [long, long, "venus"]]
    pieces, _ = model._loaded().pieces([long, "mars", f"{long} ", "venus"])

    found = model.rank_many(QUERIES[:3], lists)

    assert model.truncation_info().documents == len(set(pieces))
    assert len(set(pieces)) > 5
    for query, own, ranking in zip(QUERIES, lists, found, strict=False):
        assert_same(ranking, model.rank(query, own))
    assert any(place.span for place in found[0])


def test_what_the_cache_holds_is_not_encoded(model: ColBERT, encoded: Counter[str]) -> None:
    model.cache_documents(TEXTS[:10])
    encoded.clear()

    model.rank_many(QUERIES, TEXTS)

    assert encoded == Counter(TEXTS[10:])
    assert model.cache_info().hits == 10


def test_texts_of_others_stay_in_the_cache(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", dtype="float32")
    model.rank(QUERIES[0], TEXTS[:10])
    held = model.cache_info()
    model._loaded().cache.limit = held.bytes + held.bytes // 2

    model.rank_many(QUERIES, TEXTS)

    info = model.cache_info()
    assert info.evictions == 0
    assert 10 < info.texts < 30
    assert info.bytes <= info.limit
    model.rank(QUERIES[1], TEXTS[:10])
    assert model.cache_info().hits == info.hits + 10


def test_a_wave_holds_no_more_vectors_than_its_budget(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, sizes = model._loaded().text_encoder, []
    encode = encoder.documents

    def weighing(texts: Sequence[str], **options: Any) -> TokenEmbeddings:
        vectors = encode(texts, **options)
        sizes.append(vectors.values.nbytes)
        return vectors

    monkeypatch.setattr(encoder, "documents", weighing)
    budget(monkeypatch, 15_000)

    model.rank_many(QUERIES, TEXTS)

    assert len(sizes) > 2
    assert max(sizes) <= 15_000
    assert sum(sizes) == model.encode_documents(TEXTS).values.nbytes


@pytest.mark.parametrize(
    "name", ["stanford-bert", "stanford-xlm-roberta", "pylate-modernbert", "jina"]
)
def test_no_text_has_more_rows_than_are_reckoned_with(
    name: str, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name)
    given = ["", "a", "行星紅色東京", "c++ 5 €", "🪐🚗", "x" * 40, *TEXTS]

    rows = model.encode_documents(given).lengths.tolist()

    reckoned = map(model._loaded().text_encoder.most_rows, given)
    assert all(own <= most for own, most in zip(rows, reckoned, strict=True))


def test_known_vectors_are_used_and_asked_for_once(model: ColBERT, encoded: Counter[str]) -> None:
    with LocalIndex(":memory:", model) as index:
        index.add(TEXTS[:20])
        encoded.clear()
        asked: Counter[str] = Counter()

        def known(texts: Sequence[str]) -> dict[str, torch.Tensor]:
            asked.update(texts)
            return index.embeddings_for(texts)

        found = model.rank_many(QUERIES, TEXTS, known=known)
        expected = [model.rank(query, TEXTS, known=index.embeddings_for) for query in QUERIES]

    assert asked == Counter(TEXTS)
    assert encoded == Counter(TEXTS[20:])
    for ranking, other in zip(found, expected, strict=True):
        assert_same(ranking, other)


def test_a_ranking_is_told_as_soon_as_its_texts_have_scores(
    model: ColBERT, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(monkeypatch, 1)  # a text at a time
    lists = [["mars", "venus"], [], ["ice", "mars"], ["venus"]]
    told: list[tuple[int, Ranking, set[str]]] = []

    found = model.rank_many(QUERIES, lists, ready=lambda *both: told.append((*both, set(encoded))))

    assert [(place, seen) for place, _, seen in told] == [
        (1, set()),
        (0, {"mars", "venus"}),
        (3, {"mars", "venus"}),
        (2, {"mars", "venus", "ice"}),
    ]
    assert all(ranking is found[place] for place, ranking, _ in told)


def test_nothing_to_rank_loads_nothing(model: ColBERT) -> None:
    model.unload()

    assert model.rank_many([], []) == []
    assert model.rank_many([], ["mars"]) == []
    assert [len(ranking) for ranking in model.rank_many(QUERIES, [])] == [0] * 4
    assert [len(ranking) for ranking in model.rank_many(QUERIES[:2], [[], []])] == [0, 0]
    assert not model.loaded
    empty, full = model.rank_many(QUERIES[:2], [[], ["mars"]])
    assert (empty.query, len(empty), full.query, len(full)) == (QUERIES[0], 0, QUERIES[1], 1)
    assert model.truncation_info().queries == 1


@pytest.mark.parametrize(
    ("queries", "texts", "error", "message"),
    [
        ("mars", ["a"], TypeError, "queries is str, expected a list of queries, such as [query]"),
        ({"q": "mars"}, ["a"], TypeError, "queries is dict"),
        (["mars", " "], ["a"], InvalidQueryError, "queries[1] is empty or blank"),
        (["mars", 3], ["a"], InvalidQueryError, "queries[1] is int"),
        (["mars"], "a text", TypeError, "texts is str, expected a list of texts for all queries"),
        (["mars"], {"text": "a"}, TypeError, "texts is dict"),
        (["mars"], iter(["a"]), TypeError, "texts is list_iterator"),
        (["mars"], ["a", 3], TypeError, "texts[1] is int, expected a string"),
        (["mars"], [["a", 3]], TypeError, "texts[0][1] is int, expected a string"),
        (["mars"], [[["a"]]], TypeError, "texts[0][0] is list, expected a string"),
        (["mars", "ice"], [["a"], "b"], TypeError, "texts[0] is list and texts[1] is str"),
        (["mars", "ice"], ["a", ("b",)], TypeError, "texts[1] is tuple and texts[0] is str"),
        (["mars"], [{"text": "a"}, ["b"]], TypeError, "texts[1] is list and texts[0] is dict"),
        (["mars", "ice"], [["a"]], ValueError, "texts holds 1 lists for 2 queries"),
        (["mars"], [["a"], ["b"]], ValueError, "without a list around it"),
        ([], [["a"]], ValueError, "texts holds 1 lists for 0 queries"),
    ],
)
def test_what_cannot_be_ranked_is_said(
    model: ColBERT, queries: Any, texts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        model.rank_many(queries, texts)


def test_other_arguments_are_refused_as_rank_refuses_them(model: ColBERT) -> None:
    with pytest.raises(TypeError, match=r"top_n is not an argument of rank_many.*top_k"):
        model.rank_many(QUERIES, TEXTS, top_n=3)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="top_k is -1, expected at least 1; leave it out to get all"
    ):
        model.rank_many(QUERIES, TEXTS, top_k=-1)


def test_a_text_without_a_score_comes_last_and_none_at_all_is_an_error(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = scoring.Scorer.documents

    def spoiled(self: scoring.Scorer, texts: list[str], **options: Any) -> TokenEmbeddings:
        vectors = encode(self, texts, **options)
        vectors[texts.index("mars")].fill_(math.nan)
        return vectors

    monkeypatch.setattr(scoring.Scorer, "documents", spoiled)

    with caplog.at_level(logging.WARNING):
        first, second = model.rank_many(QUERIES[:2], [["mars", "venus"], ["ice"]])

    assert [place.text for place in first] == ["venus", "mars"]
    assert [place.text for place in second] == ["ice"]
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 texts have no score and are ranked last"
    ]
    with pytest.raises(ScoringError, match="none of the 1 texts has a score that is a number"):
        model.rank_many(QUERIES[:2], [["mars"], ["venus", "mars"]])


def test_one_progress_bar_counts_the_distinct_texts(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budget(monkeypatch, 50_000)
    model.cache_documents(TEXTS[:4])

    model.rank_many(QUERIES, TEXTS)
    assert capsys.readouterr() == ("", "")

    model.rank_many(QUERIES, [TEXTS, TEXTS[:5], [], TEXTS[5:]], show_progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "30/30" in captured.err
    assert captured.err.count("Ranking documents: 100%") >= 1
    assert "Encoding" not in captured.err


def test_a_place_explains_its_score(model: ColBERT) -> None:
    (ranking, _) = model.rank_many(QUERIES[:2], TEXTS)

    explanation = ranking.explain(1)

    assert explanation.text == ranking[1].text
    assert explanation.score == pytest.approx(ranking[1].score, abs=1e-4)


def test_the_callers_lists_may_change_afterwards(model: ColBERT) -> None:
    given = ["mars", "venus"]
    (ranking,) = model.rank_many(["red planet"], [given])
    given.clear()

    assert list(ranking.texts) == ["mars", "venus"]


@pytest.mark.parametrize("document_cache", [2**24, None])
def test_threads_get_the_same_and_share_what_they_encode_at_once(
    document_cache: int | None, colbert: Callable[..., ColBERT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = colbert("stanford-bert", document_cache=document_cache)
    budget(monkeypatch, 30_000)
    draw = random.Random(1)
    jobs = [[draw.choices(TEXTS, k=15) for _ in QUERIES] for _ in range(6)]
    alone = [model.rank_many(QUERIES, lists) for lists in jobs]
    model.unload()

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda lists: model.rank_many(QUERIES, lists), jobs))

    for found, expected in zip(together, alone, strict=True):
        for ranking, other in zip(found, expected, strict=True):
            assert [place.score for place in ranking] == pytest.approx(
                [place.score for place in other], abs=1e-5
            )


def test_a_call_waits_for_texts_that_another_one_is_encoding(
    model: ColBERT, encoded: Counter[str]
) -> None:
    # Neither has a cache to find them in: only the claim of the other call can serve it.
    model._loaded().cache.limit = 0
    ready = threading.Barrier(2)
    claim = model._loaded().cache.claim

    def claiming(*arguments: Any) -> None:
        claim(*arguments)
        ready.wait(30)

    model._loaded().cache.claim = claiming  # type: ignore[method-assign]

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(model.rank_many, QUERIES, TEXTS) for _ in range(2)]
        first, second = (call.result(60) for call in calls)

    assert encoded == Counter(TEXTS)
    for ranking, other in zip(first, second, strict=True):
        assert_same(ranking, other)


def test_an_interrupt_at_any_line_keeps_nobody_waiting(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {module.__file__ for module in (many, cache, scoring)}
    begun = itertools.count()
    budget(monkeypatch, 1)

    def rank() -> list[Ranking]:
        number = next(begun)
        return model.rank_many(QUERIES[:2], [[f"moon {number}"], [f"rock {number}"]])

    number = 0
    for number, _ in enumerate(at_every_line(rank, files)):
        assert elsewhere(lambda n=number: model.score("rings", [f"moon {n}", f"rock {n}"]))

    assert number > 50
