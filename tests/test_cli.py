"""The command line: results, wrong usage, errors in one line, and what it does not import."""

import dataclasses
import errno
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import colbert_rag
from colbert_rag import ColBERT
from colbert_rag.cli import COMMANDS, _parsed, _parser, main, nearby, output, rerank, servers
from colbert_rag.cli.output import say_json
from colbert_rag.cli.reading import SourceDocument
from colbert_rag.cli.spelling import NOT_OFFERED, SPELLINGS, in_options
from colbert_rag.settings import DEFAULT_CHECKPOINT, Settings
from tests.helpers.oracle import load_tensors
from tests.helpers.tiny import DROP, edit_json

FACTS = [
    {"id": "venus", "text": "Venus is often called Earth's twin because of its size."},
    {"id": "mars", "title": "Mars", "text": "Mars is known as the Red Planet.", "moons": 2},
    {"id": "jupiter", "text": "Jupiter has a prominent red spot."},
    {"id": "saturn", "text": "Saturn, famous for its rings, is mistaken for the Red Planet."},
    {"id": "none", "text": ""},
]
CONTENTS = [
    FACTS[0]["text"],
    "Mars Mars is known as the Red Planet.",
    FACTS[2]["text"],
    FACTS[3]["text"],
    "",
]
QUERY = "Which planet is red?"
CUT = "note: 1 of 5 documents are longer than 40 tokens and were cut there"
WHOLE = "; --long-documents windows scores them whole\n"
HEAVY = {"torch", "transformers", "pydantic", "langchain_core", "llama_index"}


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(f"{json.dumps(fact)}\n" for fact in FACTS), encoding="utf-8")
    return path


@pytest.fixture
def run(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `rerank` on the tiny model: status, standard output, standard error."""

    def run_rerank(*arguments: object) -> tuple[int, str, str]:
        exact = ["--model", tiny_checkpoint, "--device", "cpu", "--dtype", "float32"]
        status = main(["rerank", *map(str, arguments), *map(str, exact)])
        return status, *capsys.readouterr()

    return run_rerank


@pytest.fixture
def pipe_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes on standard input."""

    def put(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit status and message of wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code, capsys.readouterr().err


# rerank: results


def test_json_results_are_those_of_the_library(run, facts: Path, tiny_colbert) -> None:
    expected = tiny_colbert.rank(QUERY, CONTENTS)

    status, out, err = run(QUERY, facts, "--json", "--score", "sum")

    found = records(out)
    assert (status, err) == (0, f"{CUT}{WHOLE}")
    assert [at["index"] for at in found] == [at.index for at in expected]
    assert [at["score"] for at in found] == pytest.approx([at.score for at in expected], abs=1e-4)
    assert [at["rank"] for at in found] == [1, 2, 3, 4, 5]


def test_a_json_result_carries_all_that_was_read(run, facts: Path) -> None:
    _, out, _ = run(QUERY, facts, "--json")

    mars = next(at for at in records(out) if at["id"] == "mars")
    assert (mars["source"], mars["line"], mars["title"]) == (str(facts), 2, "Mars")
    assert (mars["text"], mars["metadata"]) == (FACTS[1]["text"], {"moons": 2})


def test_the_mean_is_the_sum_over_the_rows_of_the_query(run, facts: Path) -> None:
    _, means, _ = run(QUERY, facts, "--json")
    _, sums, _ = run(QUERY, facts, "--json", "--score", "sum")

    # A Stanford checkpoint fills its queries up to 32 tokens.
    assert [at["score"] * 32 for at in records(means)] == pytest.approx(
        [at["score"] for at in records(sums)], abs=1e-4
    )


def test_reading_in_windows_changes_nothing(
    run, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = run(QUERY, facts, "--json")
    monkeypatch.setattr(rerank, "BATCH_DOCUMENTS", 2)
    _, parts, _ = run(QUERY, facts, "--json")

    for one, other in zip(records(whole), records(parts), strict=True):
        assert one | {"score": 0} == other | {"score": 0}
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_long_document_is_scored_by_its_best_window_when_asked_to(
    run, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    text = f"{'Venus is hot. ' * 60}Mars is known as the Red Planet. {'Saturn has rings. ' * 60}"
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"title": "The planets", "text": text}), encoding="utf-8")
    reader = ColBERT.from_pretrained(
        tiny_checkpoint, device="cpu", dtype="float32", long_documents="windows"
    )
    (expected,) = reader.rank(QUERY, [f"The planets {text}"])
    asked = ("--long-documents", "windows")

    _, out, _ = run(QUERY, path, "--json", "--score", "sum", *asked)
    _, table, _ = run(QUERY, path, *asked)

    (found,) = records(out)
    start, stop = found["span"]
    piece = text[start:stop]
    before = len("The planets ")
    assert found["score"] == pytest.approx(expected.score, abs=1e-4)
    assert (start + before, stop + before) == expected.span
    assert 0 < start < stop < len(text)
    assert " ".join(piece.split())[:40] in " ".join(table.split())


def test_the_title_is_no_part_of_the_text_that_a_span_points_into() -> None:
    document = SourceDocument("a.jsonl", 1, "text", title="A title")

    assert rerank.RankedDocument(1.0, 0, document, (0, 10)).span == (0, 2)
    assert rerank.RankedDocument(1.0, 0, document).span is None


@pytest.mark.parametrize(("top_k", "shown"), [("2", 2), ("99", 5), ("0", 5)])
def test_as_many_as_asked_for_are_shown(run, facts: Path, top_k: str, shown: int) -> None:
    assert len(records(run(QUERY, facts, "--json", "-k", top_k)[1])) == shown


def test_what_scores_below_the_limit_is_left_out(run, facts: Path) -> None:
    everything = records(run(QUERY, facts, "--json")[1])
    limit = everything[2]["score"]

    assert records(run(QUERY, facts, "--json", "--min-score", limit)[1]) == everything[:3]


def test_the_table_shows_place_score_source_and_text(run, facts: Path) -> None:
    status, out, _ = run(QUERY, facts, "--top-k", "5")

    assert status == 0
    assert re.search(rf"^   \d  +0\.\d{{4}}  {re.escape(str(facts))}:2", out, re.MULTILINE)
    assert f"{' ' * 15}Mars is known as the Red Planet." in out
    assert out.startswith("5 of 5 documents by ")


def test_the_table_fits_the_terminal(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Path("long.md").write_text(
        f"# {'planet ' * 50}\n{'planet ' * 500}\n# B\n{'x' * 500}", encoding="utf-8"
    )

    _, out, _ = run(QUERY, "long.md")

    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "planet ..." in out


def test_a_document_cannot_steer_the_terminal(run, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\x1b[2Jgone\x07", encoding="utf-8")

    assert "\u241b[2Jgone\u2407" in run(QUERY, path)[1]


def test_wide_characters_fit_the_terminal(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("\u706b\u661f" * 200, encoding="utf-8")

    _, out, _ = run(QUERY, "x.txt")

    # Each takes two columns.
    assert max(line.count("\u706b") for line in out.splitlines()) * 4 + 15 <= 80


def test_options_may_stand_anywhere(run, facts: Path) -> None:
    assert run("-k", "1", QUERY, "--json", facts) == run(QUERY, facts, "--json", "-k", "1")


def test_a_query_may_begin_with_a_dash_after_two_dashes(tiny_checkpoint: Path) -> None:
    command = next(command for command in COMMANDS if command.name == "rerank")

    parsed = _parsed(_parser(command), ["-k", "1", "--", "-1 or 1?", "a.txt", "b.txt"])

    assert (parsed.query, parsed.files, parsed.top_k) == ("-1 or 1?", ["a.txt", "b.txt"], 1)


def test_standard_input_is_read_where_no_file_is_named(run, pipe_in) -> None:
    pipe_in(b'{"text": "red", "id": 1}\n{"text": "blue", "id": 2}\n')

    status, out, _ = run(QUERY, "--json")

    assert status == 0
    assert {(at["source"], at["id"], at["text"]) for at in records(out)} == {
        ("stdin", "1", "red"),
        ("stdin", "2", "blue"),
    }


def test_lines_of_standard_input_are_documents_when_asked_to(run, pipe_in) -> None:
    pipe_in("eins\nzwei\n\u00fcber\n".encode())

    assert {at["text"] for at in records(run(QUERY, "-", "--split", "lines", "--json")[1])} == {
        "eins",
        "zwei",
        "\u00fcber",
    }


def test_many_lines_in_one_paragraph_get_a_hint(run, pipe_in) -> None:
    pipe_in(b"one\ntwo\n")

    status, out, err = run(QUERY, "--json")

    assert (status, len(records(out))) == (0, 1)
    assert "--split lines" in err


def test_no_documents_are_an_error(run, pipe_in, tmp_path: Path) -> None:
    pipe_in(b"\n")
    said = "error: no documents found in {}, so nothing can be ranked\n"

    assert run(QUERY, "--json") == (1, "", said.format("standard input"))

    (empty := tmp_path / "empty.txt").write_text("\n")
    assert run(QUERY, empty, "-") == (1, "", said.format(f"{empty}, standard input"))


def test_the_offline_model_knows_the_red_planet(
    facts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "Which planet is known as the Red Planet?"

    assert main(["rerank", question, str(facts), "-m", "offline-minilm", "--json"]) == 0

    assert records(capsys.readouterr().out)[0]["id"] == "mars"


# rerank: errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "required: QUERY", id="no query"),
        pytest.param([" ", "x.txt"], "QUERY is empty", id="a blank query"),
        pytest.param(["-", "x.txt"], "rerank --queries - FILE --to -", id="queries piped in"),
        pytest.param(["\udcff", "x.txt"], "QUERY is not valid", id="a query that is not Unicode"),
        pytest.param(["q", "x.txt", "-k", "-1"], "'-1' is not a whole number", id="top_k"),
        pytest.param(
            ["q", "x.txt", "-k", "1" + 18 * "0"],
            "'1000000000000000000' is too large, expected a whole number of 0 to "
            "999,999,999,999,999,999",
            id="one digit too many",
        ),
        pytest.param(["q", "x.txt", "-k", "9" * 5000], "9...' is too large", id="many digits"),
        pytest.param(["q", "x.txt", "--min-score", "nan"], "not a finite number", id="nan"),
        pytest.param(["q", "x.txt", "--min-score", "1e400"], "not a finite number", id="1e400"),
        pytest.param(["q", "x.txt", "--min-score", "best"], "not a finite number", id="a word"),
        pytest.param(["q", "x.txt", "--score", "max"], "invalid choice: 'max'", id="score"),
        pytest.param(["q", "x.txt", "--query-length", "2"], "--query-length is 2", id="length"),
        pytest.param(["q", "x.txt", "--top", "2"], "unrecognized arguments: --top", id="typo"),
    ],
)
def test_wrong_usage_is_said_in_two_lines(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = refused(["rerank", *arguments], capsys)

    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 2


def test_a_device_that_is_not_there_is_wrong_usage(
    facts: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rerank", "q", str(facts), "-m", str(tiny_checkpoint), "--device", "cuda:99"]

    status, err = refused(arguments, capsys)

    assert status == 2
    assert "device is 'cuda:99'" in err


def test_a_terminal_on_standard_input_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(io.BytesIO()))

    status, err = refused(["rerank", "q"], capsys)

    assert status == 2
    assert "no FILE is named, and nothing is piped in" in err
    (tmp_path / "facts.txt").write_text("mars")
    named = str(tmp_path / "facts.txt")
    err = refused(["rerank", named], capsys)[1]
    assert err.endswith(f"piped in; QUERY is {named!r}, which is a file\n")


def test_a_query_that_may_have_been_forgotten_is_said(run, pipe_in, facts: Path) -> None:
    pipe_in(b"mars\n")

    status, out, err = run(facts, "--json")

    assert (status, len(records(out))) == (0, 1)
    assert f"note: standard input is read; QUERY is {str(facts)!r}, which is a file\n" in err


NAMELESS = "n" * 300
"""No file system holds a name of so many bytes."""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        pytest.param(["FACTS", "--field", "a\0b"], 2, "holds a zero byte", id="zero byte"),
        pytest.param([NAMELESS], 1, "File name too long", id="a long name"),
        pytest.param(
            ["FACTS", "--query-marker", "\ud800"], 1, "not in the vocabulary", id="marker"
        ),
        pytest.param(["FACTS", "--query-length", "9" * 30], 1, "at most", id="a huge length"),
        pytest.param(["FACTS", "--batch-tokens", "-1"], 2, "at least 1", id="a negative size"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="Windows says it in other words")
def test_odd_arguments_get_words(
    words: list[str],
    status: int,
    said: str,
    run,
    facts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(facts) if word == "FACTS" else word for word in words]
    try:
        found, _, err = run("q", *given)
    except SystemExit as stopped:
        found, err = stopped.code, capsys.readouterr().err

    assert (found, said in err) == (status, True), err
    assert ("usage: " in err) == (status == 2)


def test_any_number_of_results_up_to_the_limit_is_taken(run, facts: Path) -> None:
    status, out, _ = run("q", facts, "-k", "999999999999999999", "--json")
    assert (status, len(out.splitlines())) == (0, len(FACTS))

    status, out, _ = run("q", facts, "-k", 30 * "0" + "1", "--json")
    assert (status, len(out.splitlines())) == (0, 1)


@pytest.mark.parametrize("folder", ["~nobody-of-that-name", "~nobody-of-that-name/x"])
def test_the_home_of_nobody_is_a_folder_like_any_other(run, facts: Path, folder: str) -> None:
    assert run("q", facts, "--cache-folder", folder)[0] == 0


def test_a_missing_file_is_one_line(run) -> None:
    assert run("q", "nowhere.txt") == (1, "", "error: nowhere.txt: no such file or folder\n")


@pytest.mark.parametrize(
    "missing", ["answer.txt", "answers", "answers.md", "ANSWERS.TXT", "anwsers.txt"]
)
def test_a_file_beside_a_missing_one_is_named_where_it_was_meant(
    run, missing: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("answers.txt").write_text("Mars is red.")
    if Path(missing).exists():
        pytest.skip("the file system takes both for one")

    assert run("q", f"./{missing}") == (
        1,
        "",
        f"error: ./{missing}: no such file or folder; did you mean 'answers.txt'?\n",
    )


def test_a_word_near_the_name_of_a_file_is_perhaps_one_of_the_query(
    run, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("moons.txt").write_text("Mars has two moons.")

    assert run("two", "moons", "moons.txt")[2] == (
        "error: moons: no such file or folder; did you mean 'moons.txt'? If it is a word of the "
        "query, quote that: 'two moons'\n"
    )


def test_a_file_in_another_folder_or_of_another_name_is_not_named(run, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "answers.txt").write_text("Mars is red.")
    (tmp_path / "venus.txt").write_text("Venus is hot.")

    for missing in (tmp_path / "answer.txt", tmp_path / "none" / "answers.txt", "a" * 999):
        assert "did you mean" not in run("q", missing)[2]


def test_a_missing_file_of_a_huge_folder_costs_little(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("answers.txt").write_text("Mars is red.")
    monkeypatch.setattr(nearby, "MOST_NAMES", 0)

    assert run("q", "answer.txt")[2] == "error: answer.txt: no such file or folder\n"


def test_a_query_without_quotes_is_told_so(run, facts: Path) -> None:
    _, _, err = run("money", "back", "soon", facts)

    assert err == (
        "error: back: no such file or folder. If it is a word of the query, quote that: "
        "'money back soon'\n"
    )


def test_a_file_of_a_folder_that_cannot_be_read_is_left_out(run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Mars is red.\n")
    # The flaw lies behind a good record, which is left out with it.
    (tmp_path / "b.jsonl").write_text('{"text": "Mars has two moons."}\n{"text": \n')
    (tmp_path / "c.txt").write_bytes(b"%PDF-1.7\nMars\n")

    status, out, err = run("mars", tmp_path, "--json")

    assert status == 0
    assert [record["text"] for record in records(out)] == ["Mars is red."]
    assert f"note: left out, {tmp_path / 'b.jsonl'}:2: not JSON" in err
    assert f"note: left out, {tmp_path / 'c.txt'} is a PDF file" in err


def test_a_file_that_may_not_be_read_is_left_out_by_name(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Mars is red.\n")
    opened = Path.open

    def refuse(path: Path, *rest: Any, **more: Any) -> Any:
        if path.name == "b.txt":  # whose mode would not stop root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)

    status, out, err = run("mars", tmp_path, "--json")

    assert (status, len(records(out))) == (0, 1)
    assert f"note: left out, {tmp_path / 'b.txt'}: Permission denied\n" in err


def test_a_file_that_is_named_is_not_left_out(run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Mars is red.\n")
    (tmp_path / "b.jsonl").write_text('{"text": \n')

    assert run("mars", tmp_path / "a.txt", tmp_path / "b.jsonl")[0] == 1


def test_a_flaw_in_a_file_is_one_line_with_its_place(run, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")

    status, out, err = run("q", path)

    assert (status, out) == (1, "")
    assert re.fullmatch(rf"error: {re.escape(str(path))}:2: not JSON: .*\n", err)


def test_a_missing_model_is_one_line(facts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["rerank", "q", str(facts), "--model", "./no/such/folder"])

    err = capsys.readouterr().err
    assert status == 1
    assert err.startswith("error: './no/such/folder' is neither a folder")
    assert err.count("\n") == 1


def test_the_reading_error_comes_before_the_model_is_looked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["rerank", "q", "nowhere.txt", "--model", "./no/such/folder"]) == 1
    assert "nowhere.txt" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_no_traceback(run, facts: Path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(servers, "open_model", interrupt)

    assert run("q", facts) == (130, "", "interrupted\n")


# inspect


def test_inspect_says_what_the_files_say(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["inspect", str(tiny_checkpoint)])

    out = capsys.readouterr().out
    facts = dict(re.findall(r"^(\S[\w-]*(?: \w+)?) {2,}(.*)$", out, re.MULTILINE))
    assert status == 0
    assert facts["Format"] == "stanford"
    assert facts["Backbone"].startswith("BERT (model_type bert), 2 layers, 32 wide")
    assert facts["Projection"] == "32 -> 16"
    assert facts["Queries"].startswith("marker '[unused0]', 32 tokens at most, filled up to 32")
    assert facts["Documents"] == "marker '[unused1]', 40 tokens at most"
    assert facts["Skip-list"].startswith('32 words: ! " #')
    assert facts["Opens"].startswith("yes")


def parameters(folder: Path) -> int:
    """How many numbers the weights have, by safetensors; a pooler is not used."""
    folders = {path.parent for path in folder.rglob("*.safetensors")}
    stored = [item for path in folders for item in load_tensors(path).items()]
    return sum(tensor.numel() for name, tensor in stored if "pooler." not in name)


def test_inspect_gives_the_same_as_json(
    tiny_checkpoint: Path, tiny_colbert, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["inspect", str(tiny_checkpoint), "--json"])

    (found,) = records(capsys.readouterr().out)
    assert status == 0
    assert (found["opens"], found["refused"]) == (True, [])
    assert found["dim"] == tiny_colbert.dim
    assert found["query"] == {"marker": "[unused0]", "prompt": "", "length": 32}
    assert found["expansion"] == {"token": "[MASK]", "length": 32, "attends": False}
    assert found["parameters"] == parameters(tiny_checkpoint)
    assert found["bytes"] == (tiny_checkpoint / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("pylate-bert-residual", [(32, 64, True, False), (64, 16, False, False)]),
        ("pylate-bert-gelu-bias", [(32, 64, False, True), (64, 16, False, True)]),
    ],
)
def test_inspect_describes_every_layer_of_the_projection(
    name: str,
    projection: list[tuple[object, ...]],
    checkpoint: Callable[[str], Path],
    colbert,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["inspect", str(checkpoint(name)), "--json"])

    (found,) = records(capsys.readouterr().out)
    layers = [(at["in"], at["out"], at["residual"], at["bias"]) for at in found["projection"]]
    assert layers == projection
    assert found["parameters"] == parameters(checkpoint(name))


def test_inspect_takes_the_callers_own_choices(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(tiny_checkpoint), "--json", "--query-length", "8", "--no-query-expansion"])

    (found,) = records(capsys.readouterr().out)
    assert (found["query"]["length"], found["expansion"]) == (8, None)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def too_few_rows(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=10)


def no_model_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type=DROP)


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def as_published(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "spoil", "error", "described"),
    [
        pytest.param("raw-bert", as_published, "MissingProjectionError", False, id="no projection"),
        pytest.param(
            "stanford-bert-pickled", as_published, "PickleWeightsError", False, id="pickle"
        ),
        pytest.param(
            "stanford-xmod-unknown-markers", as_published, "MarkerError", True, id="markers"
        ),
        pytest.param("stanford-bert", no_tokenizer, "TokenizerError", True, id="no tokenizer"),
        pytest.param("stanford-bert", too_few_rows, "TokenizerError", True, id="too few rows"),
        pytest.param("stanford-bert", no_model_type, "UnsupportedBackboneError", False, id="type"),
        pytest.param("stanford-bert", truncated, "CorruptWeightsError", False, id="truncated"),
        pytest.param("stanford-bert", no_config, "NotACheckpointError", False, id="no config"),
    ],
)
def test_inspect_says_what_would_be_refused_and_why(
    name: str,
    spoil: Callable[[Path], None],
    error: str,
    described: bool,
    copy_of: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copy_of(name)
    spoil(folder)

    status = main(["inspect", str(folder)])
    text = capsys.readouterr().out
    shown = set(re.findall(r"^\S+", text, re.MULTILINE))
    assert main(["inspect", str(folder), "--json"]) == status == 1
    (found,) = records(capsys.readouterr().out)

    assert f"Refused {error}: " in " ".join(text.split())
    assert [at["error"] for at in found["refused"]] == [error]
    assert ("Backbone" in shown, "Files" in shown) == (described, not described)
    assert ("format" in found) is described


@pytest.mark.parametrize("spoil", [no_tokenizer, damaged_tokenizer])
def test_inspect_shows_the_callers_choices_without_a_tokenizer(
    spoil: Callable[[Path], None],
    copy_of: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copy_of("stanford-bert")
    spoil(folder)

    main(["inspect", str(folder), "--json", "--query-marker", "[X]", "--document-length", "9"])

    (found,) = records(capsys.readouterr().out)
    assert [reason["error"] for reason in found["refused"]] == ["TokenizerError"]
    assert (found["query"]["marker"], found["document"]["length"]) == ("[X]", 9)
    assert (found["vocabulary"], found["expansion"]["token"]) == (None, None)


def test_inspect_lists_the_languages_of_a_backbone_that_has_adapters(
    checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", str(checkpoint("stanford-xmod"))])

    assert re.search(r"^Languages +en_XX, de_DE;", capsys.readouterr().out, re.MULTILINE)


def test_inspect_names_a_backbone_that_is_refused(
    copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", model_type="qwen3")

    assert main(["inspect", str(folder)]) == 1

    out = " ".join(capsys.readouterr().out.split())
    assert "Refused UnsupportedBackboneError: Qwen3: nothing in config.json says" in out


def test_inspect_of_nothing_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "./no/such/folder"]) == 1
    assert capsys.readouterr().err.startswith("error: './no/such/folder' is neither")


# The program as a whole


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=root, **options
    )


def loaded_by(*arguments: str) -> set[str]:
    """Packages that a command imports, in a process of its own."""
    code = (
        "import contextlib, io, sys\n"
        "from colbert_rag.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({list(arguments)!r})\n"
        "print(*sys.modules)"
    )
    return {name.partition(".")[0] for name in python("-c", code, check=True).stdout.split()}


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    assert loaded_by(command, "--help").isdisjoint({*HEAVY, "huggingface_hub", "numpy"})


def test_inspect_imports_neither_torch_nor_a_framework(tiny_checkpoint: Path) -> None:
    loaded = loaded_by("inspect", str(tiny_checkpoint))

    assert "tokenizers" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_fits_80_columns(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    assert max(map(len, _parser(command).format_help().splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_examples_in_the_help_are_valid(command) -> None:
    parser = _parser(command)
    calls = re.findall(rf"colbert-rag {command.name}(.*?)(?:\||$)", parser.epilog, re.MULTILINE)

    assert calls
    assert [_parsed(parser, shlex.split(call)) for call in calls]


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])

    out = capsys.readouterr().out
    assert stopped.value.code == 0
    listed = re.findall(r"^  (\w+)  +\w", out, re.MULTILINE)
    assert listed == [command.name for command in COMMANDS]


def test_no_command_is_wrong_usage_with_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    status, err = refused(["xyzzy"], capsys)

    assert status == 2
    assert "'xyzzy' is no command, expected one of rerank, explain, index" in err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["rernk"], "rerank"),
        (["help"], "--help"),
        (["help", "rerank"], "--help"),
        (["-V"], "--version"),
        (["--hlp"], "--help"),
        (["rerank", "q", "x.txt", "--jsn"], "--json"),
        (["rerank", "q", "x.txt", "--min_score=0.5"], "--min-score"),
        (["rerank", "q", "x.txt", "--limit", "3"], "--top-k"),
        (["rerank", "q", "x.txt", "--top_k", "3"], "--top-k"),
        (["index", "x.txt", "--to", "x.sqlite", "--prun"], "--prune"),
    ],
)
def test_what_was_probably_meant_is_named(
    typed: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = refused(typed, capsys)

    assert status == 2
    assert err.endswith(f"; did you mean {meant}?\n")


@pytest.mark.parametrize("words", [["--json", "rerank", "q"], ["-m", "x", "rerank", "q"]])
def test_an_option_before_the_command_is_told_its_place(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = refused(words, capsys)

    option = words[0]
    assert status == 2
    assert err.endswith(
        f"{option} stands before the command: options come behind it, as in colbert-rag rerank "
        f"... {option}\n"
    )


@pytest.mark.parametrize("word", ["json", ""])
def test_a_word_too_many_is_no_misspelt_option(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(["info", "x.sqlite", word], capsys)[1]

    assert err.endswith(
        f"unrecognized arguments: {word}; colbert-rag info --help lists what there is\n"
    )


def test_an_option_that_is_like_none_points_to_help(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(["rerank", "q", "x.txt", "--zzz"], capsys)[1]

    assert err.endswith("arguments: --zzz; colbert-rag rerank --help lists what there is\n")


def test_a_search_for_words_without_quotes_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(["search", "money", "back", "x.sqlite"], capsys)[1]

    assert err.endswith("x.sqlite; a QUERY of several words needs quotes around it\n")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])

    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"colbert-rag {colbert_rag.__version__}\n"


def test_it_runs_as_a_module() -> None:
    assert python("-m", "colbert_rag.cli", "--version").stdout.startswith("colbert-rag ")


def test_a_reader_who_has_had_enough_is_no_error(tiny_checkpoint: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "colbert_rag.cli", "inspect", str(tiny_checkpoint)]

    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk to test on")
def test_a_full_disk_is_one_line(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "colbert_rag.cli", "inspect", str(tiny_checkpoint)]

    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)

    assert done.returncode == 1
    advice = b"free some space, and try again"
    assert done.stderr == b"error: standard output: No space left on device: %s\n" % advice


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes it by >&-")
@pytest.mark.parametrize("words", [["inspect"], ["--version"], ["--help"], []])
def test_a_closed_output_is_one_line(words: list[str], tiny_checkpoint: Path) -> None:
    typed = [*words, str(tiny_checkpoint)] if words == ["inspect"] else words
    command = shlex.join([sys.executable, "-m", "colbert_rag.cli", *typed])

    done = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, check=False)

    message = b"error: standard output is closed: send it to a file, or to /dev/null\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes it by 2>&-")
def test_a_closed_log_does_not_end_the_work(facts: Path, tiny_checkpoint: Path) -> None:
    words = ["rerank", QUERY, str(facts), "-m", str(tiny_checkpoint), "--device", "cpu", "--json"]
    command = shlex.join([sys.executable, "-m", "colbert_rag.cli", *words])

    done = subprocess.run(["sh", "-c", f"{command} 2>&-"], capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")
    assert len(records(done.stdout.decode())) == len(CONTENTS)


class Full(io.StringIO):
    """A log on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_a_full_disk_refuses_does_not_end_the_work(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Full())

    assert main(["inspect", str(tiny_checkpoint)]) == 0
    assert main(["inspect", str(tiny_checkpoint / "nowhere")]) == 1


def test_the_default_model_is_the_librarys() -> None:
    command = next(command for command in COMMANDS if command.name == "rerank")

    assert _parser(command).parse_args(["q"]).checkpoint == DEFAULT_CHECKPOINT


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        pytest.param("utf-8", '{"text": "\u00fcber \u706b"}\n', id="shown as it is"),
        pytest.param("cp1252", '{"text": "\\u00fcber \\u706b"}\n', id="escaped on old Windows"),
    ],
)
def test_json_reaches_any_output(
    encoding: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr("sys.stdout", stream)

    output.say_json({"text": "\u00fcber \u706b"})

    stream.flush()
    assert stream.buffer.getvalue() == written.encode(encoding)


def test_text_reaches_any_output(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\u706b burns", encoding="utf-8")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stream)

    status = main(["rerank", "fire", str(path), "-m", str(tiny_checkpoint)])

    assert status == 0
    assert rb"\u706b burns" in stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("query_length is 2, expected at least 4", "--query-length is 2, expected at least 4"),
        ("Pass query_marker= with an entry", "Pass --query-marker with an entry"),
        ("pass raw_token_embeddings=True", "pass --raw"),
        ("Pass query_expansion=False if", "Pass --no-query-expansion if"),
        ("use checkpoint='offline-minilm' after", "use --model offline-minilm after"),
        ("Try dtype='float32'", "Try --dtype float32"),
        ("the checkpoint is damaged", "the checkpoint is damaged"),
        ("spelling, or pass token=", "spelling, or pass HF_TOKEN in the environment"),
        ("made with token_pooling=2.0, found", "made with --token-pooling 2.0, found"),
        ("in /a/query_length=3/b, 'device=x'", "in /a/query_length=3/b, 'device=x'"),
    ],
)
def test_errors_speak_of_options(message: str, said: str) -> None:
    assert in_options(message) == said


def test_every_setting_has_an_option_or_is_known_to_have_none() -> None:
    parsers = {command.name: _parser(command) for command in COMMANDS}
    offered = {
        option: action.dest
        for name in ("rerank", "index")
        for action in parsers[name]._actions
        for option in action.option_strings
    }
    settings = {field.name for field in dataclasses.fields(Settings)}

    assert settings - set(offered.values()) == {*NOT_OFFERED, "token"}
    assert set(SPELLINGS) == settings - NOT_OFFERED | {"token_pooling"}
    assert all(offered[option] == name for name, option in SPELLINGS.items() if name != "token")


def test_a_pickle_is_refused_with_the_option_that_reads_it(
    facts: Path, checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(checkpoint("stanford-bert-pickled"))

    assert main(["rerank", "q", str(facts), "-m", folder]) == 1

    err = capsys.readouterr().err
    assert "pass --allow-pickle to read it" in err
    assert "allow_pickle" not in err


def test_wrong_usage_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    err = refused(["rerank", "q", "--\x1b[2J"], capsys)[1]

    assert "\u241b[2J" in err
    assert "\x1b" not in err


def test_what_a_file_holds_does_not_reach_the_terminal_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (named := tmp_path / "red\x1b[31m.jsonl").write_text('{"te\x1bxt": 1}\n', encoding="utf-8")

    status = main(["rerank", QUERY, str(named)])

    err = capsys.readouterr().err
    assert status == 1
    assert err.startswith("error: ")
    assert "\x1b" not in err


CONTROLS = "".join(
    map(chr, [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F)])
) + "".join(map(chr, range(0x2066, 0x206A)))
OBEYED = re.compile(f"[{re.escape(CONTROLS.replace(chr(10), ''))}]")
"""By ECMA-48 (C0, C1), Unicode's bidirectional algorithm (UAX 9) and its line ends (UAX 14)."""


@pytest.mark.parametrize("command", ["rerank", "index", "search", "explain", "info"])
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_nothing_that_is_quoted_steers_the_terminal(
    command: str, form: list[str], tmp_path: Path, tiny_checkpoint: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = f"fi{CONTROLS.replace(chr(0), '')}le".replace("/", "")
    names = (f"{file}.jsonl", f"{file}.sqlite") if os.name != "nt" else ("a.jsonl", "a.sqlite")
    record = {"id": f"i{CONTROLS}d", "text": f"ma{CONTROLS}rs", "title": f"a{CONTROLS}b"}
    Path(names[0]).write_text(json.dumps(record | {f"k{CONTROLS}": CONTROLS}), encoding="utf-8")
    model = ["-m", str(tiny_checkpoint), "--device", "cpu", "--dtype", "float32"]
    index = ["index", names[0], "--to", names[1], *model]
    query = f"q{CONTROLS.replace(chr(0), '')}"
    typed = {
        "rerank": ["rerank", query, names[0], *model, *form],
        "explain": ["explain", query, names[0], *model, *form],
        "index": index,
        "search": ["search", query, names[1], "--device", "cpu", "--dtype", "float32", *form],
        "info": ["info", names[1], *form],
    }
    if command in ("search", "info"):
        assert main(index) == 0
        capsys.readouterr()

    assert main(typed[command]) == 0

    out, err = capsys.readouterr()
    assert not OBEYED.findall(out + err)
    if form and command != "index":
        (found,) = records(out)
        if command in ("rerank", "search"):
            assert found["text"].endswith(record["text"])
            assert found["metadata"][f"k{CONTROLS}"] == CONTROLS


def test_what_libraries_log_and_warn_of_does_not_steer_the_terminal() -> None:
    code = (
        "import logging, warnings\n"
        "from colbert_rag import cli\n"
        "def run(words):\n"
        "    logging.getLogger('some.library').warning('a \\x1b[31m%s', '\\u202eb')\n"
        "    warnings.warn('c\\x9bd')\n"
        "    return 0\n"
        "cli._run = run\n"
        "cli.main([])\n"
    )

    done = python("-c", code)

    assert "a \u241b[31mb\n" in done.stderr
    assert "c\ufffdd" in done.stderr
    assert not OBEYED.findall(done.stderr)


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", CONTROLS, "\U0001f600"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_any_text_is_json_on_any_output(text: str, encoding: str, monkeypatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding, newline="\n"))

    say_json({text: text})
    sys.stdout.flush()

    assert json.loads(written.getvalue()) == {text: text}
    assert not OBEYED.findall(written.getvalue().decode(encoding))


def test_json_has_no_number_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"a": math.inf, "b": [math.nan, 1.5], "c": {"d": -math.inf}})

    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_what_was_cut_is_said_once_for_the_whole_run(
    facts: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(rerank, "BATCH_DOCUMENTS", 2)
    long = "mars " * 300
    facts.write_text("".join(f'{{"text": "{n} {long}"}}\n' for n in range(7)), encoding="utf-8")

    main(["rerank", QUERY, str(facts), "-m", str(tiny_checkpoint), "--device", "cpu"])

    assert capsys.readouterr().err.splitlines() == [
        f"note: 7 of 7 documents are longer than 40 tokens and were cut there{WHOLE}".strip()
    ]
