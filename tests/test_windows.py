"""Long documents: cut into overlapping windows, scored by the best of them."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from colbert_rag import ColBERT
from colbert_rag.windows import find_windows
from tests.helpers.oracle import naive_maxsim

WORDS = "venus jupiter saturn is a planet known for its rings and storms,".split()
LONG = " ".join(itertools.islice(itertools.cycle(WORDS), 400))
OPTIONS = {"document_length": 40, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def truncating(checkpoint: Callable[[str], Path]) -> ColBERT:
    return ColBERT.from_pretrained(checkpoint("stanford-bert"), **OPTIONS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def windowed(checkpoint: Callable[[str], Path]) -> ColBERT:
    return ColBERT.from_pretrained(
        checkpoint("stanford-bert"),
        long_documents="windows",
        **OPTIONS,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["stanford-bert", "pylate-modernbert", "stanford-xlm-roberta"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LONG, id="words"),
        pytest.param("  " + LONG.replace(" ", "\n\n\t "), id="much white space"),
        pytest.param("行星紅色東京" * 60, id="a script without spaces"),
        pytest.param("mars-venus-" * 90, id="one long word"),
        pytest.param("Déjà İstanbul ΟΔΥΣΣΕΥΣ 🪐 " * 40, id="characters that change length"),
    ],
)
def test_windows_cover_the_text_overlap_and_fit(
    name: str, text: str, colbert: Callable[..., ColBERT]
) -> None:
    tokenizer = colbert(name, document_length=40).tokenizer

    [windows] = find_windows(tokenizer, [text])

    batch = tokenizer.documents([text[start:stop] for start, stop in windows])
    assert len(windows) > 1
    assert batch.truncated == 0
    assert text[: windows[0][0]].strip() == "" == text[windows[-1][1] :].strip()
    assert all(
        before[0] < after[0] < before[1] < after[1] for before, after in itertools.pairwise(windows)
    )


@pytest.mark.parametrize(
    "text", ["\U0001f600" * 60, "a" + "\U0001f9d1\u200d\U0001f680" * 20 + " mars"]
)
def test_a_window_is_never_empty_where_one_character_has_several_tokens(
    text: str, colbert: Callable[..., ColBERT]
) -> None:
    tokenizer = colbert("pylate-modernbert", document_length=8).tokenizer

    [windows] = find_windows(tokenizer, [text])

    assert all(start < stop for start, stop in windows)
    assert all(
        before[0] < after[0] <= before[1] < after[1]
        for before, after in itertools.pairwise(windows)
    )
    assert (windows[0][0], windows[-1][1]) == (0, len(text))


@pytest.mark.parametrize("text", ["", "mars", "mars is red"])
def test_a_text_that_fits_is_one_window(windowed: ColBERT, text: str) -> None:
    assert find_windows(windowed.tokenizer, [text]) == [[(0, len(text))]]


def test_words_are_not_cut_in_two(windowed: ColBERT) -> None:
    [windows] = find_windows(windowed.tokenizer, [LONG])

    pieces = [LONG[start:stop].split() for start, stop in windows]

    assert {word for piece in pieces for word in piece} == set(WORDS)


def test_a_sentence_behind_five_thousand_tokens_is_found_and_its_place_reported() -> None:
    # Real weights: a random model knows nothing of meaning.
    sentence = "The harbour of Valparaiso was rebuilt after the earthquake of 1906."
    filler = "The committee discussed the budget for office furniture at great length. " * 420
    text = f"{filler}{sentence} {filler}"
    where = text.index(sentence)
    query = "Which Chilean port was reconstructed following an earthquake?"
    windowed = ColBERT.from_pretrained("offline-minilm", long_documents="windows", device="cpu")
    cutting = ColBERT.from_pretrained("offline-minilm", device="cpu")

    best = windowed.rank(query, [filler, text])[0]
    cut = cutting.rank(query, [filler, text])

    assert len(windowed.tokenizer.starts([text[:where]])[0]) > 5000
    assert best.index == 1
    assert best.span is not None
    assert best.span[0] <= where < where + len(sentence) <= best.span[1]
    # Cut at the document length, the two texts are one and the same.
    assert cut[0].index == 0
    assert cut[0].score == pytest.approx(cut[1].score)


def test_the_score_is_that_of_the_best_window(windowed: ColBERT) -> None:
    query = windowed.encode_queries(["which planet has rings"])[0]
    [windows] = find_windows(windowed.tokenizer, [LONG])
    vectors = windowed.encode_documents([LONG[start:stop] for start, stop in windows])

    scores = windowed.score("which planet has rings", ["mars", LONG, "venus"])

    assert scores[1] == pytest.approx(max(naive_maxsim(query, rows) for rows in vectors), abs=1e-5)


def test_short_texts_score_as_without_windows(windowed: ColBERT, truncating: ColBERT) -> None:
    texts = ["mars is red", "", "venus is hot"]

    ranking = windowed.rank("red mars", texts)

    assert [place.score for place in ranking] == pytest.approx(
        [place.score for place in truncating.rank("red mars", texts)], abs=1e-6
    )
    assert [place.span for place in ranking] == [None] * 3


def test_windows_cut_nothing_and_so_report_nothing(
    windowed: ColBERT, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        windowed.rank("red mars", [LONG])

    assert caplog.records == []


def test_the_cache_serves_windows_too(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT.from_pretrained(
        checkpoint("stanford-bert"),
        long_documents="windows",
        **OPTIONS,  # type: ignore[arg-type]
    )
    first = model.score("red mars", [LONG])
    misses = model.cache_info().misses

    assert model.score("red mars", [LONG]) == first
    assert model.cache_info().misses == misses


def test_random_texts_always_end(windowed: ColBERT) -> None:
    # The step from window to window must go forward whatever the text looks like.
    chance = random.Random(0)
    texts = [
        "".join(chance.choices("ab ,é行\n", weights=[9, 9, chance.random() * 9, 1, 1, 3, 1], k=900))
        for _ in range(50)
    ]

    found = find_windows(windowed.tokenizer, texts)

    assert all(windows[-1][1] == len(text) for text, windows in zip(texts, found, strict=True))


def test_another_word_for_it_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="long_documents is 'split', expected one of truncate"):
        ColBERT.from_pretrained(checkpoint("stanford-bert"), long_documents="split")
