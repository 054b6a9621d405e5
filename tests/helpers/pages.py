"""Runs the code blocks of a Markdown page and compares what they print with what the page shows.

* `python` blocks run in order, in one namespace for each page. A `text` block right after one of
  them is what that one prints, and so are comments behind its calls of `print`.
* In `console` blocks, `$ cat FILE` shows a file, which is written; `$ colbert-rag ...` is a call,
  and what follows it is its output.
* `<!-- not run: REASON -->` right above a block leaves it out.

What is printed is compared word by word: numbers up to one unit of the last digit shown, bars not
at all, and `...` stands for any words. So a page that shows digits says `dtype="float32"`: machines
differ in what "auto" means, and bfloat16 moves the third digit.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FENCE = re.compile(
    r"^(?P<skip><!-- not run: [^>]+ -->\n+)?```(?P<language>[\w{}-]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(-?\d+\.\d+)")
COMMENT = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)
BAR = re.compile(r"[▏▎▍▌▋▊▉█]+")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What stands behind the fence.
        code: What stands inside.
        line: Line of the page on which the code starts.
        skipped: Whether it is marked as not run.
        follows: Whether nothing but blank lines parts it from the block before.
    """

    language: str
    code: str
    line: int
    skipped: bool
    follows: bool


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    ends = [0, *(match.end() for match in found)]
    return [
        Block(
            match["language"],
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
            match["skip"] is not None,
            end > 0 and not text[end : match.start()].strip(),
        )
        for end, match in zip(ends, found, strict=False)
    ]


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every block that can run, in an empty folder and without a model hub."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    for block in read_blocks(page):
        if block.language == "text" and block.follows and printed is not None:
            assert_alike(printed, block.code)
        printed = None
        if block.language == "python" and not block.skipped:
            printed = _run_python(block, page, namespace)
            if comments := COMMENT.findall(block.code):
                assert_alike(printed, "\n".join(comments))
        if block.language == "console" and not block.skipped:
            _run_console(block)


def _run_python(block: Block, page: Path, namespace: dict[str, Any]) -> str:
    # As many blank lines as stand above it, so that a traceback names the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, namespace)
    return out.getvalue()


def _run_console(block: Block) -> None:
    for call in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
        command, _, shown = call.partition("\n")
        program, *arguments = shlex.split(command)
        if program == "cat":
            Path(arguments[0]).write_text(shown, encoding="utf-8")
            continue
        assert program == "colbert-rag"
        printed = _run_command(arguments)
        if shown.strip():
            assert_alike(printed, shown)


def _run_command(arguments: list[str]) -> str:
    from colbert_rag.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(arguments)
    assert status == 0, f"colbert-rag {shlex.join(arguments)} ended with {status}"
    return out.getvalue()


def assert_alike(printed: str, shown: str) -> None:
    """Compare word by word: numbers roughly, and `...` stands for any words."""
    difference = f"printed:\n{printed}\nbut the page shows:\n{shown}"
    pattern = " ".join(_pattern(word) for word in BAR.sub("", shown).split())
    match = re.fullmatch(pattern, " ".join(BAR.sub("", printed).split()))
    assert match, difference
    for number, expected in zip(match.groups(), NUMBER.findall(shown), strict=True):
        # Machines differ in the seventh digit of float32, which may round up or down what is shown.
        last = 10.0 ** -len(expected.partition(".")[2])
        assert abs(float(number) - float(expected)) < 1.5 * last, difference


def _pattern(word: str) -> str:
    if word == "...":
        return ".*?"
    parts = NUMBER.split(word)  # every second part is a number
    return NUMBER.pattern.join(re.escape(part) for part in parts[::2])
