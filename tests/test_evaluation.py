"""Evaluation: measures against their definitions, tests against scipy, words for what is wrong."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.corpora import DATA
from colbert_rag import ColBERT, LocalIndex
from colbert_rag.errors import EvaluationError, MissingExtraError, ReadingError
from colbert_rag.evaluation import (
    JudgedCollection,
    Run,
    System,
    bm25,
    demo_collection,
    evaluate,
    read_corpus,
    read_judgements,
    read_queries,
    read_run,
    reranked,
    run_file,
    searched,
    significance,
    write_run,
)
from colbert_rag.evaluation.demo import MODULES, QUESTIONS
from colbert_rag.evaluation.keywords import words
from colbert_rag.evaluation.measures import Measure, in_order, measure
from tests.helpers import trec_oracle

COLLECTIONS = ("scifact", "lfrqa", "cosqa", "xquad-de")
NAMES = ("nDCG@10", "nDCG@100", "MRR@10", "MRR", "Recall@10", "Recall@100", "MAP", "MAP@10")

needs_bm25 = pytest.mark.skipif(
    find_spec("bm25s") is None, reason="bm25s: not installed, extra evaluate"
)

TEXTS = {
    "mars": "Mars is the red planet.",
    "venus": "Venus is hot and bright.",
    "moon": "The moon circles the earth.",
    "sun": "The sun is a star.",
}
ASKED = {"q1": "red planet", "q2": "hot bright", "q3": "circles the earth"}
JUDGED = {"q1": {"mars": 2, "venus": 0}, "q2": {"venus": 1}, "q3": {"moon": 1, "sun": 1}}


def tiny() -> JudgedCollection:
    return JudgedCollection.of("tiny", JUDGED, ASKED, TEXTS)


def fixed(name: str, scores: dict[str, dict[str, float]]) -> System:
    return System(name, lambda collection, nothing: Run(scores=scores))


@pytest.mark.parametrize("name", COLLECTIONS)
def test_measures_of_a_collection_are_those_of_the_definitions(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no collection {name} in {DATA}")
    collection = JudgedCollection.read(folder)
    run = folder / "bm25.top100.trec"

    (result,) = evaluate(collection, [run_file(run)], measures=NAMES).results

    # Read again without any of our readers.
    scores: dict[str, dict[str, float]] = {}
    for line in run.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        scores.setdefault(query, {})[document] = float(score)
    grades: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        grades.setdefault(query, {})[document] = int(grade)
    for each in NAMES:
        expected = [
            trec_oracle.measured(each, scores.get(query, {}), grades[query]) for query in grades
        ]
        assert result.values[each] == pytest.approx(expected, abs=1e-6)
        assert result.mean(each) == pytest.approx(statistics.fmean(expected), abs=1e-6)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_measures_are_those_of_the_definitions(data: st.DataObject) -> None:
    names = [f"d{number}" for number in range(12)]
    # Few scores, so that many are equal, some of them in single precision alone.
    score = st.sampled_from([0.0, 1.0, 1.0 + 1e-9, -2.5, 16777216.0, 16777217.0])
    scores = data.draw(st.dictionaries(st.sampled_from(names), score))
    grades = data.draw(
        st.dictionaries(st.sampled_from(names), st.integers(-1, 3), min_size=1).filter(
            lambda found: max(found.values()) > 0
        )
    )
    name = data.draw(st.sampled_from(NAMES))

    (values,) = measure({"q": in_order(scores)}, {"q": grades}, [Measure.read(name)]).values()

    assert values == pytest.approx((trec_oracle.measured(name, scores, grades),), abs=1e-9)


def test_the_order_of_equal_scores_is_that_of_trec_eval() -> None:
    import pytrec_eval

    random.seed(0)
    names = [f"d{number}" for number in range(30)]
    grades = {name: random.randint(0, 2) for name in names}
    scores = {name: random.choice([1.0, 1.0 + 1e-9, 2.0]) for name in names}
    # trec_eval itself, which sorts by what it is given.
    evaluator = pytrec_eval.RelevanceEvaluator({"q": grades}, {"map", "ndcg_cut.10"})
    expected = evaluator.evaluate({"q": scores})["q"]

    found = measure(
        {"q": in_order(scores)}, {"q": grades}, [Measure.read("MAP"), Measure.read("nDCG@10")]
    )

    assert found == {"MAP": (expected["map"],), "nDCG@10": (expected["ndcg_cut_10"],)}


@pytest.mark.parametrize("text", ["", "foo@10", "nDCG@0", "nDCG@-1", "Recall", "nDCG@1.5", "@10"])
def test_a_measure_that_is_unknown_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected one such as nDCG@10"):
        Measure.read(text)


def test_the_spelling_of_a_measure_is_brought_to_one_form() -> None:
    view = evaluate(tiny(), [fixed("a", {"q1": {"mars": 1}})], measures=["ndcg@5", "map", "mrr"])

    assert view.measures == ("nDCG@5", "MAP", "MRR")


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytrec_eval", None)

    with pytest.raises(MissingExtraError, match=r"\[evaluate\]"):
        evaluate(tiny(), [fixed("a", {})])


@pytest.mark.parametrize("count", [2, 5, 12])
def test_the_randomisation_test_is_exact_for_few_queries(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1, count).round(1)

    expected = scipy.stats.permutation_test(
        (values, np.zeros(count)),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )

    assert significance.randomisation_test(values.tolist()) == pytest.approx(expected.pvalue)


def test_the_randomisation_test_is_close_to_scipy_for_many_queries() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, 200)

    expected = scipy.stats.permutation_test(
        (values, np.zeros(200)),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(2),
    )

    found = significance.randomisation_test(values.tolist())
    assert found == pytest.approx(expected.pvalue, abs=0.01)
    assert found == significance.randomisation_test(values.tolist())  # the seed is fixed


def test_equal_systems_are_not_different() -> None:
    assert significance.randomisation_test([0.0] * 30) == 1.0
    assert significance.queries_needed([0.0] * 30) is None


def test_the_interval_is_close_to_scipys() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, 300)

    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval

    assert significance.interval(values.tolist()) == pytest.approx(tuple(expected), abs=0.01)


def test_p_values_are_corrected_as_holm_does() -> None:
    # Worked by hand after Holm 1979: 4 * 0.005, 3 * 0.01, 2 * 0.03, and never falling.
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_visible_difference_is_that_of_a_paired_tests_power() -> None:
    values = np.random.default_rng(5).normal(0, 0.3, 400)
    z = scipy.stats.norm.ppf([0.975, 0.8]).sum()

    found = significance.visible_difference(values.tolist())
    assert found == pytest.approx(z * values.std(ddof=1) / 20, rel=1e-5)
    # And a simulation agrees: a true difference of this size is seen four times out of five.
    seen = np.random.default_rng(6).normal(found, values.std(ddof=1), (2000, 400))
    p = scipy.stats.ttest_1samp(seen, 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("queries", "said"), [(5, "cannot show anything"), (6, "few"), (24, "few"), (25, "")]
)
def test_a_sample_that_is_too_small_is_called_so(queries: int, said: str) -> None:
    found = significance.too_few(queries)

    assert bool(found) is bool(said)
    assert said in found
    # Five queries that are all better are still no proof; six are.
    assert (significance.randomisation_test([1.0] * queries) < 0.05) is (queries >= 6)


def test_a_system_is_compared_with_the_first_query_by_query() -> None:
    before = fixed("before", {"q1": {"mars": 1}, "q2": {"sun": 2, "venus": 1}, "q3": {"moon": 1}})
    after = fixed("after", {"q1": {"mars": 1}, "q2": {"venus": 1}, "q3": {"mars": 1}})

    view = evaluate(tiny(), [before, after], measures=["MRR"])

    (one,) = view.comparisons
    assert one.differences == {"q1": 0.0, "q2": 0.5, "q3": -1.0}
    assert one.counts == (1, 1, 1)
    assert one.mean == pytest.approx(-0.5 / 3)
    assert one.extremes(2) == [("q2", 0.5), ("q3", -1.0)]
    assert not one.significant
    assert "3 queries cannot show anything" in view.notes[-1]


def test_a_query_without_an_answer_counts_as_nought() -> None:
    view = evaluate(tiny(), [fixed("a", {"q1": {"mars": 1.0}})], measures=["MRR"])

    assert view.results[0].values["MRR"] == (1.0, 0.0, 0.0)
    assert "a found nothing for 2 of 3 queries, which count as 0" in view.notes


def test_the_first_stage_of_a_reranker_is_measured_too(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("stanford-bert", document_cache=None)  # which other tests fill
    base = fixed("base", {query: dict.fromkeys(TEXTS, 1.0) for query in ASKED})

    view = evaluate(tiny(), [reranked(base, model, "ours")])

    assert [result.system for result in view.results] == ["base", "ours"]
    assert view.results[1].cost.documents == len(TEXTS)
    lengths = model.tokenizer.documents(list(TEXTS.values())).lengths
    assert view.results[1].cost.tokens == lengths.sum()


def test_a_reranker_orders_as_rank_does_and_leaves_the_rest(tiny_colbert: ColBERT) -> None:
    first = {"q1": {"sun": 4.0, "moon": 3.0, "venus": 2.0, "mars": 1.0}}
    system = reranked(fixed("base", first), tiny_colbert, "ours", depth=2)

    view = evaluate(tiny(), [system])

    ranking = tiny_colbert.rank(ASKED["q1"], [TEXTS["sun"], TEXTS["moon"]])
    order = [("sun", "moon")[place.index] for place in ranking]
    assert in_order(view.results[1].scores["q1"]) == [*order, "venus", "mars"]


def test_the_curve_is_what_reranking_so_deep_measures(tiny_colbert: ColBERT) -> None:
    scores = {query: {"sun": 4.0, "moon": 3.0, "venus": 2.0, "mars": 1.0} for query in ASKED}
    base = fixed("base", scores)

    view = evaluate(tiny(), [reranked(base, tiny_colbert, "ours", depth=4)], depths=(1, 2, 3))

    points = view.curves["ours"]
    assert [point.depth for point in points] == [1, 2, 3, 4]
    for point in points:
        alone = evaluate(tiny(), [reranked(base, tiny_colbert, "ours", depth=point.depth)])
        assert point.value == pytest.approx(alone.results[1].mean("nDCG@10"))
        assert point.tokens == alone.results[1].cost.tokens
        assert point.documents == point.depth


def test_windows_of_a_document_are_counted_with_it(colbert) -> None:  # type: ignore[no-untyped-def]
    model = colbert("stanford-bert", long_documents="windows", document_length=8)
    texts = {
        "mars": " ".join(f"Mars has {number} moons." for number in range(20)),
        "sun": "The sun",
    }
    collection = JudgedCollection.of("long", {"q": {"mars": 1}}, {"q": "red"}, texts)
    base = fixed("base", {"q": {"mars": 2.0, "sun": 1.0}})

    view = evaluate(collection, [reranked(base, model, "ours")])

    cost = view.results[1].cost
    assert cost.documents > 10  # windows
    assert cost.documents < cost.tokens <= 8 * cost.documents


def test_an_index_is_searched(tiny_colbert: ColBERT) -> None:
    with LocalIndex(":memory:", tiny_colbert) as index:
        index.add([{"id": name, "text": text} for name, text in TEXTS.items()])
        view = evaluate(tiny(), [searched(index, "index", depth=2)])
        hits = index.search(ASKED["q2"], 2)

    assert in_order(view.results[0].scores["q2"]) == [hit.id for hit in hits]


@needs_bm25
def test_bm25_finds_by_words() -> None:
    view = evaluate(tiny(), [bm25()], measures=["MRR"])

    assert view.results[0].values["MRR"] == (1.0, 1.0, 1.0)
    # What shares no word with the query is not found at all.
    assert set(view.results[0].scores["q2"]) == {"venus"}


@needs_bm25
@pytest.mark.parametrize("name", ["xquad-en", "xquad-zh", "xquad-th", "xquad-hi"])
def test_bm25_finds_in_scripts_without_spaces(name: str) -> None:
    """The runs that come with the collections were made with tokenisers of their own."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no collection {name} in {DATA}")
    collection = JudgedCollection.read(DATA / name)

    view = evaluate(collection, [run_file(DATA / name / "bm25.top100.trec"), bm25()])

    given_run, ours = (result.mean("nDCG@10") for result in view.results)
    assert ours == pytest.approx(given_run, abs=0.03)


def test_words_are_runs_of_letters_and_pairs_where_there_are_no_spaces() -> None:
    assert words("The 2 red_ones, naïve!") == ["the", "2", "red_ones", "naïve"]
    assert words("红色的 a 星") == ["红色", "色的", "a", "星"]


def test_the_demonstration_is_judged_on_what_there_is() -> None:
    collection = demo_collection()

    assert len(collection.queries) == len(QUESTIONS) >= significance.USUAL
    assert collection.notes == ()
    assert {name.partition(".")[0] for name in collection.documents} <= MODULES
    # Releases differ in a few docstrings, and no question may lose all of its answers.
    judged = sum(len(grades) for grades in collection.judgements.values())
    assert judged >= 0.9 * sum(map(len, QUESTIONS.values()))


def test_a_collection_is_read_as_beir_lays_it_out(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"_id": name, "title": name.title(), "text": text}) + "\n"
            for name, text in TEXTS.items()
        )
    )
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in ASKED.items())
    )
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tmars\t2\n")

    collection = JudgedCollection.read(tmp_path, split="dev")

    assert collection.documents["mars"] == "Mars Mars is the red planet."
    assert collection.queries == {"q1": "red planet"}
    assert collection.judgements == {"q1": {"mars": 2}}


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadingError, match=r"corpus\.jsonl is missing: a collection is a folder"):
        JudgedCollection.read(tmp_path)


def test_a_file_in_place_of_a_collection_is_called_a_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_text("Mars is red.")

    with pytest.raises(ReadingError) as refused:
        JudgedCollection.read(file)
    assert str(refused.value).startswith(f"{file} is a file, expected a folder: a collection is ")


def test_queries_and_judgements_are_read_in_other_formats_too(tmp_path: Path) -> None:
    queries, judgements = tmp_path / "queries.tsv", tmp_path / "qrels.txt"
    queries.write_text("1\twhat is red?\n\n2\twho?\n")
    judgements.write_text("1 0 mars 1\n2 0 venus 0\n")

    assert read_queries(queries) == {"1": "what is red?", "2": "who?"}
    (tmp_path / "queries.jsonl").write_text('{"QID": 1, "question": "what is red?"}\n')
    assert read_queries(tmp_path) == {"1": "what is red?"}
    assert read_judgements(judgements) == {"1": {"mars": 1}, "2": {"venus": 0}}


def test_a_run_is_written_as_it_is_read(tmp_path: Path) -> None:
    scores = {"q1": {"a": 1.0, "b": 2.5, "c": 1.0}, "q2": {"a": -0.1}}

    write_run(tmp_path / "run.trec", scores, "my run")

    assert read_run(tmp_path / "run.trec") == scores
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert lines[:3] == ["q1 Q0 b 1 2.5 my-run", "q1 Q0 c 2 1.0 my-run", "q1 Q0 a 3 1.0 my-run"]


@pytest.mark.parametrize(
    ("reader", "text", "said"),
    [
        (read_run, "", "is empty: expected at least one result"),
        (read_run, "q 0 d 1\n", "looks like judgements, expected a run"),
        (read_run, "q Q0 d 1 high x\n", "the score is 'high', expected a number"),
        (read_run, "q Q0 d 1 nan x\n", "the score is 'nan', expected a number"),
        (read_run, "q Q0 d 1 2 x\nq Q0 d 2 1 x\n", ":2: the id 'd' is there already"),
        (read_run, "q Q0 d\n", "looks like judgements"),
        (read_run, "q d\n", "2 columns, expected QUERY Q0"),
        (read_judgements, "q Q0 d 1 2.0 x\n", "this is a run, expected judgements"),
        (read_judgements, "q d\n", "2 columns, expected QUERY DOCUMENT GRADE"),
        (read_judgements, "q d 1\nq d 0\n", "'d' is judged 0 for the query 'q', and 1 further up"),
        (read_judgements, "q d yes\n", "the grade is 'yes', expected a whole number"),
        (read_judgements, "query-id corpus-id score\n", "is empty: expected at least one"),
        (read_queries, "what is red?\n", "is no query: it holds no tab. Expected an id, a tab"),
        (read_queries, "1\ta\n1\tb\n", "the id '1' is there already"),
        (read_queries, '{"_id": "1"}\n', "no text: looked for text, query, question; found _id"),
        (read_queries, '{"_id": "1", "text": 2}\n', "found str as id and int as text"),
        (read_queries, "1\ta\0\n", "not a text file: it holds a zero byte"),
        (read_corpus, "{}\n", "no text"),
        (read_corpus, '{"_id": 1, "text": null}\n', "text is null, expected a text"),
        (read_corpus, '{"text": "a"}\n', "no id: looked for _id, id"),
        (read_corpus, "[1]\n", "found a list. Expected one object"),
        (read_corpus, "hello\n", "not JSON"),
    ],
)
def test_a_file_that_is_something_else_is_refused(reader, text, said, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)

    with pytest.raises(ReadingError, match=f"{path.name}.*{said}"):
        reader(path)


@pytest.mark.parametrize("reader", [read_corpus, read_queries, read_judgements, read_run])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"q Q0 \xe9 2 1 x\n",
            ":1: not UTF-8 at byte 6 of the line. Convert it first, as with: "
            "iconv -f LATIN1 -t UTF-8",
        ),
        (
            b"\xff\xfeq\0 \0",
            ":1: not UTF-8 at byte 1 of the line. Convert it first, as with: "
            "iconv -f UTF-16 -t UTF-8",
        ),
        (
            b"q\xff\3\n",
            ":1: not a text file: it holds the byte 0x03. Extract its text first, with a program "
            "for such files",
        ),
        (b"\x1f\x8b\x08", " is compressed, expected text. Unpack it first, as with: gunzip FILE"),
    ],
)
def test_a_file_that_is_no_text_is_told_what_to_do(reader, content, said, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ReadingError) as refused:
        reader(tmp_path / "file")
    assert str(refused.value) == f"{tmp_path / 'file'}{said}"


def test_a_line_further_down_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"q Q0 d 1 2 x\nq Q0 \xe9 2 1 x\n")

    with pytest.raises(ReadingError, match=r"run:2: not UTF-8 at byte 6 of the line"):
        read_run(tmp_path / "run")


def test_judgements_of_other_queries_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"none of the 1 judged queries is among the 3"):
        JudgedCollection.of("tiny", {"x": {"mars": 1}}, ASKED, TEXTS)


def test_judgements_of_another_corpus_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"none of the 1 relevant documents is in the corpus"):
        JudgedCollection.of("tiny", {"q1": {"x": 1}}, ASKED, TEXTS)


def test_judgements_without_a_relevant_document_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no document is judged relevant"):
        JudgedCollection.of("tiny", {"q1": {"mars": 0}}, ASKED, TEXTS)


def test_what_is_left_out_is_said() -> None:
    judged = {**JUDGED, "q4": {"mars": 0}, "q5": {"mars": 1}, "q1": {"mars": 1, "pluto": 1}}

    notes = JudgedCollection.of("tiny", judged, ASKED, TEXTS).notes

    assert [note.partition(":")[0] for note in notes] == [
        "1 of 5 judged queries have no relevant document and are left out",
        "1 judged queries have no text and are left out, such as 'q5'",
        "1 of 5 relevant documents are not in the corpus, such as 'pluto'",
    ]


def test_a_run_for_other_queries_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"answers none of the 3 judged queries .* '7'"):
        evaluate(tiny(), [fixed("a", {"7": {"mars": 1.0}})])


def test_a_run_that_finds_nothing_is_not_taken_for_one_of_other_queries() -> None:
    nothing: dict[str, dict[str, float]] = {query: {} for query in JUDGED}

    with pytest.raises(EvaluationError, match="finds nothing for any of the 3 judged queries") as e:
        evaluate(tiny(), [fixed("a", nothing)])

    assert "share a word" in str(e.value)


@pytest.mark.parametrize("texts", [True, False])
def test_a_run_over_another_corpus_is_refused(texts: bool) -> None:
    collection = tiny() if texts else JudgedCollection.of("tiny", JUDGED)

    with pytest.raises(EvaluationError, match="Do run and judgements belong to the same"):
        evaluate(collection, [fixed("a", {"q1": {"pluto": 1.0}})])


def test_documents_that_are_not_in_the_corpus_are_said() -> None:
    view = evaluate(tiny(), [fixed("a", {"q1": {"mars": 1.0, "pluto": 0.5}})])

    assert "a found 1 documents that are not in the corpus, such as 'pluto'" in view.notes


def test_ties_are_said_with_their_rule() -> None:
    tied = {"q1": {"mars": 1.0, "venus": 1.0 + 1e-9}, "q2": {"venus": 1.0}, "q3": {"moon": 1.0}}

    view = evaluate(tiny(), [fixed("a", tied)], measures=["MRR"])

    # In single precision both are equal, and "venus" stands behind "mars" in the alphabet.
    assert view.results[0].values["MRR"][0] == 0.5
    assert any(
        "equal scores to documents among the best 10 of 1 queries" in note for note in view.notes
    )


def test_two_systems_of_one_name_are_refused() -> None:
    with pytest.raises(EvaluationError, match="two systems are called 'a'"):
        evaluate(tiny(), [fixed("a", {}), fixed("a", {})])


def test_without_a_system_there_is_nothing_to_measure() -> None:
    with pytest.raises(EvaluationError, match="nothing to measure"):
        evaluate(tiny(), [])


def test_without_texts_only_runs_can_be_compared(tiny_colbert: ColBERT) -> None:
    bare = JudgedCollection.of("bare", JUDGED)
    run = fixed("a", {"q1": {"mars": 1.0}})

    assert evaluate(bare, [run]).results[0].mean("Recall@100") == pytest.approx(1 / 3)
    with pytest.raises(EvaluationError, match="a reranker needs the texts"):
        evaluate(bare, [reranked(run, tiny_colbert)])


def test_a_sample_is_chosen_at_random_and_the_same_each_time() -> None:
    judged = {f"q{number}": {"mars": 1} for number in range(100)}
    asked = dict.fromkeys(judged, "red planet")
    collection = JudgedCollection.of("many", judged, asked, TEXTS)

    sample = collection.sample(10)

    assert len(sample.judgements) == len(sample.queries) == 10
    assert list(sample.judgements) != list(judged)[:10]
    assert sample.judgements == collection.sample(10).judgements
    assert sample.judgements != collection.sample(10, seed=1).judgements
    assert "10 of 100 queries, chosen at random (seed 0)" in sample.notes
    assert collection.sample(100) is collection


def test_everything_is_there_as_plain_values() -> None:
    view = evaluate(tiny(), [fixed("a", {"q1": {"mars": 1.0}}), fixed("b", {"q2": {"venus": 1.0}})])

    found = json.loads(json.dumps(view.to_dict(), allow_nan=False))

    assert found["queries"] == 3
    assert found["systems"][0]["measures"]["MAP"] == pytest.approx(1 / 3)
    assert found["comparisons"][0]["by_query"] == {"q1": -1.0, "q2": 1.0, "q3": 0.0}
    assert found["library"].startswith("trec_eval (pytrec-eval-terrier ")


def test_a_single_query_has_no_visible_difference() -> None:
    collection = JudgedCollection.of("one", {"q1": {"mars": 1}}, ASKED, TEXTS)
    view = evaluate(
        collection, [fixed("a", {"q1": {"mars": 1.0}}), fixed("b", {"q1": {"venus": 1.0}})]
    )

    assert math.isinf(view.comparisons[0].visible)
    assert "No difference is shown between b and a." in repr(view)
