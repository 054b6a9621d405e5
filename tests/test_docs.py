"""The documentation keeps what it promises: its code runs, and the messages it explains exist."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from colbert_rag import errors
from tests.pages import read_blocks, run_page

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
ARCHITECTURE = ROOT / "docs" / "architecture.md"
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^### (?P<error>\w+)\n(?P<body>.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
ANY = "…"

# Never raised themselves.
ROOTS = {"ColBERTRagError", "CheckpointError"}

EXPLAINED = [
    pytest.param(entry["error"], quote, id=f"{entry['error']}-{number}")
    for entry in ENTRY.finditer(TROUBLESHOOTING)
    for number, quote in enumerate(re.findall(r"^> (.+)$", entry["body"], re.MULTILINE), start=1)
]


def template(message: ast.expr) -> str:
    """A message as the source writes it, with `…` for the values in it."""
    match message:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(parts):
            return "".join(map(template, parts))
        case ast.BinOp(left, ast.Add(), right):
            return template(left) + template(right)
        case _:
            return ANY


@cache
def messages() -> dict[str, list[str]]:
    """The messages of each error, as the package raises them or their constructors write them."""
    found = defaultdict(list)
    for path in sorted((ROOT / "colbert_rag").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                found[node.func.id].append(template(node.args[0]))
            if isinstance(node, ast.ClassDef) and node.name in vars(errors):
                calls = (call for call in ast.walk(node) if isinstance(call, ast.Call))
                found[node.name].extend(template(call.args[0]) for call in calls if call.args)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_page(page, tmp_path, monkeypatch)


@pytest.mark.parametrize(("error", "quote"), EXPLAINED)
def test_a_message_that_is_explained_is_one_that_is_raised(error: str, quote: str) -> None:
    pattern = ".*".join(re.escape(part) for part in quote.split(ANY))

    assert [message for message in messages()[error] if re.match(pattern, message, re.DOTALL)]


def test_the_layers_that_are_drawn_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (
        contract
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )

    drawn = next(block for block in read_blocks(ARCHITECTURE) if block.language == "text")

    assert drawn.code.splitlines() == contract["layers"]


def test_every_error_is_explained() -> None:
    raised = {name for name in vars(errors) if name.endswith("Error")} - ROOTS

    assert raised <= {entry["error"] for entry in ENTRY.finditer(TROUBLESHOOTING)}
