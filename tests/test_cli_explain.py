"""`colbert-rag explain`: the right document, and views that fit, colour and escape."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from colbert_rag.cli import explain, main
from colbert_rag.explanation.text_view import SHOWN_CHARACTERS
from tests.test_cli import CONTENTS, CUT, FACTS, QUERY, WHOLE, records, refused

RED = "known as the red planet"
ESCAPE = re.compile(r"\x1b\[[\d;]*m")
Run = Callable[..., tuple[int, str, str]]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    path = Path("facts.jsonl")
    path.write_text("".join(f"{json.dumps(fact)}\n" for fact in FACTS), encoding="utf-8")
    return path


@pytest.fixture
def run(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], facts: Path) -> Run:
    """Run `explain` on the tiny model: status, standard output, standard error."""

    def run_explain(*arguments: object) -> tuple[int, str, str]:
        exact = ["--model", tiny_checkpoint, "--device", "cpu", "--dtype", "float32"]
        status = main(["explain", *map(str, arguments), *map(str, exact)])
        return status, *capsys.readouterr()

    return run_explain


@pytest.mark.parametrize("rank", [1, 3])
def test_json_explains_the_place_that_is_asked_for(
    rank: int, run: Run, facts: Path, tiny_colbert
) -> None:
    place = tiny_colbert.rank(QUERY, CONTENTS)[rank - 1]

    status, out, err = run(QUERY, facts, "--rank", rank, "--json")

    (found,) = records(out)
    assert (status, err.removeprefix(f"{CUT}{WHOLE}")) == (0, "")
    assert (found["rank"], found["line"], found["text"]) == (
        rank,
        place.index + 1,
        CONTENTS[place.index],
    )
    assert found["score"] == pytest.approx(place.score, abs=1e-3)
    assert sum(at["similarity"] for at in found["matches"]) == pytest.approx(found["score"])


def test_the_text_shows_matches_in_the_document(
    facts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", RED, str(facts), "-m", "offline-minilm"]) == 0

    out = capsys.readouterr().out
    assert out.startswith("facts.jsonl:2 (mars), number 1 of 5\nScore ")
    assert re.search(r"^ 0\.\d\d \S+ +\d+\.\d %  red +Red$", out, re.MULTILINE)
    assert re.search(
        r"^  \S+ \S+ \[?is\]? \[known\] \[as\] \[the\] \[Red\] \[Planet\]", out, re.MULTILINE
    )
    assert "\x1b" not in out


def shown_in_a_terminal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["explain", *arguments]) == 0
    return terminal.getvalue()


def test_a_terminal_gets_colours_around_the_matches(
    facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    out = shown_in_a_terminal(monkeypatch, RED, str(facts), "-m", "offline-minilm")

    assert "\x1b[1;30;43mRed\x1b[0m" in out
    assert "\n  Mars Mars is known as the Red Planet" in ESCAPE.sub("", out)


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_declined(
    variable: str, value: str, facts: Path, tiny_checkpoint: Path, monkeypatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)

    out = shown_in_a_terminal(monkeypatch, QUERY, str(facts), "-m", str(tiny_checkpoint))

    assert "\x1b" not in out


@pytest.mark.parametrize("word", ["planet ", "\u706b\u661f", "x" * 40, "caf\u0065\u0301-"])
def test_the_text_fits_the_terminal(word: str, run: Run) -> None:
    from colbert_rag.display import columns

    Path("long.txt").write_text(word * 300, encoding="utf-8")

    _, out, _ = run(f"{QUERY} {word}", "long.txt")

    assert max(map(columns, out.splitlines()[2:])) <= 80


def test_a_long_document_shows_its_best_part(facts: Path, capsys) -> None:
    filler = "Nothing of interest happens on this day. " * 100
    Path("long.txt").write_text(f"{filler[:820]}Mars is the Red Planet. {filler}", encoding="utf-8")

    main(["explain", "red planet", "long.txt", "-m", "offline-minilm"])

    out = capsys.readouterr().out
    begin, end, share = re.search(
        r"^Characters (\d+) to ([\d,]+) of 4,943, which carry (\d+\.\d) %", out, re.MULTILINE
    ).groups()
    shown = out.split("the score:\n\n")[1].split("\n\n")[0]
    assert int(end.replace(",", "")) - int(begin) <= SHOWN_CHARACTERS
    assert float(share) > 50
    assert "the [Red] [Planet]" in shown
    assert re.match(r"  [A-Z]?[a-z]+ ", shown)
    assert 900 < len(shown) < 1300
    assert "characters of the document were not read" in out


def test_a_document_cannot_steer_the_terminal(run: Run) -> None:
    Path("x.txt").write_text("\x1b[2Jgone\x07\u202e red", encoding="utf-8")

    _, out, _ = run(QUERY, "x.txt")

    assert not {"\x1b", "\x07", "\u202e"} & set(out)


class Page(HTMLParser):
    """What a page consists of, and whether all that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.doctype = ""
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.title = ""
        self.charset = ""
        self.feed(text)
        self.close()

    def handle_decl(self, decl: str) -> None:
        self.doctype = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.charset = dict(attrs).get("charset") or self.charset
        if tag not in ("meta", "img", "input", "br", "col"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"]:
            self.title += data


def test_the_page_is_complete_and_escapes_everything(run: Run) -> None:
    name = "<img src=x>.txt"
    Path(name).write_text("</body><script>alert(1)</script> red \u00fc", encoding="utf-8")

    status, out, err = run("<b>&red", name, "--html", "why.html")

    text = Path("why.html").read_text(encoding="utf-8")
    page = Page(text)
    assert (status, out) == (0, "")
    assert err.startswith("why.html explains <img src=x>.txt:1")
    assert (page.doctype, page.charset, page.open) == ("DOCTYPE html", "utf-8", [])
    assert page.title == "<b>&red - <img src=x>.txt:1, number 1 of 1"
    assert {"html", "head", "title", "body", "mark", "table"} <= page.tags
    assert "script" not in page.tags
    assert "<img src=x>" not in text
    assert "default-src 'none'" in text


def test_a_notebook_shows_what_a_page_shows(tiny_colbert) -> None:
    explanation = tiny_colbert.explain(QUERY, "red")

    assert explanation.to_html() == explanation._repr_html_()
    assert "<mark" in explanation.to_html()


def test_a_page_can_be_written_about_a_file_name_that_is_not_unicode(
    tiny_colbert, tmp_path: Path
) -> None:
    text = explain.page("bad\udcff.txt:1", tiny_colbert.explain(QUERY, "red"))

    assert (tmp_path / "x.html").write_text(text, encoding="utf-8", errors="backslashreplace")
    assert Page(text).open == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--rank", "0"], "--rank: '0' is not a whole number of 1 or more", id="rank 0"
        ),
        pytest.param(["--json", "--html", "x"], "not allowed with argument", id="both forms"),
        pytest.param(["--rank", "9"], "there are only 5 documents", id="rank 9"),
    ],
)
def test_wrong_usage_is_said_in_two_lines(
    arguments: list[str], message: str, facts: Path, tiny_checkpoint: Path, capsys
) -> None:
    model = ["-m", str(tiny_checkpoint), "--device", "cpu"]

    status, err = refused(["explain", QUERY, str(facts), *arguments, *model], capsys)

    assert status == 2
    assert message in err
    assert len(err.removeprefix(f"{CUT}{WHOLE}").splitlines()) == 2


def test_a_query_of_standard_input_is_wrong_usage(facts: Path, capsys) -> None:
    status, err = refused(["explain", "-", str(facts)], capsys)

    assert status == 2
    assert "QUERY is -, expected some text to look for" in err


def test_a_page_that_cannot_be_written_is_one_line(run: Run, facts: Path) -> None:
    status, _, err = run(QUERY, facts, "--html", "no/such/folder.html")

    assert status == 1
    assert err == "error: no/such: no such folder\n"


def test_no_documents_are_an_error(run: Run) -> None:
    Path("empty.txt").write_text("\n", encoding="utf-8")

    status, out, err = run(QUERY, "empty.txt")

    assert (status, out) == (1, "")
    assert err == "error: no documents found in empty.txt, so nothing can be ranked\n"
