"""Options that name a file to write to: - is standard output, and so is every other name of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from colbert_rag.cli import main
from colbert_rag.evaluation import read_run
from tests.test_cli_explain import Page

QRELS = "q1\t0\ta\t1\nq2\t0\tb\t1\n"
BEFORE = "q1 Q0 b 1 2.0 x\nq1 Q0 a 2 1.0 x\nq2 Q0 b 1 1.0 x\n"
EVALUATE = ["evaluate", "--qrels", "qrels.txt", "--run", "before.trec", "--measures", "MRR"]
TSV = {"q1": "which planet is red", "q2": "rings of ice"}
TEXTS = "Mars is the red planet.\nSaturn has rings of ice.\n"

unix = pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="a Unix name")
linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux names what is open")
NAMES = ["-", pytest.param("/dev/stdout", marks=unix), pytest.param("out", marks=unix)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run."""
    files = {
        "qrels.txt": QRELS,
        "before.trec": BEFORE,
        "q.tsv": "".join(f"{name}\t{text}\n" for name, text in TSV.items()),
        "texts.txt": TEXTS,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(words: list[str], to: str | int) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does, with standard output in a file or a pipe."""
    command = [sys.executable, "-m", "colbert_rag.cli", *words]
    root = str(Path(__file__).parents[1])
    more = {"env": os.environ | {"PYTHONPATH": root}, "stderr": subprocess.PIPE, "text": True}
    if isinstance(to, int):
        return subprocess.run(command, stdout=to, check=False, **more)  # type: ignore[call-overload,no-any-return]
    with Path(to).open("wb") as out:
        return subprocess.run(command, stdout=out, check=False, **more)  # type: ignore[call-overload,no-any-return]


def model(checkpoint: Path) -> list[str]:
    return ["-m", str(checkpoint), "--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def written(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The page in a file of its own, and the report that goes with it."""
    assert main([*EVALUATE, "--html", "own.html"]) == 0
    out, err = capsys.readouterr()
    assert err == "own.html has these tables, and a figure\n"
    page = Path("own.html").read_text(encoding="utf-8")
    assert Page(page).open == []
    return page, out


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_standard_output_for_itself(name: str, written: tuple[str, str]) -> None:
    page, report = written

    done = started([*EVALUATE, "--html", name], "out")

    assert (done.returncode, done.stderr) == (0, report)
    assert Path("out").read_text(encoding="utf-8") == page
    assert not Path("-").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if name is not NAMES[2]])
def test_a_page_goes_through_a_pipe_alone(name: str, written: tuple[str, str]) -> None:
    page, report = written

    done = started([*EVALUATE, "--html", name], subprocess.PIPE)

    assert (done.returncode, done.stdout, done.stderr) == (0, page, report)


@unix
def test_a_report_that_a_full_disk_refuses_takes_no_page_with_it(written: tuple[str, str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has a full disk to test on")
    command = [sys.executable, "-m", "colbert_rag.cli", *EVALUATE, "--html", "-"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, env=env, check=False)

    assert (done.returncode, done.stdout.decode()) == (0, written[0])


@unix
def test_another_file_leaves_the_report_where_it_is(written: tuple[str, str]) -> None:
    page, report = written

    done = started([*EVALUATE, "--html", "/dev/stderr"], subprocess.PIPE)

    assert (done.returncode, done.stdout) == (0, report)
    assert done.stderr.startswith(page)


@pytest.mark.parametrize("name", NAMES)
def test_an_explanation_has_standard_output_for_itself(name: str, tiny_checkpoint: Path) -> None:
    words = ["explain", "<é>", "texts.txt", "--split", "lines", *model(tiny_checkpoint)]

    done = started([*words, "--html", name], "out")

    page = Page(Path("out").read_text(encoding="utf-8"))
    assert (page.doctype, page.open) == ("DOCTYPE html", [])
    assert page.title.startswith("<é> - texts.txt:")
    assert (done.returncode, done.stderr.splitlines()[-1][:33]) == (
        0,
        "standard output explains texts.tx",
    )


@pytest.mark.parametrize("name", NAMES)
def test_rankings_have_standard_output_for_themselves(
    name: str, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rerank", "--queries", "q.tsv", "texts.txt", "--split", "lines"]
    words += model(tiny_checkpoint)
    assert main([*words, "--to", "own.trec"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].removeprefix("own.trec")

    done = started([*words, "--to", name], "out")

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"standard output{last}"
    assert Path("out").read_text() == Path("own.trec").read_text()
    assert set(read_run("out")) == set(TSV)


@linux
def test_rankings_go_into_a_pipe_that_has_a_name(tiny_checkpoint: Path) -> None:
    """As `--to >(gzip > run.gz)` in a shell names it; to read it back would wait for ever."""
    reading, writing = os.pipe()
    words = ["rerank", "--queries", "q.tsv", "texts.txt", "--split", "lines"]

    status = main([*words, "--to", f"/proc/self/fd/{writing}", *model(tiny_checkpoint)])

    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines] == ["q1", "q1", "q2", "q2"]


@unix
def test_a_device_that_refuses_rankings_is_named_and_promises_nothing(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has a full disk to test on")
    words = ["rerank", "--queries", "q.tsv", "texts.txt", *model(tiny_checkpoint)]

    assert main([*words, "--to", "/dev/full"]) == 1

    err = capsys.readouterr().err
    assert "error: /dev/full: No space left on device: free some space, and try again\n" in err
    assert "goes on from there" not in err


def test_a_page_is_written_where_python_has_put_something_else(written: tuple[str, str]) -> None:
    with redirect_stdout(io.StringIO()) as out:
        assert main([*EVALUATE, "--html", "-"]) == 0

    assert out.getvalue() == written[0]


PIPED = {
    "qrels": (["--qrels", "-", "--run", "before.trec"], QRELS),
    "run": (["--qrels", "qrels.txt", "--run", "-"], BEFORE),
    "run by its Unix name": (["--qrels", "qrels.txt", "--run", "/dev/stdin"], BEFORE),
}


@unix
@pytest.mark.parametrize("which", PIPED)
def test_what_is_read_may_be_piped_in_as_well(which: str) -> None:
    """The first right answer to q1 is in place 2, that to q2 in place 1: MRR 0.75."""
    words, text = PIPED[which]
    command = [sys.executable, "-m", "colbert_rag.cli", "evaluate", *words, "--measures", "MRR"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=env)

    assert done.returncode == 0, done.stderr
    assert "0.7500" in done.stdout


@unix
def test_queries_may_be_piped_in(tiny_checkpoint: Path) -> None:
    words = ["rerank", "--queries", "-", "texts.txt", "--split", "lines", "--to", "-"]
    command = [sys.executable, "-m", "colbert_rag.cli", *words, *model(tiny_checkpoint)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    done = subprocess.run(
        command, input="q7\tred\n", capture_output=True, text=True, check=False, env=env
    )

    assert [line.split()[0] for line in done.stdout.splitlines()] == ["q7", "q7"], done.stderr


REFUSED = {
    "both": ([*EVALUATE, "--json", "--html", "-"], "--json and --html both have standard output"),
    "no name": ([*EVALUATE, "--html", ""], "--html is '', expected a file, or - for standard"),
    "no folder": ([*EVALUATE, "--save-runs", "-"], "--save-runs is '-', expected a folder"),
    "no folder's name": ([*EVALUATE, "--save-runs", ""], "--save-runs is '', expected a folder"),
    "no explanation": (["explain", "q", "texts.txt", "--html", ""], "--html is '', expected a f"),
    "no rankings": (["rerank", "--queries", "q.tsv", "--to", ""], "--to is '', expected a file"),
    "index": (["index", "texts.txt", "--to", "-"], "the index is '-', expected a file or the URL"),
    "search": (["search", "q", "-"], "the index is '-', expected a file or the URL of a server"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_standard_output_is_refused(
    words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed, message = REFUSED[words]
    before = sorted(folder.iterdir())

    with pytest.raises(SystemExit) as stopped:
        main(typed)

    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("words", [EVALUATE, ["explain", "q", "texts.txt"]])
def test_a_page_that_cannot_be_written_is_said_before_the_work(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--html", str(folder)]) == 1
    assert main([*words, "--html", "no/such/page.html"]) == 1

    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [f"error: {folder}: is a folder, expected a file", "error: no/such: no such folder"],
    )


def test_a_file_where_a_folder_belongs_is_said_before_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*EVALUATE, "--save-runs", "q.tsv"]) == 1

    assert capsys.readouterr() == ("", "error: q.tsv: is a file, expected a folder\n")


@pytest.mark.parametrize("option", ["--html", "--save-runs"])
@pytest.mark.parametrize("name", ["new", "q.tsv/new"])
def test_what_may_not_be_written_to_is_said_before_the_work(
    option: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # which root is never told

    assert main([*EVALUATE, option, name]) == 1

    out, err = capsys.readouterr()
    expected = {
        ("new", "--html"): "new: may not be written to",
        ("new", "--save-runs"): ".: may not be written to",
        ("q.tsv/new", "--html"): "q.tsv: no such folder",
        ("q.tsv/new", "--save-runs"): "q.tsv: is a file, expected a folder",
    }
    assert (out, err) == ("", f"error: {expected[name, option]}\n")


@unix
def test_an_index_is_not_written_over_by_what_is_said_of_it(tiny_checkpoint: Path) -> None:
    words = ["index", "texts.txt", "--to", "out", *model(tiny_checkpoint)]

    done = started(words, "out")

    assert done.returncode == 2
    assert "out is standard output, expected the file of an index" in done.stderr
    assert Path("out").read_bytes() == b""


@pytest.mark.parametrize("name", ["texts.txt", "qrels.txt", "before.trec", "held.sqlite"])
@pytest.mark.parametrize("command", ["evaluate", "explain"])
def test_a_page_takes_the_place_of_nothing_but_a_page(
    command: str, name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = EVALUATE if command == "evaluate" else ["explain", "q", "texts.txt"]
    (folder / "held.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)))
    before = (folder / name).read_bytes()

    assert main([*words, "--html", name]) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {name}: is there and no page, so that --html would lose what is")
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize("held", ["", "<!DOCTYPE html>\n<p>older", "\n <HTML><p>older"])
def test_a_page_takes_the_place_of_a_page(held: str, folder: Path) -> None:
    page = folder / "page.html"
    page.write_text(held)

    assert main([*EVALUATE, "--html", "page.html"]) == 0

    assert "older" not in page.read_text(encoding="utf-8")
    assert page.stat().st_size > 1000


def test_saved_runs_do_not_take_the_place_of_runs_that_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of two saved runs, named first, would be saved as the first."""
    (folder / "runs").mkdir()
    for number in (1, 2):
        (folder / "runs" / f"{number}.trec").write_text(BEFORE + f"q2 Q0 a 2 0.{number} x\n")
    before = [path.read_text() for path in sorted((folder / "runs").iterdir())]
    runs = [part for number in (2, 1) for part in ("--run", f"runs/{number}.trec")]

    with pytest.raises(SystemExit) as stopped:
        main([*EVALUATE[:3], *runs, "--save-runs", "runs"])

    assert stopped.value.code == 2
    assert "may write over runs/2.trec: name another folder" in capsys.readouterr().err
    assert [path.read_text() for path in sorted((folder / "runs").iterdir())] == before
    assert main([*EVALUATE[:3], *runs, "--save-runs", "others"]) == 0
