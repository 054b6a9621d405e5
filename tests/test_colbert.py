"""ColBERT: scores, rankings, the cache behind them, and what bad input is told."""

from __future__ import annotations

import collections
import copy
import json
import logging
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from colbert_rag import ColBERT, TokenEmbeddings, scoring
from colbert_rag.encoder import Encoder
from colbert_rag.errors import InvalidQueryError, MetadataError, ScoringError
from colbert_rag.index import Document
from colbert_rag.ranking import Ranking
from colbert_rag.settings import ModelOptions, Settings
from colbert_rag.text_encoder import TruncationInfo
from tests.helpers.oracle import naive_maxsim

QUERY = "which planet is red"
TEXTS = [
    "saturn has rings",
    "mars is the red planet",
    "",
    "venus is hot",
    "mars is the red planet",
]


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> ColBERT:
    """A fresh instance, so that counts and caches start at nothing."""
    return ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", dtype="float32")


def test_a_score_is_the_sum_of_best_similarities(model: ColBERT) -> None:
    query = model.encode_queries([QUERY])[0]
    documents = model.encode_documents(TEXTS)

    scores = model.score(QUERY, TEXTS)

    expected = [naive_maxsim(query, document) for document in documents]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert all(type(score) is float for score in scores)


def test_ranking_orders_scores_and_ties_keep_the_input_order(model: ColBERT) -> None:
    scores = model.score(QUERY, TEXTS)

    ranking = model.rank(QUERY, TEXTS)

    assert [place.index for place in ranking] == sorted(range(5), key=lambda i: -scores[i])
    assert [place.score for place in ranking] == sorted(scores, reverse=True)
    order = [place.index for place in ranking]
    assert order.index(4) == order.index(1) + 1
    assert ranking.query_rows == len(model.encode_queries([QUERY])[0])


@pytest.mark.parametrize(
    ("top_k", "places"), [(None, 5), (1, 1), (2, 2), (np.int64(2), 2), (5, 5), (99, 5)]
)
def test_top_k_limits_the_places(model: ColBERT, top_k: int | None, places: int) -> None:
    assert len(model.rank(QUERY, TEXTS, top_k=top_k)) == places


def test_the_class_itself_says_how_a_checkpoint_is_opened() -> None:
    with pytest.raises(TypeError, match=r"'offline-minilm'.*ColBERT\.from_pretrained"):
        ColBERT("offline-minilm")  # type: ignore[arg-type]


def test_a_ranking_keeps_the_texts_it_ranked_when_the_list_changes(model: ColBERT) -> None:
    texts = list(TEXTS)
    ranking = model.rank(QUERY, texts)
    before = ranking.explain(0).text, repr(ranking)

    texts.clear()

    assert (ranking.explain(0).text, repr(ranking)) == before


@pytest.mark.parametrize("encode", ["encode_queries", "encode_documents"])
def test_any_sequence_of_texts_is_encoded(model: ColBERT, encode: str) -> None:
    texts = ["mars", "venus is hot"]

    found = getattr(model, encode)(collections.deque(texts))

    assert found.values.equal(getattr(model, encode)(texts).values)


@pytest.mark.parametrize(
    ("top_k", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_an_impossible_top_k_is_refused(
    model: ColBERT, top_k: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"top_k is {top_k}"):
        model.rank(QUERY, TEXTS, top_k=top_k)  # type: ignore[arg-type]


def test_whoever_asks_for_no_places_is_told_how_to_get_all(model: ColBERT) -> None:
    with pytest.raises(
        ValueError, match="top_k is 0, expected at least 1; leave it out to get all"
    ):
        model.rank(QUERY, TEXTS, top_k=0)


def test_of_no_texts_none_is_all(model: ColBERT) -> None:
    """So that `top_k=min(5, len(texts))` needs no exception."""
    assert len(model.rank(QUERY, [], top_k=0)) == 0
    assert [len(each) for each in model.rank_many([QUERY, QUERY], [[], []], top_k=0)] == [0, 0]


def test_ranking_nothing_loads_nothing(model: ColBERT) -> None:
    model.unload()

    assert len(model.rank(QUERY, [])) == 0
    assert model.score(QUERY, []) == []
    assert not model.loaded


@pytest.mark.parametrize("query", ["", "  \n", None, 7, ["red"]])
def test_a_query_without_words_is_refused(model: ColBERT, query: object) -> None:
    with pytest.raises(InvalidQueryError, match="query is"):
        model.rank(query, TEXTS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        pytest.param("mars", "texts is str, expected a list", id="one string"),
        pytest.param(None, "texts is NoneType", id="none"),
        pytest.param(["mars", None], r"texts\[1\] is NoneType", id="none inside"),
        pytest.param([b"mars"], r"texts\[0\] is bytes", id="bytes inside"),
    ],
)
def test_texts_that_are_no_list_of_strings_are_refused(
    model: ColBERT, texts: object, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        model.rank(QUERY, texts)  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_replaced_not_fatal(model: ColBERT) -> None:
    found = model.score(QUERY, ["mars \ud83d red", "mars ? red"])

    assert found[0] == found[1]


def test_equal_texts_are_encoded_once(model: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = Encoder.encode

    def counting(self: object, batch: object, **options: object) -> TokenEmbeddings:
        encoded.append(len(batch))  # type: ignore[arg-type]
        return encode(self, batch, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "encode", counting)
    model.rank(QUERY, TEXTS)
    model.rank("another query", [*reversed(TEXTS), "something new"])

    # One query each time; four distinct texts first, then only the new one.
    assert encoded == [1, 4, 1, 1]


def test_the_cache_changes_no_score(model: ColBERT, checkpoint: Callable[[str], Path]) -> None:
    bare = ColBERT.from_pretrained(
        checkpoint("stanford-bert"), device="cpu", dtype="float32", document_cache=None
    )
    expected = bare.score(QUERY, TEXTS)

    cold, warm = model.score(QUERY, TEXTS), model.score(QUERY, TEXTS)

    assert cold == pytest.approx(expected, abs=1e-6)
    assert warm == cold
    assert (model.cache_info().hits, model.cache_info().misses) == (4, 4)
    assert bare.cache_info().limit == 0


def test_warming_encodes_ahead_of_the_first_query(model: ColBERT) -> None:
    model.cache_documents(TEXTS)
    model.rank(QUERY, TEXTS)

    assert model.cache_info().hits == 4


def test_warming_without_a_cache_is_refused(checkpoint: Callable[[str], Path]) -> None:
    bare = ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", document_cache=0)

    with pytest.raises(ValueError, match="nothing is kept"):
        bare.cache_documents(TEXTS)


def test_windows_of_texts_join_in_order(model: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.encode_documents(TEXTS)

    monkeypatch.setattr(model._loaded().text_encoder, "stretch", 2)
    found = model.encode_documents(TEXTS)

    assert found.offsets.tolist() == expected.offsets.tolist()
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-6)


def test_a_progress_bar_is_drawn_only_on_request(
    model: ColBERT, capsys: pytest.CaptureFixture[str]
) -> None:
    model.encode_documents(TEXTS)
    assert capsys.readouterr() == ("", "")

    model.encode_documents(TEXTS, show_progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "5/5" in captured.err


def test_cut_texts_are_reported_once(model: ColBERT, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(["mars"] * 1000)

    with caplog.at_level(logging.WARNING):
        model.rank(QUERY, [long, "mars"])
        model.rank(QUERY, [long + " again", "mars"])

    assert [record.getMessage() for record in caplog.records] == [
        f"1 of 2 texts are longer than document_length={model.checkpoint.recipe.document.length} "
        "tokens and were cut; later ones are only counted, by truncation_info()"
    ]


def test_what_was_cut_is_counted_over_all_calls(model: ColBERT) -> None:
    long = " ".join(["mars"] * 1000)
    assert model.truncation_info() == TruncationInfo()

    model.rank(QUERY, [long, "mars"])
    model.encode_documents([long, long + " again", "venus"])
    model.encode_queries([long])

    assert model.truncation_info() == TruncationInfo(
        queries=2, queries_cut=1, documents=5, documents_cut=3
    )


def test_a_call_of_several_stretches_reports_its_total(
    model: ColBERT, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model._loaded().text_encoder, "stretch", 2)

    with caplog.at_level(logging.WARNING):
        model.encode_documents([" ".join(["mars"] * 1000), "venus"] * 3)

    (record,) = caplog.records
    assert record.getMessage().startswith("3 of 6 texts are longer than document_length=")


def test_what_holds_a_text_is_ranked_as_its_text(model: ColBERT) -> None:
    given = [{"text": TEXTS[0], "page": 7}, Document("m", TEXTS[1]), TEXTS[3]]

    ranking = model.rank(QUERY, given)

    plain = model.rank(QUERY, [TEXTS[0], TEXTS[1], TEXTS[3]])
    assert [(place.index, place.score, place.text) for place in ranking] == [
        (place.index, place.score, place.text) for place in plain
    ]
    assert all(place.item is given[place.index] for place in ranking)
    assert model.score(QUERY, given) == model.score(QUERY, [TEXTS[0], TEXTS[1], TEXTS[3]])


def test_a_text_of_another_type_is_named_as_the_fault(model: ColBERT) -> None:
    with pytest.raises(TypeError, match=r"texts\[0\] is a mapping whose text is NoneType"):
        model.rank(QUERY, [{"text": None}])


def test_what_holds_no_text_is_refused_with_its_keys(model: ColBERT) -> None:
    message = (
        "texts[1] is a mapping with the keys 'body', expected a string, or something with a text: "
        "a mapping with the key 'text', or an object with the attribute text"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        model.rank(QUERY, ["mars", {"body": "mars"}])


@pytest.mark.parametrize("call", ["rank", "score"])
def test_texts_in_front_of_the_query_are_told_the_order(model: ColBERT, call: str) -> None:
    with pytest.raises(InvalidQueryError, match="the other way round: the query comes first"):
        getattr(model, call)(TEXTS, QUERY)


@pytest.mark.parametrize("text", [["mars"], {"text": "mars"}, SimpleNamespace(text="mars")])
def test_a_text_in_front_of_the_query_is_told_the_order(model: ColBERT, text: object) -> None:
    message = (
        f"query is {type(text).__name__} and text is a string, expected them the other way round: "
        "the query comes first, then the text"
    )
    with pytest.raises(InvalidQueryError, match=message):
        model.explain(text, QUERY)  # type: ignore[arg-type]
    with pytest.raises(InvalidQueryError, match="query is NoneType, expected a string"):
        model.explain(None, QUERY)  # type: ignore[arg-type]


def test_a_document_of_langchain_is_told_where_its_text_is(model: ColBERT) -> None:
    document = SimpleNamespace(page_content="mars", metadata={})

    with pytest.raises(TypeError, match=r"texts\[0\] is .* give the page_content, or give doc"):
        model.rank(QUERY, [document])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_n": 1}, "top_n is not an argument of rank; did you mean top_k?"),
        ({"k": 1}, "k is not an argument of rank; did you mean top_k?"),
        ({"show_progres": True}, "did you mean show_progress?"),
        ({"colour": 1}, "expected one of top_k, known, show_progress"),
    ],
)
def test_an_argument_that_rank_does_not_have_is_refused_with_its_name_here(
    model: ColBERT, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        model.rank(QUERY, TEXTS, **wrong)


def test_places_count_from_one_and_say_the_mean(model: ColBERT) -> None:
    ranking = model.rank(QUERY, TEXTS, top_k=3)

    assert [place.rank for place in ranking] == [1, 2, 3]
    rows = len(model.encode_queries([QUERY])[0])
    assert [place.mean for place in ranking] == pytest.approx(
        [place.score / rows for place in ranking]
    )
    assert [place.text for place in ranking] == [TEXTS[place.index] for place in ranking]


def test_a_ranking_becomes_plain_values_and_a_table(model: ColBERT) -> None:
    pandas = pytest.importorskip("pandas")
    ranking = model.rank(QUERY, TEXTS)

    record = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    table = ranking.to_pandas()

    assert record["query"] == QUERY
    assert [place["index"] for place in record["ranked"]] == [place.index for place in ranking]
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == ["rank", "index", "score", "mean", "text"]
    assert table["score"].tolist() == [place["score"] for place in record["ranked"]]


def test_a_score_that_is_no_number_is_none_in_plain_values() -> None:
    ranking = Ranking.from_scores([math.nan, 1.0], query="q", texts=["a", "b"], query_rows=2)

    json.dumps(ranking.to_dict(), allow_nan=False)
    assert ranking[1].to_dict()["score"] is None


def test_settings_and_options_name_the_same_choices() -> None:
    assert {*ModelOptions.__annotations__} == {f.name for f in fields(Settings)} - {"checkpoint"}


def test_an_unknown_option_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match="did you mean document_length"):
        ColBERT.from_pretrained("offline-minilm", document_lenght=3)  # type: ignore[call-arg]


def test_a_pickle_asks_for_what_was_asked_for(checkpoint: Callable[[str], Path]) -> None:
    colbert = ColBERT(Settings.normalised(checkpoint("stanford-bert"), token="secret"))

    _, (asked, _) = colbert.__reduce__()

    assert (asked.device, asked.dtype, asked.token) == (None, "auto", None)


def with_broken_rows(monkeypatch: pytest.MonkeyPatch, *broken: int) -> None:
    """As if the arithmetic of some documents had overflowed."""
    encode = scoring.Scorer.documents

    def spoiled(self: scoring.Scorer, texts: list[str], **options: bool) -> TokenEmbeddings:
        embeddings = encode(self, texts, **options)
        for index in broken:
            embeddings[index].fill_(math.nan)
        return embeddings

    monkeypatch.setattr(scoring.Scorer, "documents", spoiled)


def test_a_text_without_a_score_comes_last_with_one_warning(
    model: ColBERT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_broken_rows(monkeypatch, 0, 1)

    with caplog.at_level(logging.WARNING):
        ranking = model.rank(QUERY, ["mars", "venus", "saturn", "jupiter"])

    assert {place.index for place in ranking[:2]} == {2, 3}
    assert [place.index for place in ranking[2:]] == [0, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 texts have no score and are ranked last"
    ]


def test_no_score_at_all_is_an_error(model: ColBERT, monkeypatch: pytest.MonkeyPatch) -> None:
    with_broken_rows(monkeypatch, 0, 1)

    with pytest.raises(ScoringError, match=r"none of the 2 texts .* Try dtype='float32'"):
        model.rank(QUERY, ["mars", "venus"])


def test_unloading_gives_back_memory_and_the_next_call_loads_again(model: ColBERT) -> None:
    before = model.score(QUERY, TEXTS)

    model.unload()

    assert not model.loaded
    assert model.cache_info().texts == 0
    assert model.score(QUERY, TEXTS) == before
    assert model.loaded


def test_copies_are_the_same_instance(model: ColBERT) -> None:
    assert copy.copy(model) is model
    assert copy.deepcopy({"model": model})["model"] is model
    assert pickle.loads(pickle.dumps(model)) is model


def test_a_pickle_holds_neither_weights_nor_token(checkpoint: Callable[[str], Path]) -> None:
    model = ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", token="secret")

    pickled = pickle.dumps(model)

    assert len(pickled) < 2000
    assert b"secret" not in pickled


def test_another_process_opens_the_pickled_model_again(model: ColBERT, tmp_path: Path) -> None:
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    script = (
        "import pickle, sys\n"
        "model = pickle.load(open(sys.argv[1], 'rb'))\n"
        "sys.stdout.write(repr(model.score(sys.argv[2], [sys.argv[3]])[0]))\n"
    )

    found = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model.pickle", QUERY, TEXTS[1]],
        capture_output=True,
        text=True,
        check=True,
    )

    assert float(found.stdout) == pytest.approx(model.score(QUERY, TEXTS)[1], abs=1e-5)


def test_lengths_beyond_the_backbone_are_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(MetadataError, match="document_length is 5000, but the backbone has"):
        ColBERT.from_pretrained(checkpoint("stanford-bert"), document_length=5000)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        pytest.param({"query_expansion": False}, 7, id="no expansion"),
        pytest.param({"query_length": 10}, 10, id="another length"),
        pytest.param({"query_expansion": False, "query_marker": ""}, 6, id="no marker"),
    ],
)
def test_the_caller_may_override_the_recipe(
    colbert: Callable[..., ColBERT], options: dict[str, object], ids: int
) -> None:
    # [CLS] [marker] which planet is red [SEP]
    assert colbert("stanford-bert", **options).tokenizer.queries([QUERY]).lengths.tolist() == [ids]


def test_attending_to_expansion_that_is_off_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(MetadataError, match="does not expand queries"):
        ColBERT.from_pretrained(
            checkpoint("stanford-bert"), query_expansion=False, attend_to_expansion=True
        )


def test_half_precision_scores_stay_close(checkpoint: Callable[[str], Path]) -> None:
    exact = ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", dtype="float32")
    rough = ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", dtype="bfloat16")

    assert rough.encode_documents(TEXTS).dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: 0.4 % of a sum of similarities at most 1.
    assert rough.score(QUERY, TEXTS) == pytest.approx(exact.score(QUERY, TEXTS), rel=0.02, abs=0.1)


def test_fingerprints_tell_models_and_recipes_apart(colbert: Callable[..., ColBERT]) -> None:
    models = [
        colbert("stanford-bert"),
        colbert("stanford-bert-other-seed"),
        colbert("stanford-bert", document_length=50),
        colbert("stanford-bert", query_expansion=False),
    ]

    assert len({model.fingerprint for model in models}) == 4


def test_a_copied_checkpoint_has_the_same_fingerprint(
    model: ColBERT, copy_of: Callable[[str], Path]
) -> None:
    moved = ColBERT.from_pretrained(copy_of("stanford-bert"), device="cpu", dtype="float32")

    assert moved.fingerprint == model.fingerprint


def test_printing_says_what_and_where(model: ColBERT) -> None:
    assert repr(model).startswith("ColBERT(")
    assert "device='cpu', dtype='float32', loaded)" in repr(model)
