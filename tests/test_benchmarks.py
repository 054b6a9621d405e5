"""The benchmarks' own arithmetic, on known numbers, and that every job runs at toy size."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import BertConfig, ModernBertConfig

from benchmarks import (
    checkpoints,
    codings,
    cold_start,
    corpora,
    efforts,
    encode,
    explain,
    gpu,
    growth,
    index,
    many,
    maxsim,
    peers,
    quality,
    report,
    rerank,
    roofline,
    serve,
    soak,
    soak_truth,
    soak_writers,
    stores,
)
from benchmarks.__main__ import NO_GPU, main
from benchmarks.figures import Bar, Figure
from benchmarks.quality import KEYS, Quality, judge
from benchmarks.rankers import Rankings, late_interaction, mean_pooled
from benchmarks.report import Plan, Table, figures, write
from benchmarks.timing import Repetition, Timing, interleave
from colbert_rag import TokenEmbeddings
from colbert_rag.index import Document, Hit
from colbert_rag.index.local.level import effort
from colbert_rag.text_encoder import TextEncoder
from tests.helpers.index_levels import topics

needs_a_fork_server = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no fork server, and no signals to send"
)

TOY = Plan(threads=1, repeats=1, quick=True, checkpoint="tiny")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The benchmarks' smallest checkpoint, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "CACHE", tmp_path_factory.mktemp("benchmarks"))
        yield checkpoints.build("tiny")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine without the collections."""
    monkeypatch.setattr(corpora, "DATA", tmp_path)
    corpora._paragraphs.cache_clear()
    yield
    corpora._paragraphs.cache_clear()


def timing(*repetitions: tuple[float, float, float | None]) -> Timing:
    return Timing(tuple(Repetition(*values) for values in repetitions))


# Timing


def test_a_repetition_that_lost_cpu_time_does_not_count():
    measured = timing((1.0, 2.0, 0.0), (9.0, 1.0, 0.0), (3.0, 2.0, 0.0), (2.0, 1.96, 0.0))

    assert measured.seconds == 2.0
    assert measured.best == 1.0
    assert measured.disturbed == "1 of 4"


def test_a_repetition_beside_other_processes_does_not_count():
    measured = timing((1.0, 1.0, 0.01), (2.0, 1.0, None), (3.0, 1.0, 0.02), (9.0, 1.0, 0.5))

    assert measured.seconds == 2.0
    assert measured.disturbed == "1 of 4"


def test_too_few_undisturbed_repetitions_keep_all_and_say_so():
    measured = timing((1.0, 2.0, 0.0), (5.0, 1.0, 0.0), (6.0, 1.0, 0.0), (7.0, 1.0, 0.0))

    assert measured.seconds == 5.5
    assert measured.disturbed == "3 of 4 (kept)"


def test_cpu_time_does_not_judge_work_on_an_accelerator():
    repetitions = (Repetition(1.0, 2.0, 0.0), Repetition(2.0, 0.1, 1.0))

    assert Timing(repetitions, on_device=True).disturbed == "0 of 2"


def test_jobs_take_turns():
    calls: list[str] = []
    jobs = {name: lambda name=name: calls.append(name) for name in "AB"}

    timings = interleave(jobs, repeats=3, least_seconds=0)

    assert "".join(calls) == "ABABAB"
    assert [len(timings[name].repetitions) for name in "AB"] == [3, 3]


def test_a_short_job_is_repeated_and_its_time_is_that_of_one_call():
    calls: list[int] = []

    (measured,) = interleave({"job": lambda: calls.append(0)}, repeats=1, least_seconds=0.05)[
        "job"
    ].repetitions

    assert len(calls) > 10
    assert measured.seconds == pytest.approx(0.05 / len(calls), rel=0.5)


# Quality


def test_ndcg_of_the_example_in_the_literature():
    # Grades 3, 2, 3, 0, 1, 2 in this order: DCG 6.861, ideal 7.141
    # (https://en.wikipedia.org/wiki/Discounted_cumulative_gain, before its seventh document).
    grades = dict(zip("abcdef", (3, 2, 3, 0, 1, 2), strict=True))

    assert judge({"q": list("abcdef")}, {"q": grades}).ndcg == pytest.approx(
        6.861 / 7.141, abs=1e-4
    )


def test_ndcg_looks_at_ten_places_of_the_run_and_of_the_ideal():
    relevant = {"full": dict.fromkeys("abcdefghijkl", 1), "late": {"a": 1}}
    run = {"full": list("abcdefghij"), "late": [*"bcdefghijk", "a"]}

    assert judge(run, relevant).ndcgs == pytest.approx((1.0, 0.0))


def test_recall_counts_relevant_documents_among_the_first_hundred():
    others = [f"x{number}" for number in range(100)]
    relevant = {"found": {"a": 1, "b": 2, "c": 1, "x": 0}, "late": {"a": 1}}
    run = {"found": ["a", "x", "b"], "late": [*others, "a"]}

    assert judge(run, relevant).recalls == pytest.approx((2 / 3, 0.0))


def test_a_query_without_results_is_a_miss_and_the_order_is_that_of_the_run():
    measured = judge({"q2": [], "q1": ["b", "a"]}, {"q1": {"a": 1}, "q2": {"a": 1}})

    # Second place: 1 / log2(3).
    assert measured.ndcgs == pytest.approx((0.0, 0.6309), abs=1e-4)
    assert measured.recalls == (0.0, 1.0)


def test_the_gain_over_another_run_comes_with_its_standard_error():
    better, worse = Quality((0.5, 0.9), (1.0, 1.0)), Quality((0.4, 0.4), (1.0, 1.0))

    # Differences 0.1 and 0.5: mean 0.3, standard deviation 0.2828, over the root of 2.
    assert better.gain(worse) == "+0.3000 ± 0.2000"


# BM25 found both documents for the first query, in the wrong order, and none for the second.
SMALL = corpora.Collection(
    documents={"rain": "Rain falls from clouds.", "bread": "Bread is baked in an oven."},
    queries={"q1": "How is bread baked?", "q2": "Where does rain come from?"},
    judgements={"q1": {"bread": 1}, "q2": {"rain": 1}},
    candidates={"q1": ["rain", "bread"]},
)
SMALL_RANKINGS = Rankings(
    reranked={"q1": ["bread", "rain"], "q2": []},
    retrieved={"q1": ["bread", "rain"], "q2": ["rain", "bread"]},
)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every document that is encoded while the test runs."""
    seen: list[str] = []
    documents = TextEncoder.documents

    def watched(self: TextEncoder, texts: list[str], **options: bool):
        seen.extend(texts)
        return documents(self, texts, **options)

    monkeypatch.setattr(TextEncoder, "documents", watched)
    return seen


def test_late_interaction_reranks_and_retrieves_from_one_encoding(encoded: list[str]):
    assert late_interaction(SMALL, ["q1", "q2"], "float32") == SMALL_RANKINGS
    assert encoded == list(SMALL.documents.values())


def test_the_mean_pooled_model_ranks_the_same_documents():
    assert mean_pooled(SMALL, ["q1", "q2"]) == SMALL_RANKINGS


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, no_data: None):
    """A machine with one collection, which is `SMALL`."""
    (corpora.DATA / "small").mkdir()
    monkeypatch.setattr(corpora, "collection", lambda name: SMALL)


def test_quality_compares_both_models_on_the_candidates_and_on_the_corpus(
    monkeypatch: pytest.MonkeyPatch, small: None
):
    monkeypatch.setattr(quality, "resolve_dtype", lambda dtype, device: "float32")

    table, missing = quality.run(Plan(1, quick=True, collections=("small", "other")))

    assert [(row["ranking"], row["of"]) for row in table.rows] == list(KEYS)
    measured = " ".join(str(row["nDCG@10"]) for row in table.rows)
    assert measured == "0.3155 0.5000 1.0000 0.5000 1.0000"
    assert table.rows[4]["against BM25"] == "+0.6845 ± 0.3155"
    assert table.rows[4]["against mean-pooled"] == "+0.0000 ± 0.0000"
    assert not missing.rows
    assert "not found" in missing.notes[0]


def test_codings_compares_them_on_the_corpus_and_keeps_what_was_encoded(
    monkeypatch: pytest.MonkeyPatch, small: None, tmp_path: Path
):
    monkeypatch.setattr(codings, "KEPT", str(tmp_path))

    table, missing = codings.run(Plan(1, repeats=1, quick=True, collections=("small", "other")))

    columns = ("vectors", "bytes a token", "nDCG@10", "R@10")
    assert [tuple(row[column] for column in columns) for row in table.rows] == [
        ("float16", 768, "1.0000", "1.0000"),
        ("int8", 385, "1.0000", "1.0000"),
        ("int4", 204, "1.0000", "1.0000"),
    ]
    assert "not found" in missing.notes[0]
    monkeypatch.setattr(TextEncoder, "documents", lambda *_: pytest.fail("encoded again"))
    (again,) = codings.run(Plan(1, repeats=1, quick=True, collections=("small",)))
    assert [row["nDCG@10"] for row in again.rows] == ["1.0000"] * 3


def test_places_that_a_coding_keeps_are_counted():
    base = {"q": ["a", "b", "c", "d"], "r": ["a", "b"]}

    assert codings.kept({"q": ["b", "a", "x", "c"], "r": ["a", "x"]}, base, 2) == 0.75


def test_efforts_are_compared_with_the_exact_search(
    monkeypatch: pytest.MonkeyPatch, small: None, tmp_path: Path
):
    monkeypatch.setattr(codings, "KEPT", str(tmp_path))

    table, building = efforts.run(Plan(1, quick=True, collections=("small",)))

    # With so few documents every effort scores all of them.
    columns = ("R@10", "R@100", "nDCG@10 of exact", "R@10, 50 %")
    exact, *others = table.rows
    assert [tuple(row[column] for column in columns) for row in others] == [("1.0000",) * 4] * 5
    assert {row["by"] for row in others} == {"exact search"}
    assert (exact["effort"], exact["R@10"]) == ("exact", "1.0000")
    (row,) = building.rows
    level, tokens = float(str(row["level CPU s"])), int(str(row["tokens"]))
    encoding = tokens / int(str(row["encoded, tokens/CPU s"]))
    assert float(str(row["encoding CPU s"])) == pytest.approx(encoding, abs=0.06)
    share = float(str(row["level of encoding"]).rstrip("%")) / 100
    assert share == pytest.approx(level / encoding, rel=0.1)


def test_efforts_are_compared_before_and_after_a_level_knows_what_was_added(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(effort, "_WORTH", 0)
    own, other = (_judged(name, seed) for seed, name in enumerate(("own", "other")))

    table = efforts.drifted("own", own, "other", other)

    assert table.title == "400 documents of own, then 40 of other"
    assert [row["when"] for row in table.rows] == ["behind"] * 5 + ["after"] * 5
    assert [row["R@10, queries of other"] for row in table.rows[:5]] == ["1.0000"] * 5
    assert min(float(str(row["R@10, queries of own"])) for row in table.rows) > 0.9


def _judged(name: str, seed: int) -> efforts.Judged:
    vectors = topics(400, rows=6, seed=seed)
    documents = [Document(f"{name}/{at}", f"{name} {at}") for at in range(400)]
    queries = [f"{name}/q{at}" for at in range(5)]
    return efforts.Judged(documents, vectors, queries, vectors[:5].to(dtype=torch.float32), {})


def test_quality_says_what_the_default_dtype_changes(monkeypatch: pytest.MonkeyPatch, small: None):
    monkeypatch.setattr(quality, "resolve_dtype", lambda dtype, device: "bfloat16")

    table, types = quality.run(Plan(1, quick=True, collections=("small",)))

    assert [row["ranking"] for row in table.rows[5:]] == ["offline-minilm bfloat16"] * 2
    assert table.notes[0] == (
        "bfloat16 changes nDCG@10 by +0.0000 reranked and +0.0000 retrieved, within 0.002."
    )
    assert [row["of"] for row in types.rows] == ["BM25's top 100", "whole corpus"]
    assert types.rows[0] == {
        "collection": "small",
        "queries": 2,
        "of": "BM25's top 100",
        "float32": "0.5000",
        "bfloat16": "0.5000",
        "difference": "+0.0000",
        "queries that changed": 0,
        "within 0.002": "yes",
    }


def test_quality_of_a_named_dtype_asks_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch, small: None
):
    table, types = quality.run(Plan(1, quick=True, collections=("small",), dtype="bfloat16"))

    assert not any("mean-pooled" in str(row["ranking"]) for row in table.rows)
    assert len(types.rows) == 2


def test_quality_at_a_depth_encodes_no_other_document(small: None, encoded: list[str]):
    table, types = quality.run(
        Plan(1, quick=True, collections=("small",), dtype="bfloat16", depth=1)
    )

    # BM25's first for q1 is wrong, and it has none for q2.
    assert encoded == [SMALL.documents["rain"]] * 2
    assert [row["of"] for row in table.rows] == ["BM25's top 1"] * 3
    assert [(row["of"], row["float32"]) for row in types.rows] == [("BM25's top 1", "0.0000")]


def test_a_part_of_the_collections_does_not_take_the_place_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, small: None, tmp_path: Path
):
    monkeypatch.setattr(quality, "resolve_dtype", lambda dtype, device: "float32")

    main(["quality", "--collections", "small", "--dtype", "bfloat16", "--out", str(tmp_path)])

    assert (tmp_path / "quality-small-bfloat16.md").exists()
    assert not (tmp_path / "quality.md").exists()


# Texts


def test_texts_have_the_stated_lengths(tiny: Path, no_data: None):
    texts = corpora.documents(600, checkpoints.open_tokenizer(tiny))
    lengths = checkpoints.lengths(texts, tiny)

    assert len(set(texts)) == 600
    assert 140 <= sum(lengths) / 600 <= 158
    assert sorted(lengths)[300] == pytest.approx(125, abs=8)
    assert max(lengths) <= checkpoints.DOCUMENT_LENGTH
    assert corpora.source() == "docstrings of Python's library"


def test_texts_can_be_cut_to_one_length(tiny: Path, no_data: None):
    texts = corpora.cut([64] * 50, checkpoints.open_tokenizer(tiny))

    assert all(abs(length - 64) <= 6 for length in checkpoints.lengths(texts, tiny))


def test_a_collection_joins_title_and_text_and_keeps_the_order_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "T", "text": "x"}\n{"_id": "d2", "title": "", "text": "y"}\n'
    )
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "what"}\n')
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td2\t1\n")
    (folder / "bm25.top100.trec").write_text("q Q0 d1 2 1.0 bm25s\nq Q0 d2 1 2.0 bm25s\n")
    monkeypatch.setattr(corpora, "DATA", tmp_path)

    found = corpora.collection("small")

    assert found.documents == {"d1": "T x", "d2": "y"}
    assert found.judgements == {"q": {"d2": 1}}
    assert found.candidates == {"q": ["d2", "d1"]}


# Work


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        # 169.9 linear + 6.6 attention + 0.2 projection, and 220.6 + 10.0 + 0.2, in millions.
        pytest.param(BertConfig(), "bert-base", 176.7e6, id="bert-base"),
        pytest.param(ModernBertConfig(), "modernbert-base", 230.8e6, id="modernbert-base"),
    ],
)
def test_work_per_token_at_180_tokens(
    config: BertConfig | ModernBertConfig, name: str, expected: float, tmp_path: Path
):
    folder = tmp_path / f"{name}-1-random"
    config.save_pretrained(folder)

    work = roofline.encoding_work(folder, [180, 180])

    assert work / 360 == pytest.approx(expected, rel=1e-3)


# Agreement


def test_scores_that_follow_another_rule_are_found_out():
    exact = [10.0, 9.0, 8.0, 7.0]

    assert peers.agreement([10.0004, 9.0, 8.0, 7.0], exact, "float32").same
    assert not peers.agreement([10.01, 9.0, 8.0, 7.0], exact, "float32").same
    reversed_scores = peers.agreement(exact[::-1], exact, "float32")
    assert reversed_scores.spearman == pytest.approx(-1.0)
    assert reversed_scores.difference == pytest.approx(3.0)


def test_a_peer_with_other_scores_gets_no_ratio():
    table = Table("rerank", "job")

    table.timed("other", timing((1.0, 1.0, 0.0)), None, {})

    assert "| other | 1.00 | 1.00 | - |" in table.markdown()


# Storing and searching


def test_passages_have_the_stated_lengths_texts_and_vectors():
    batches = list(index.passages(600))
    documents = [document for some, _ in batches for document in some]
    vectors = TokenEmbeddings.cat([some for _, some in batches])

    assert [document.id for document in documents] == [str(number) for number in range(600)]
    assert 140 <= len(vectors.values) / 600 <= 158
    characters = sum(len(document.text) for document in documents)
    assert characters / len(vectors.values) == pytest.approx(index.CHARACTERS, rel=0.01)
    assert (vectors.values.float().norm(dim=1) - 1).abs().max() < 1e-3
    assert torch.equal(next(index.passages(600))[1].values, batches[0][1].values)


def test_the_true_scores_follow_the_definition():
    vectors = TokenEmbeddings.from_list([torch.randn(rows, 96).half() for rows in (3, 1, 7)])
    asked = index.questions()[:2]

    found = index.reference(asked, vectors)

    assert found[1, 2] == pytest.approx(
        sum(max(float(row.double() @ other.double()) for other in vectors[2]) for row in asked[1])
    )
    assert found.shape == (2, 3)


TRUE = torch.arange(40, dtype=torch.float64).flip(0)[None]  # document 0 scores 39, and so on


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param([(str(at), 39.0 - at) for at in range(10)], (10, 0, True), id="exact"),
        pytest.param([(str(at), 39.001 - at) for at in range(10)], (10, 0.001, True), id="rounded"),
        pytest.param(
            [(str(at), 39.1 - at) for at in range(10)], (10, 0.1, False), id="wrong scores"
        ),
        pytest.param(
            [(str(at), 39.0 - at) for at in range(1, 11)], (9, 0, False), id="the best is missing"
        ),
        pytest.param([(str(at), 39.0 - at) for at in range(9)], (9, 0, False), id="one too few"),
    ],
)
def test_wrong_answers_of_a_store_are_found_out(answer, expected):
    right, error, same = index.compare(lambda query: answer, index.questions()[:1], TRUE)

    assert (right, pytest.approx(error, abs=1e-9), same) == expected


def test_an_engine_is_left_out_where_it_is_too_slow_or_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "installed", lambda package: None if "edge" in package else "1.0")

    found, notes = index.runnable(10_000)

    assert list(found) == ["LocalIndex, file", "LocalIndex, in memory"]
    assert [note.split(":")[0] for note in notes] == ["Left out"] * 2


def test_vectors_agree_by_their_direction_and_their_length():
    noise = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    reference = torch.nn.functional.normalize(noise, dim=1)
    # As a peer does that normalises in bfloat16: too short, and pointing the same way.
    rounded = (reference * 0.995).bfloat16().float()

    assert encode.least_cosine(rounded, reference) > 0.9999
    assert encode.least_cosine(reference * 0.98, reference) == -1.0
    assert encode.least_cosine(reference[:-1], reference) == -1.0
    turned = reference[:, [1, 0, *range(2, 16)]]
    expected = min(a @ b / (a.norm() * b.norm()) for a, b in zip(turned, reference, strict=True))
    assert encode.least_cosine(turned, reference) == pytest.approx(float(expected), abs=1e-6)


# All jobs, at toy size


@pytest.mark.slow
@pytest.mark.parametrize("job", [encode, rerank, growth], ids=lambda job: job.__name__)
def test_a_job_measures_us_and_our_peer_with_equal_scores(job, tiny: Path, monkeypatch):
    monkeypatch.setattr(encode, "JOBS", (("", 64, 3),))

    tables = list(job.run(TOY))

    for table in tables:
        ratios = {row["peer"]: row["ratio"] for row in table.rows if "llama" not in row["peer"]}
        assert len(ratios) >= 2
        assert all(ratio is not None for ratio in ratios.values())


def test_many_queries_give_the_scores_of_one_by_one(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(corpora, "DATA", tmp_path)
    (nothing,) = many.run(TOY)
    assert nothing.notes == [f"not found under {tmp_path}"]

    table = many.measure(["red planet", "rings"], [["mars is red", "venus"], ["venus"]], of=2)

    assert {row["peer"]: row["texts encoded"] for row in table.rows} == {
        many.ONCE: 2,
        many.MANY: 2,
        many.LOOP: 2,
    }
    assert table.notes[0].endswith("within 1e-05.")
    assert "NOT" not in table.notes[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a word")
def test_servers_answer_as_the_model_does(tiny: Path) -> None:
    *loads, sizes, beside = serve.run(TOY)

    assert [(row["processes"], row["threads of each"]) for row in sizes.rows] == list(serve.SIZES)
    assert {(row["errors"], row["wrong"]) for row in sizes.rows} == {(0, 0)}
    assert [row["long requests"] for row in beside.rows] == [0, 1, 4]
    for table in loads:
        found = {row["peer"]: (row["errors"], row["wrong"]) for row in table.rows}
        assert found == dict.fromkeys((kind.name for kind in serve.KINDS), (0, 0))


def test_maxsim_and_roofline_run(tiny: Path, monkeypatch):
    monkeypatch.setattr(maxsim, "JOBS", ((2, 1000, 20, False),))
    monkeypatch.setattr(roofline, "SHAPES", ((384, 384),))

    (scores,) = maxsim.run(TOY)
    roof, share = roofline.run(TOY)

    # Vectors in bfloat16 are themselves rounded; the product of float32 ones must not be.
    exact = [row for row in scores.rows if "float32" in row["peer"]]
    assert exact
    assert all(row["largest error"] < 1e-4 for row in exact)
    assert {row["unit"] for row in roof.rows} == {"GFLOP/s", "GB/s"}
    assert 0 < share.rows[0]["of the roof"] < 1.5
    assert 0 < share.rows[0]["of its round"] < 1.5


def test_encoding_is_held_against_the_products_of_its_own_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock halves in the second of three rounds, for the products and for encoding alike."""
    monkeypatch.setattr(roofline, "SHAPES", ((10, 10), (20, 10)))

    def timed(*seconds: float) -> Timing:
        return Timing(tuple(Repetition(each, 1.0, 0.0) for each in seconds))

    timings = {
        # 2,000 operations and 4,000: the second is the faster one, at 4,000 a second or 2,000.
        "GEMM float32 10 x 10 x 10": timed(1.0, 2.0, 1.0),
        "GEMM float32 10 x 10 x 20": timed(1.0, 2.0, 1.0),
    }

    found = roofline._of_its_round(timings, "float32", 10, timed(10.0, 20.0, 8.0), 20_000)

    assert found == pytest.approx(0.5)


def test_explaining_is_measured_beside_scoring_and_ranking(tiny: Path, no_data: None):
    *pairs, ranked = explain.run(TOY)

    assert [row["peer"] for row in pairs[0].rows] == [
        "score",
        "explain",
        "explain, and draw it in HTML",
    ]
    assert [len(table.rows) for table in pairs] == [3, 3]
    assert [(row["peer"], row["ratio"] > 0) for row in ranked.rows] == [
        ("rank", True),
        ("explain the top 10 of it", True),
    ]


@pytest.mark.slow
def test_every_store_finds_the_same_and_is_weighed(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("qdrant_edge")
    pytest.importorskip("qdrant_client")
    monkeypatch.setattr(index, "SIZES", ((2_000, 40),))

    searched, stored = index.run(TOY)

    assert [row["peer"] for row in searched.rows] == list(stores.ENGINES)
    assert all(row["right"] == 10 and row["ratio"] is not None for row in searched.rows)
    assert [row["disk bytes/token"] is not None for row in stored.rows] == [
        True,
        False,
        True,
        False,
    ]
    assert 192 < stored.rows[0]["disk bytes/token"] < 250
    assert all(row["peak MiB"] > row["own MiB"] > 0 for row in stored.rows)


@pytest.mark.slow
@needs_a_fork_server
def test_a_soak_finds_nothing(tiny: Path, no_data: None):
    plan = Plan(threads=1, minutes=0.1, seed=1)

    (table,) = soak.run(plan)

    *rows, total = table.rows
    assert {kind: total[kind] for kind in soak.FINDINGS} == {"wrong": 0, "lost": 0, "stuck": 0}
    assert total["calls"] == sum(row["calls"] for row in rows) > 50
    assert any("x kill" in note for note in table.notes)


@pytest.fixture
def truth(tiny: Path, no_data: None, tmp_path: Path) -> soak_truth.Truth:
    texts = [f"text number {at} of many" for at in range(soak_truth.BASE + 2)]
    return soak_truth.Truth.of(tiny, tmp_path, texts, ["which text", "a number"])


def test_a_soak_sees_wrong_and_missing_hits(truth: soak_truth.Truth):
    hits = [
        Hit(document, truth.stored[0][at], len(truth.asked[0]))
        for at, document in enumerate(truth.base())
    ]
    hits.sort(key=lambda hit: -hit.score)

    truth.check_hits(0, hits, 100, base_only=True)
    with pytest.raises(soak_truth.LostError, match="not found"):
        truth.check_hits(0, hits[1:], 100, base_only=False)
    with pytest.raises(AssertionError, match="off by"):
        truth.check_hits(1, hits, 100, base_only=True)
    with pytest.raises(AssertionError, match="twice"):
        truth.check_hits(0, [hits[0], *hits], 100, base_only=True)
    with pytest.raises(AssertionError, match="mixed"):
        truth.check_document(Document("base-1", truth.texts[2], dict(hits[0].metadata)))


def test_a_soak_counts_what_calls_do(truth: soak_truth.Truth):
    handler = signal.getsignal(signal.SIGINT)
    record = soak_truth.Record(truth, "test")
    jobs = {
        "fine": lambda: None,
        "wrong": lambda: {}["no such key"],
        "lost": lambda: truth.check_hits(0, [], 5, base_only=False),
        "interrupted": lambda: signal.raise_signal(signal.SIGINT),
    }

    ended = [record.call(name, job) for name, job in jobs.items()]
    signal.raise_signal(signal.SIGINT)  # outside a call it is let pass
    record.save()
    signal.signal(signal.SIGINT, handler)

    assert ended == [True, False, False, False]
    counts = json.loads(truth.counts("test", os.getpid()).read_text())["counts"]
    assert {(name, kind) for name, kind, _ in counts} == {
        *((name, "calls") for name in jobs),
        *((name, name) for name in ("wrong", "lost", "interrupted")),
    }
    (events,) = truth.folder.glob("*.events")
    assert [json.loads(line)["kind"] for line in events.read_text().splitlines()] == [
        "wrong",
        "lost",
    ]


def test_a_journal_knows_what_a_killed_writer_may_have_done(tmp_path: Path):
    journal = soak_writers.Journal(tmp_path / "journal")
    journal.turn = 1
    journal.note({0: (5, 1), 1: (6, 1)}, done=True)
    journal.turn = 2
    journal.note({1: (7, 2), 2: None, 0: None}, done=False)

    again = soak_writers.Journal(tmp_path / "journal")

    assert again.turn == 2
    assert [again.possible[number] for number in range(4)] == [
        {(5, 1), None},
        {(6, 1), (7, 2)},
        {None},
        {None},
    ]


@pytest.mark.slow
def test_the_gpu_job_runs_wherever_it_is_told_to(tiny: Path):
    tables = list(gpu.measure("cpu", gpu.TOY, repeats=1))

    assert len(tables) == 7
    assert all(table.rows for table in tables)


def test_the_gpu_job_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert main(["gpu"]) == NO_GPU
    assert "nothing was measured" in capsys.readouterr().out


@pytest.mark.slow
def test_a_child_process_measures_itself(tiny: Path):
    texts = cold_start.write_texts(["some text"], "one")
    program = cold_start.PROGRAMS["colbert_rag"]

    found = cold_start.child(program, program.rerank, tiny, "a query", texts)

    assert found["import_seconds"] > 0
    assert found["peak_mib"] >= found["loaded_mib"] > 50


def test_results_are_written_as_text_and_data(tmp_path: Path):
    table = Table("encode", "Encode 2 documents: tiny", notes=["A note."])
    table.timed("one", timing((0.5, 1.0, 0.0)), 1.0, {"documents/s": 4.0})

    write(tmp_path, "cpu", {"threads": "1"}, [table])

    text = (tmp_path / "cpu.md").read_text()
    assert "speed / sentence-transformers float32" in text
    assert "| one | 0.500 | 0.500 | 2.00 | 4.00 | 1.00 | 0 of 1 |" in text
    (stored,) = json.loads((tmp_path / "cpu.json").read_text())["tables"]
    assert stored["rows"][0]["repetitions"] == [{"seconds": 0.5, "busy": 1.0, "others": 0.0}]
    assert [path.name for path in tmp_path.glob("*.svg")] == ["cpu-encode.svg"]


def marks(svg: str, role: str) -> list[ElementTree.Element]:
    return [mark for mark in ElementTree.fromstring(svg).iter() if mark.get("class") == role]


def test_bars_are_as_long_as_their_values_and_keep_to_the_figure():
    bars = [Bar("ours <&>", 4.0, "4.00", True), Bar("a peer " * 9, 1.0, "1.00", False)]

    svg = Figure("Which is longer?", "Speed", {"a job of two": bars, "b": bars[1:]}).svg()

    (long,) = marks(svg, "ours")
    first, second = marks(svg, "other")
    assert float(long.get("width", 0)) == pytest.approx(4 * float(first.get("width", 0)))
    assert first.get("width") == second.get("width")
    (paper,) = marks(svg, "paper")
    assert float(long.get("x", 0)) + float(long.get("width", 0)) < float(paper.get("width", 0))
    heights = [float(text.get("y", 0)) for text in marks(svg, "number")]
    assert heights == sorted(set(heights))
    assert heights[-1] < float(paper.get("height", 0))
    assert [text.text for text in marks(svg, "number")] == ["4.00", "1.00", "1.00"]
    assert marks(svg, "label")[0].text == "ours <&>"
    assert "prefers-color-scheme: dark" in svg


def test_tables_of_a_job_share_a_figure_and_each_axis_has_its_own():
    speed = [Table("encode", f"Encode {count} documents: tiny, float") for count in (2, 4)]
    for table in speed:
        table.rows = [
            {"peer": "colbert_rag float32", "seconds": 0.5, "ratio": 2.0},
            {"peer": "sentence-transformers float32", "seconds": 1.0, "ratio": 1.0},
            {"peer": "other scores", "seconds": 0.1, "ratio": None},
        ]
    inner = Table("explain", "Explain", rows=[{"peer": "score", "ratio": 1.0}], drawn=False)
    growth = Table("growth", "Encode: tiny", axis="tokens per document")
    growth.rows = [{"peer": "us", "seconds": 0.25, "ratio": 1.0, "tokens per document": 1000}]
    rates = Table("roofline", "The machine", rows=[{"what": "read", "rate": 1.0}])

    drawn = figures([rates, *speed, inner, growth])

    assert list(drawn) == ["encode", "tokens_per_document"]
    assert list(drawn["encode"].groups) == ["Encode 2 documents: tiny", "Encode 4 documents: tiny"]
    ours, theirs = drawn["encode"].groups["Encode 4 documents: tiny"]
    assert (ours.value, ours.number, ours.ours) == (2.0, "2.00", True)
    assert (theirs.label, theirs.ours) == ("sentence-transformers float32", False)
    (bar,) = drawn["tokens_per_document"].groups["tokens per document: 1,000"]
    assert (bar.label, bar.value, bar.number) == ("us", 0.25, "0.250 s")


def test_the_stored_figures_are_those_of_the_stored_numbers():
    results = Path(report.__file__).parent / "results"
    tables = [Table(**table) for table in json.loads((results / "cpu.json").read_text())["tables"]]

    drawn = {f"cpu-{name}.svg": figure.svg() for name, figure in figures(tables).items()}

    assert {path.name: path.read_text() for path in results.glob("cpu-*.svg")} == drawn
