"""`colbert-rag rerank --queries`: what is written, how it goes on, what wrong files are told."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval

from colbert_rag import ColBERT, LocalIndex, Settings, colbert, many
from colbert_rag.cli import COMMANDS, _parsed, _parser, main, rerank_many
from colbert_rag.cli.candidates import read_ranked
from colbert_rag.cli.runs import RunFile
from colbert_rag.evaluation import read_queries
from colbert_rag.index import Document

QUERIES = {"q1": "which planet is red", "q2": "rings of ice", "q3": "a moon of rock"}
DOCUMENTS = {
    "mars": "Mars is the red planet.",
    "saturn": "Saturn has rings of ice.",
    "moon": "The moon is made of rock.",
    "none": "...",
}
FOUND = {"q1": ["saturn", "mars", "none"], "q2": ["mars", "saturn"], "q3": ["moon"]}
RERANK = next(command for command in COMMANDS if command.name == "rerank")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A collection in BEIR's layout with a run over it; commands run in it."""
    lines = [json.dumps({"_id": name, "text": text}) for name, text in QUERIES.items()]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines) + "\n")
    lines = [
        json.dumps({"_id": name, "title": "", "text": text}) for name, text in DOCUMENTS.items()
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "q.tsv").write_text("".join(f"{id}\t{text}\n" for id, text in QUERIES.items()))
    run = [
        f"{query} Q0 {name} {rank} {9 - rank} bm25\n"
        for query, names in FOUND.items()
        for rank, name in enumerate(names, start=1)
    ]
    (tmp_path / "bm25.trec").write_text("".join(run))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rerank(tiny_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on the tiny model: status, standard output, standard error."""

    def run(*arguments: object, queries: str = ".") -> tuple[int, str, str]:
        exact = ["--model", str(tiny_checkpoint), "--device", "cpu", "--dtype", "float32"]
        status = main(["rerank", "--queries", queries, *map(str, arguments), *exact])
        return status, *capsys.readouterr()

    return run


def read_trec(path: Path) -> dict[str, dict[str, float]]:
    """A run as trec_eval's own reader takes it."""
    with path.open() as file:
        return pytrec_eval.parse_run(file)


def expected(model: ColBERT, lists: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """By a loop of `rank`."""
    found = {}
    for query, names in lists.items():
        ranking = model.rank(QUERIES[query], [DOCUMENTS[name] for name in names])
        means = {names[place.index]: place.mean for place in ranking}
        found[query] = means | ({"none": -1.0} if "none" in means else {})
    return found


def same(found: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> bool:
    return found.keys() == other.keys() and all(
        found[query] == pytest.approx(other[query], abs=1e-6) for query in found
    )


def test_a_run_is_reranked_into_a_run(rerank: Run, folder: Path, tiny_colbert: ColBERT) -> None:
    status, out, err = rerank("--run", "bm25.trec", "--to", "out.trec")

    assert (status, err) == (0, "")
    assert out.startswith("3 queries and 4 documents by ")
    found = read_trec(folder / "out.trec")
    assert same(found, expected(tiny_colbert, FOUND))
    for line in (folder / "out.trec").read_text().splitlines():
        query, _, name, rank, score, tag = line.split()
        better = [other for other in found[query].values() if other > float(score)]
        assert int(rank) == len(better) + 1
        assert re.fullmatch(r"stanford-bert-[0-9a-f]{12}", tag)
        assert name in FOUND[query]


def test_without_a_run_all_documents_are_ranked_for_each_query(
    rerank: Run, folder: Path, tiny_colbert: ColBERT
) -> None:
    assert rerank("--to", "out.trec")[0] == 0

    lists = {query: list(DOCUMENTS) for query in QUERIES}
    assert same(read_trec(folder / "out.trec"), expected(tiny_colbert, lists))


def test_json_lines_hold_a_query_each(rerank: Run, folder: Path, tiny_colbert: ColBERT) -> None:
    rerank("--run", "bm25.trec", "--to", "out.jsonl", "--top-k", "2", "--score", "sum")

    records = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert {record["query_id"]: record["query"] for record in records} == QUERIES
    for record in records:
        names = FOUND[record["query_id"]]
        ranking = tiny_colbert.rank(record["query"], [DOCUMENTS[name] for name in names], top_k=2)
        assert [place["id"] for place in record["ranked"]] == [
            names[place.index] for place in ranking
        ]
        assert [place["score"] for place in record["ranked"]] == pytest.approx(
            [place.score for place in ranking], abs=1e-5
        )
        assert [place["rank"] for place in record["ranked"]] == [place.rank for place in ranking]


def test_bm25_finds_candidates_among_the_documents(
    rerank: Run, folder: Path, tiny_colbert: ColBERT
) -> None:
    status, _, err = rerank("--bm25", "--to", "out.trec")

    sharing = {
        query: [
            name
            for name, text in DOCUMENTS.items()
            if {*re.findall(r"\w+", text.lower())} & {*asked.split()}
        ]
        for query, asked in QUERIES.items()
    }
    assert (status, err) == (0, "")
    assert same(read_trec(folder / "out.trec"), expected(tiny_colbert, sharing))


def test_without_bm25s_the_extra_is_named(
    rerank: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)

    status, _, err = rerank("--bm25", "--to", "out.trec")

    assert status == 1
    assert "error: bm25s is not installed" in err
    assert "[evaluate]" in err


def test_depth_counts_what_bm25_finds(rerank: Run, folder: Path, tiny_colbert: ColBERT) -> None:
    assert rerank("--bm25", "--depth", "1", "--to", "out.trec")[0] == 0

    # Each query shares its rarest words with one document.
    best = {"q1": ["mars"], "q2": ["saturn"], "q3": ["moon"]}
    assert same(read_trec(folder / "out.trec"), expected(tiny_colbert, best))


def test_a_query_without_candidates_is_left_out_and_noted(rerank: Run, folder: Path) -> None:
    (folder / "q.tsv").write_text("q1\tred\nq2\tgreen\n")

    status, _, err = rerank("--bm25", "corpus.jsonl", "--to", "out.trec", queries="q.tsv")

    assert (status, err) == (0, "note: BM25 has nothing for 1 of 2 queries\n")
    assert read_trec(folder / "out.trec").keys() == {"q1"}


@pytest.mark.parametrize("words", ["green", "..."])
def test_a_first_stage_that_finds_nothing_is_an_error(
    rerank: Run, folder: Path, words: str
) -> None:
    (folder / "q.tsv").write_text(f"q1\t{words}\n")
    (folder / "one.txt").write_text("...\n")

    status, _, err = rerank("--bm25", "one.txt", "--to", "out.trec", queries="q.tsv")

    assert status == 1
    assert f"BM25 found nothing for any of 1 queries, such as {words!r}" in err


@pytest.fixture
def index(folder: Path, tiny_colbert: ColBERT) -> str:
    """The collection as an index."""
    with LocalIndex("c.sqlite", tiny_colbert) as made:
        made.add([Document(name, text) for name, text in DOCUMENTS.items()])
    return "c.sqlite"


def test_an_index_finds_candidates_and_has_their_texts(
    rerank: Run, folder: Path, index: str, tiny_colbert: ColBERT
) -> None:
    (folder / "corpus.jsonl").unlink()

    assert rerank("--index", index, "--to", "out.trec", queries="q.tsv")[0] == 0

    # A search does not find what has no words.
    lists = {query: ["mars", "saturn", "moon"] for query in QUERIES}
    assert same(read_trec(folder / "out.trec"), expected(tiny_colbert, lists))


def test_all_that_an_empty_index_finds_is_nothing(
    rerank: Run, folder: Path, tiny_colbert: ColBERT
) -> None:
    LocalIndex("empty.sqlite", tiny_colbert).close()

    status, _, err = rerank("--index", "empty.sqlite", "--depth", "0", "--to", "out.trec")

    assert status == 1
    assert "empty.sqlite found nothing for any of 3 queries" in err


def test_an_index_is_searched_by_its_own_model(
    rerank: Run, folder: Path, index: str, tiny_colbert: ColBERT
) -> None:
    # A shorter document length is that of the model that ranks, and not of the index.
    arguments = ["--index", index, "--depth", "1", "--document-length", "4", "--to", "out.trec"]
    assert rerank(*arguments)[0] == 0

    with LocalIndex(index, tiny_colbert, read_only=True) as opened:
        best = opened.search_many(list(QUERIES.values()), 1)
    assert {query: list(found) for query, found in read_trec(folder / "out.trec").items()} == {
        query: [hit.id for hit in hits] for query, hits in zip(QUERIES, best, strict=True)
    }


@pytest.mark.parametrize(
    ("options", "length"),
    [
        pytest.param([], 4, id="the model of the index, as the index has it"),
        pytest.param(["--document-length", "5"], 5, id="an option overrules the index"),
        pytest.param(["--model"], None, id="a model that is named follows its checkpoint"),
    ],
)
def test_the_model_of_an_index_ranks_unless_another_is_named(
    folder: Path, tiny_checkpoint: Path, options: list[str], length: int | None
) -> None:
    exact = {"device": "cpu", "dtype": "float32"}
    short = ColBERT.from_pretrained(tiny_checkpoint, document_length=4, **exact)
    with LocalIndex("c.sqlite", short) as made:
        made.add([Document(name, text) for name, text in DOCUMENTS.items()])
    named = [*options, str(tiny_checkpoint)] if options == ["--model"] else options
    command = ["rerank", "--queries", "q.tsv", "--index", "c.sqlite", "--to", "out.trec", *named]

    assert main([*command, "--device", "cpu", "--dtype", "float32"]) == 0

    model = ColBERT.from_pretrained(tiny_checkpoint, document_length=length, **exact)
    lists = {query: ["mars", "saturn", "moon"] for query in QUERIES}
    assert same(read_trec(folder / "out.trec"), expected(model, lists))


def test_the_model_of_an_index_that_also_ranks_is_opened_once(
    folder: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ColBERT] = []
    share = colbert.shared

    def noted(settings: Settings) -> ColBERT:
        opened.append(share(settings))
        return opened[-1]

    monkeypatch.setattr(colbert, "shared", noted)
    command = ["rerank", "--queries", "q.tsv", "--index", index, "--to", "out.trec"]

    assert main([*command, "--device", "cpu", "--dtype", "float32"]) == 0
    assert len(opened) == 2
    assert opened[0] is opened[1]


@pytest.mark.parametrize("stage", [["--bm25"], ["--index", "c.sqlite"]], ids=["bm25", "index"])
def test_a_first_stage_finds_the_same_when_a_run_goes_on(
    rerank: Run, folder: Path, index: str, stage: list[str]
) -> None:
    rerank(*stage, "--to", "out.trec")
    whole = (folder / "out.trec").read_bytes()
    (folder / "out.trec").write_bytes(whole[: len(whole) // 2])

    status, _, err = rerank(*stage, "--to", "out.trec")

    assert status == 0
    assert "note: out.trec has 1 of 3 queries" in err
    assert sorted((folder / "out.trec").read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "bm25.trec", "--bm25"], "--run and --bm25 each say what is ranked: name one"),
        (["--bm25", "--index", "c.sqlite"], "--bm25 and --index each say what is ranked"),
        (["--depth", "5"], "--depth is for --run, --bm25, --index, and without one of them all"),
        (["--index", "c.sqlite", "corpus.jsonl"], "has the texts of its documents: leave out corp"),
        (["--bm25", "--collection", "c"], "are for an index on a server: --index URL"),
        (["--index", ":memory:"], "expected a file or the URL of a server"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command = ["rerank", "--queries", ".", "--to", "out.trec", "--model", "./no/such/model"]

    with pytest.raises(SystemExit, match="2"):
        main([*command, *arguments])

    assert message in capsys.readouterr().err


def test_an_index_that_is_not_there_is_said_before_the_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rerank", "--queries", ".", "--to", "out.trec", "--model", "./no/such/model"]

    assert main([*command, "--index", "none.sqlite"]) == 1
    assert "none.sqlite: there is no index here" in capsys.readouterr().err


def test_two_processes_do_not_write_one_file(rerank: Run, folder: Path) -> None:
    with RunFile("out.trec", "other", {}).resumed({}):
        status, _, err = rerank("--run", "bm25.trec", "--to", "out.trec")

        assert status == 1
        assert "error: out.trec is being written by another process: wait until it ends" in err
        assert (folder / "out.trec").read_bytes() == b""

    assert rerank("--run", "bm25.trec", "--to", "out.trec")[0] == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.tsv", None),
        ("queries.jsonl", None),
        ("named.tsv", "query-id\ttext\nq1\twhich planet is red\nq2\trings of ice\n"),
        ("other.jsonl", '\n{"qid": "q1", "query": "which planet is red"}\n'),
    ],
)
def test_queries_are_read_in_any_of_these_forms(
    folder: Path, name: str, content: str | None
) -> None:
    if content is not None:
        (folder / name).write_text(content)

    found = read_queries(name)

    assert found.items() <= QUERIES.items()
    assert "q1" in found
    assert list(found) == sorted(found)


def test_depth_takes_the_best_by_score_whatever_the_ranks_say(folder: Path) -> None:
    (folder / "run").write_text("q Q0 a 1 1.5 x\nq Q0 b 2 3e0 x\nq Q0 c 3 1.5 x\n")

    # trec_eval orders equal scores by the id, the larger first.
    assert read_ranked("run", None) == {"q": ["b", "c", "a"]}
    assert read_ranked("run", 2) == {"q": ["b", "c"]}


@pytest.mark.parametrize("to", ["out.trec", "out.jsonl"])
@pytest.mark.parametrize("cut", range(0, 700, 23))
def test_a_run_that_was_cut_off_goes_on_and_doubles_nothing(
    rerank: Run, folder: Path, to: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerank("--run", "bm25.trec", "--to", to)
    path = folder / to
    whole = path.read_bytes()
    if cut >= len(whole):
        return
    path.write_bytes(whole[:cut])
    asked: list[list[str]] = []
    rank = ColBERT.rank_many

    def watched(self: ColBERT, queries: list[str], *rest: Any, **options: Any) -> Any:
        asked.append(queries)
        return rank(self, queries, *rest, **options)

    monkeypatch.setattr(ColBERT, "rank_many", watched)

    status, _, _ = rerank("--run", "bm25.trec", "--to", to)

    assert status == 0
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    # Of the three, those whose lines all lie before the cut are not asked again.
    lost = {
        name
        for line, end in zip(whole.decode().splitlines(), ends(whole), strict=True)
        for name in QUERIES
        if end > cut and line.startswith((f"{name} ", f'{{"query_id": "{name}"'))
    }
    assert asked == [[text for name, text in QUERIES.items() if name in lost]]


def ends(content: bytes) -> list[int]:
    """Where each line ends."""
    return [match.end() for match in re.finditer(rb"\n", content)]


def test_a_finished_run_is_left_as_it_is(rerank: Run, folder: Path) -> None:
    rerank("--run", "bm25.trec", "--to", "out.trec")
    before = (folder / "out.trec").read_bytes()

    status, out, err = rerank("--run", "bm25.trec", "--to", "out.trec")

    assert (status, err) == (0, "note: out.trec has 3 of 3 queries\n")
    assert "0 queries" in out
    assert (folder / "out.trec").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.parametrize("to", ["out.trec", "out.jsonl"])
def test_a_process_that_is_killed_leaves_what_it_had_finished(
    rerank: Run, folder: Path, tiny_checkpoint: Path, to: str
) -> None:
    rerank("--run", "bm25.trec", "--to", f"whole-{to}")
    # Killed by itself while it writes the second query, half of which is on the disk.
    code = (
        "import os, signal, sys\n"
        "from colbert_rag.cli import main, runs\n"
        "from colbert_rag import many\n"
        "many.WAVE_BYTES = {'cpu': 1}\n"
        "told = []\n"
        "for form in (runs.Trec, runs.JsonLines):\n"
        "    def written(self, query, *rest, whole=form.written):\n"
        "        text = whole(self, query, *rest)\n"
        "        return text[:len(text) // 2] if told else text\n"
        "    form.written = written\n"
        "from colbert_rag import ColBERT\n"
        "rank = ColBERT.rank_many\n"
        "def ranked(self, *rest, ready, **options):\n"
        "    def tell(place, ranking):\n"
        "        ready(place, ranking)\n"
        "        told.append(place)\n"
        "        if len(told) == 2:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rank(self, *rest, ready=tell, **options)\n"
        "ColBERT.rank_many = ranked\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["--queries", ".", "--run", "bm25.trec", "--to", to, "--device", "cpu"]
    command = ["rerank", *arguments, "--dtype", "float32", "--model", str(tiny_checkpoint)]
    root = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}", *command],
        cwd=folder,
    )
    assert ended.returncode == -signal.SIGKILL
    assert 0 < (folder / to).stat().st_size < (folder / f"whole-{to}").stat().st_size

    status, _, err = rerank("--run", "bm25.trec", "--to", to)

    assert status == 0
    assert f"note: {to} has 1 of 3 queries" in err
    assert sorted((folder / to).read_text().splitlines()) == sorted(
        (folder / f"whole-{to}").read_text().splitlines()
    )


def test_ctrl_c_says_how_far_it_came(
    rerank: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = ColBERT.rank_many

    def interrupted(self: ColBERT, *rest: Any, ready: Any, **options: Any) -> Any:
        def told(place: int, ranking: Any) -> None:
            ready(place, ranking)
            raise KeyboardInterrupt

        return rank(self, *rest, ready=told, **options)

    monkeypatch.setattr(many, "WAVE_BYTES", {"cpu": 1})
    with monkeypatch.context() as patch:
        patch.setattr(ColBERT, "rank_many", interrupted)
        status, _, err = rerank("--run", "bm25.trec", "--to", "out.trec")

    assert status == 130
    assert "out.trec has 1 of 3 queries; the same command goes on from there" in err
    status, _, err = rerank("--run", "bm25.trec", "--to", "out.trec")
    assert (status, err) == (0, "note: out.trec has 1 of 3 queries\n")
    assert len(read_trec(folder / "out.trec")) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file limits")
def test_a_disk_that_is_full_keeps_what_is_whole_and_the_same_command_goes_on(
    rerank: Run, folder: Path
) -> None:
    import resource

    assert rerank("--run", "bm25.trec", "--to", "whole.trec")[0] == 0
    whole = (folder / "whole.trec").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # In the middle of a line of the second query.
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.index(b"q2 Q0 saturn") + 20, before[1]))
    try:
        status, _, err = rerank("--run", "bm25.trec", "--to", "out.trec")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert (status, err.splitlines()) == (
        1,
        [
            "out.trec has 1 of 3 queries; the same command goes on from there",
            "error: out.trec: File too large: free some space, and try again",
        ],
    )
    status, _, err = rerank("--run", "bm25.trec", "--to", "out.trec")
    assert (status, err) == (0, "note: out.trec has 1 of 3 queries\n")
    assert (folder / "out.trec").read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(["--score", "sum"], id="scale"),
        pytest.param(["--top-k", "1"], id="top-k"),
        pytest.param(["--depth", "1"], id="candidates"),
        pytest.param(["--document-length", "9"], id="recipe"),
        pytest.param(["--long-documents", "windows"], id="windows"),
    ],
)
def test_another_run_is_not_gone_on_with(rerank: Run, folder: Path, change: list[str]) -> None:
    rerank("--run", "bm25.trec", "--to", "out.trec")
    before = (folder / "out.trec").read_bytes()

    status, _, err = rerank("--run", "bm25.trec", "--to", "out.trec", *change)

    assert status == 1
    assert "made by another model, with other options, or of other files" in err
    assert "Name another file with --to, or remove this one" in err
    assert (folder / "out.trec").read_bytes() == before


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "bm25.trec", "q.tsv"])
def test_files_of_others_are_not_written_over(rerank: Run, folder: Path, name: str) -> None:
    before = (folder / name).read_bytes()

    status, _, err = rerank("--run", "bm25.trec", "--to", name)

    assert status == 1
    assert f"{name} is there, and is not the beginning of this run" in err
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize("name", ["out.trec", "out.jsonl"])
def test_a_line_of_something_else_is_not_taken_for_one_that_was_cut_off(
    rerank: Run, folder: Path, name: str
) -> None:
    (folder / name).write_text("my notes")

    assert rerank("--run", "bm25.trec", "--to", name)[0] == 1
    assert (folder / name).read_text() == "my notes"


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({"q.tsv": "q1 no tab\n"}, ["--queries", "q.tsv"], "q.tsv:1: 'q1 no tab' is no query"),
        ({"q.tsv": "q\ta\nq\tb\n"}, ["--queries", "q.tsv"], "q.tsv:2: the id 'q' is there already"),
        ({"q.tsv": "q\t \n"}, ["--queries", "q.tsv"], "q.tsv:1: the text is empty"),
        ({"q.tsv": "\n"}, ["--queries", "q.tsv"], "q.tsv is empty: expected at least one query"),
        ({"q.x": '{"text": "a"}'}, ["--queries", "q.x"], "no id: looked for query_id"),
        ({"q.x": '{"_id": 1, "text": 2}'}, ["--queries", "q.x"], "found int as id and int as text"),
        ({"q.x": "{"}, ["--queries", "q.x"], "q.x:1: not JSON"),
        ({"q.tsv": b"\xff\ta\n"}, ["--queries", "q.tsv"], "q.tsv:1: not UTF-8"),
        ({}, ["--queries", "nothing.tsv"], "nothing.tsv: no such file or folder"),
        ({"ask.tsv": "q\ta"}, ["--queries", "asks.tsv"], "folder; did you mean 'ask.tsv'?"),
        ({"run.trec": ""}, ["--run", "rum.trec"], "no such file; did you mean 'run.trec'?"),
        (
            {"run": "q1 0 mars 1\n"},
            ["--run", "run"],
            "run:1: this looks like judgements, expected a run",
        ),
        (
            {"run": "q1 Q0 mars 1 x y\n"},
            ["--run", "run"],
            "run:1: the score is 'x', expected a number",
        ),
        (
            {"run": "q1 Q0 mars 1 nan y\n"},
            ["--run", "run"],
            "run:1: the score is 'nan', expected a number",
        ),
        ({"run": ""}, ["--run", "run"], "run is empty: expected at least one result"),
        ({"run": "q1 Q0 m 1 2 y\n" * 2}, ["--run", "run"], "run:2: the id 'm' is there already"),
        ({"run": "9 Q0 mars 1 2 y\n"}, ["--run", "run"], "run has no query of .: it has '9', and"),
        ({"run": "q1 Q0 pluto 1 2 y\n"}, ["--run", "run"], "1 documents that are not in corpus"),
        (
            {"two.jsonl": '{"id": "a", "text": "b"}\n{"id": "a", "text": "c"}\n'},
            ["two.jsonl"],
            "two.jsonl:2: the id 'a' is that of another document",
        ),
        ({"no.txt": "\n"}, ["no.txt"], "no documents found"),
        (
            {"q.tsv": "a b\tred planet\n"},
            ["--queries", "q.tsv", "corpus.jsonl"],
            "the id 'a b' holds a space or nothing",
        ),
        (
            {"q.tsv": "1\tred planet\n", "mars\udcff.txt": "mars is red"},  # not named in UTF-8
            ["--queries", "q.tsv", "mars\udcff.txt"],
            "is no Unicode text, and a TREC run is. Write JSON Lines instead",
        ),
    ],
)
def test_wrong_files_get_clear_words(
    rerank: Run, folder: Path, files: dict[str, str | bytes], arguments: list[str], message: str
) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    status, out, err = rerank("--to", "out.trec", *arguments)

    assert (status, out) == (1, "")
    assert message in err
    assert not (folder / "out.trec").exists()


def test_what_does_not_match_is_noted(rerank: Run, folder: Path) -> None:
    (folder / "run").write_text("q1 Q0 mars 1 2 y\nq9 Q0 mars 1 2 y\n")

    status, _, err = rerank("--run", "run", "--to", "out.trec")

    assert status == 0
    assert "note: run has nothing for 2 of 3 queries" in err
    assert "note: run has 1 queries that are not asked" in err
    assert list(read_trec(folder / "out.trec")) == ["q1"]


def test_errors_of_reading_come_before_the_model(folder: Path) -> None:
    arguments = ["--queries", "nothing", "--to", "out.trec", "--model", "./no/such/model"]

    assert main(["rerank", *arguments]) == 1


def test_documents_may_be_piped_in(
    rerank: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "corpus.jsonl").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert rerank("--run", "bm25.trec", "--to", "out.trec", queries="q.tsv")[0] == 0

    assert len(read_trec(folder / "out.trec")) == 3


def test_a_space_in_an_id_is_no_matter_in_json_lines(rerank: Run, folder: Path) -> None:
    (folder / "q.tsv").write_text("a b\tred planet\n")

    assert rerank("corpus.jsonl", "--to", "out.jsonl", queries="q.tsv")[0] == 0
    assert json.loads((folder / "out.jsonl").read_text())["query_id"] == "a b"


def test_the_option_chooses_the_other_arguments() -> None:
    assert RERANK.chosen(["--queries", "x"]) is rerank_many
    assert RERANK.chosen(["-k", "1", "--queries=x"]) is rerank_many
    assert RERANK.chosen(["--", "--queries"]) is RERANK.module
    assert RERANK.chosen(["a query", "x.txt"]) is RERANK.module


def test_its_help_fits_80_columns_and_its_examples_are_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = _parser(RERANK, rerank_many)
    calls = re.findall(r"colbert-rag rerank(.*?)$", parser.epilog or "", re.MULTILINE)

    assert max(map(len, parser.format_help().splitlines())) <= 80
    assert len(calls) == 5
    assert [_parsed(parser, shlex.split(call)) for call in calls]
