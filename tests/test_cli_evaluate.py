"""`colbert-rag evaluate`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from colbert_rag import ColBERT, LocalIndex, evaluation
from colbert_rag.cli import main
from colbert_rag.evaluation import JudgedCollection, read_run
from tests.test_evaluation import ASKED, JUDGED, TEXTS

needs_bm25 = pytest.mark.skipif(
    find_spec("bm25s") is None, reason="bm25s: not installed, extra evaluate"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection as BEIR has it, with a run."""
    place = tmp_path / "tiny"
    (place / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", TEXTS), ("queries", ASKED)):
        lines = (json.dumps({"_id": key, "text": text}) for key, text in texts.items())
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    lines = (
        f"{query}\t{name}\t{grade}" for query in JUDGED for name, grade in JUDGED[query].items()
    )
    (place / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    (place / "a.trec").write_text(
        "q1 Q0 venus 1 3 a\nq1 Q0 mars 2 2 a\nq2 Q0 sun 1 1 a\nq3 Q0 moon 1 1 a\n"
    )
    (place / "b.trec").write_text("q1 Q0 mars 1 1 b\nq2 Q0 venus 1 1 b\nq3 Q0 moon 1 1 b\n")
    return place


def test_runs_are_compared_with_judgements_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qrels = str(folder / "qrels" / "test.tsv")
    runs = ["--run", str(folder / "a.trec"), "--run", str(folder / "b.trec")]

    status = main(["evaluate", "--qrels", qrels, *runs, "--measures", "MRR@10,Recall@1"])

    printed = " ".join(capsys.readouterr().out.split())
    assert status == 0
    assert "3 judged queries; measures by trec_eval (pytrec-eval-terrier" in printed
    assert "quality MRR@10 Recall@1 a.trec 0.5000 0.1667 b.trec 1.0000 0.8333" in printed
    assert "b.trec +0.5000" in printed
    assert "2 / 1 / 0" in printed
    assert "note: 3 queries cannot show anything" in printed


def test_json_holds_every_query(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(folder / "a.trec")

    assert main(["evaluate", str(folder), "--run", run, "--json", "--measures", "MRR"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["collection"] == "tiny"
    assert found["systems"][0]["by_query"] == {"MRR": {"q1": 0.5, "q2": 0.0, "q3": 1.0}}


def test_each_model_reranks_each_system(
    folder: Path, tiny_checkpoint: Path, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    index = tmp_path / "tiny.sqlite"
    with LocalIndex(index, tiny_colbert) as made:
        made.add([{"id": name, "text": text} for name, text in TEXTS.items()])
    options = ["--run", str(folder / "a.trec"), "--index", str(index), "-m", str(tiny_checkpoint)]
    page, runs = tmp_path / "page.html", tmp_path / "runs"

    status = main(
        [
            "evaluate",
            str(folder),
            *options,
            "--dtype",
            "float32",
            "--device",
            "cpu",
            "--html",
            str(page),
            "--save-runs",
            str(runs),
        ]
    )

    assert status == 0
    name = tiny_checkpoint.name
    written = page.read_text()
    for system in (
        "a.trec",
        "tiny.sqlite",
        f"{name} over a.trec&#x27;s 100",
        f"{name} over tiny.sqlite&#x27;s 100",
    ):
        assert f">{system}<" in written
    # The index ranks by the same model, and what it found stays in its order.
    assert sorted(path.name for path in runs.iterdir()) == [f"{n}.trec" for n in (1, 2, 3, 4)]
    assert read_run(runs / "1.trec") == read_run(folder / "a.trec")
    searched, again = (read_run(runs / f"{number}.trec") for number in (2, 4))
    assert [list(found) for found in searched.values()] == [list(found) for found in again.values()]


@needs_bm25
@pytest.mark.parametrize(
    "order", [["--run", "--index", "--bm25"], ["--bm25", "--run", "--index"], ["--index", "--run"]]
)
def test_the_system_that_is_named_first_is_what_others_are_compared_with(
    order: list[str],
    folder: Path,
    tiny_colbert: ColBERT,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = tmp_path / "tiny.sqlite"
    with LocalIndex(index, tiny_colbert) as made:
        made.add([{"id": name, "text": text} for name, text in TEXTS.items()])
    values = {"--run": [str(folder / "a.trec")], "--index": [str(index)], "--bm25": []}
    named = {"--run": "a.trec", "--index": "tiny.sqlite", "--bm25": "BM25"}
    options = [word for option in order for word in (option, *values[option])]

    assert main(["evaluate", str(folder), *options, "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert [system["system"] for system in found["systems"]] == [named[option] for option in order]
    assert [one["system"] for one in found["comparisons"]] == [named[name] for name in order[1:]]


def test_options_of_the_model_that_ranks_are_not_those_of_an_index(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = ["--model", str(tiny_checkpoint), "--dtype", "float32", "--device", "cpu"]
    index = str(tmp_path / "tiny.sqlite")
    assert main(["index", str(folder / "corpus.jsonl"), "--to", index, *exact]) == 0

    command = ["evaluate", str(folder), "--index", index, "--document-length", "5"]

    assert main([*command, *exact]) == 0
    assert "over tiny.sqlite" in capsys.readouterr().out


def test_the_name_of_a_collection_is_text_in_a_page(folder: Path, tmp_path: Path) -> None:
    named, page = tmp_path / "<b>&", tmp_path / "page.html"
    folder.rename(named)

    main(["evaluate", str(named), "--run", str(named / "a.trec"), "--html", str(page)])

    text = page.read_text()
    assert "<title>&lt;b&gt;&amp;</title>" in text
    assert "<b>&" not in text
    # As in the page of `explain`: nothing runs, and nothing is fetched.
    assert "default-src 'none'" in text


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_the_name_of_a_collection_need_not_be_unicode(folder: Path, tmp_path: Path) -> None:
    named, page = tmp_path / "bad\udcff", tmp_path / "page.html"
    folder.rename(named)

    assert main(["evaluate", str(named), "--run", str(named / "a.trec"), "--html", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@needs_bm25
@pytest.mark.slow
def test_the_demonstration_needs_no_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert main(["evaluate", "--demo", "--depth", "10", "--dtype", "float32", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert [system["system"] for system in found["systems"]] == [
        "BM25",
        "offline-minilm over BM25's 10",
    ]
    # All words of a question weigh the same to BM25; a sentence encoder knows what they mean.
    assert found["comparisons"][0]["p_value"] < 0.05
    assert found["comparisons"][0]["difference"] > 0


@needs_bm25
def test_without_a_system_bm25_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(folder), "--sample", "2"]) == 0

    captured = capsys.readouterr()
    assert "BM25" in captured.out
    assert "note: 2 of 3 queries, chosen at random (seed 0)" in captured.out
    assert "-m CHECKPOINT reranks what was found" in captured.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected COLLECTION, or --qrels, or --demo, and found nothing"),
        (["x", "--demo"], "and found more than one of them"),
        (["--queries", "x"], "need the judgements, too: --qrels FILE"),
        (["--qrels", "x"], "only runs can be compared: --run FILE"),
        (["--demo", "--depth", "0"], "--depth: '0' is not a whole number of 1 or more"),
        (["--demo", "--depth", "x"], "--depth: 'x' is not a whole number of 1 or more"),
        (["--demo", "--sample", "0"], "--sample: '0' is not a whole number of 1 or more"),
        (["--demo", "--seed", "x"], "--seed: 'x' is not a whole number of 0 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", *words])

    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--qrels", "--queries", "--corpus"])
def test_a_part_that_is_not_there_is_answered_with_the_one_beside_it(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "--qrels": str(folder / "qrels" / "test.tsv"),
        "--queries": str(folder / "queries.jsonl"),
        "--corpus": str(folder / "corpus.jsonl"),
    }
    meant = parts[option]
    parts[option] = f"{meant}x"

    words = [word for pair in parts.items() for word in pair]
    assert main(["evaluate", *words, "--run", str(folder / "a.trec")]) == 1
    assert capsys.readouterr().err == f"error: {meant}x: no such file; did you mean {meant!r}?\n"


def test_a_measure_that_is_unknown_is_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), "--run", str(folder / "a.trec"), "--measures", "P@x"])

    assert "--measures: the measure is 'P@x', expected one such as" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file limits")
def test_a_page_that_a_full_disk_refuses_takes_no_result_with_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    page, runs = tmp_path / "page.html", tmp_path / "runs"
    page.write_text("<!doctype html>the page of before", encoding="utf-8")
    options = ["--html", str(page), "--save-runs", str(runs), "--json"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        status = main(["evaluate", str(folder), "--run", str(folder / "a.trec"), *options])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    out, err = capsys.readouterr()
    assert status == 1
    assert err.splitlines() == [
        f"{runs} has what each system found, as 1.trec and so on",
        f"error: {page}: File too large: free some space, and try again",
    ]
    assert set(json.loads(out)["systems"][0]["by_query"]["nDCG@10"]) == {"q1", "q2", "q3"}
    assert read_run(runs / "1.trec") == read_run(folder / "a.trec")
    assert page.read_text(encoding="utf-8") == "<!doctype html>the page of before"


@pytest.mark.parametrize("option", ["--run", "--html"])
def test_a_name_that_is_wrong_shows_before_anything_is_ranked(
    option: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", lambda *rest, **more: pytest.fail("too late"))
    run = [] if option == "--run" else ["--run", str(folder / "a.trec")]

    assert main(["evaluate", str(folder), *run, option, str(folder / "no" / "such")]) == 1

    assert "no such f" in capsys.readouterr().err


def test_judgements_of_something_else_are_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "other.tsv").write_text("7 0 mars 1\n")
    qrels, run = str(folder / "other.tsv"), str(folder / "a.trec")

    assert main(["evaluate", "--qrels", qrels, "--run", run]) == 1

    error = capsys.readouterr().err
    assert error.startswith("error: a.trec answers none of the 1 judged queries of other.tsv")
    assert "Are these the judgements for this run?" in error


def test_the_collection_of_the_help_is_the_one_of_the_package() -> None:
    from colbert_rag.cli.evaluate import MEASURES

    assert tuple(MEASURES.split(",")) == evaluation.evaluation.DEFAULT_MEASURES
    assert JudgedCollection.of("tiny", JUDGED).name == "tiny"
