"""The documentation keeps what it promises: its code runs, and what it names exists."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from colbert_rag import errors
from tests.helpers.pages import read_blocks, run_page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "colbert_rag"
PAGES = sorted((ROOT / "docs").glob("*.md"))
ARCHITECTURE = ROOT / "docs" / "architecture.md"
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^### (?P<error>\w+)\n(?P<body>.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
ANY = "…"
MODULE = re.compile(r"`([\w/]+(?:\.py|/))`")
PUBLIC = [
    "colbert_rag",
    "colbert_rag.index",
    "colbert_rag.evaluation",
    "colbert_rag.langchain",
    "colbert_rag.llama_index",
    "colbert_rag.maxsim",
    "colbert_rag.checkpoint",
]
MISSING = [name for name in ("sphinx", "myst_parser", "furo") if find_spec(name) is None]

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
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                found[node.func.id].append(template(node.args[0]))
            if isinstance(node, ast.ClassDef) and node.name in vars(errors):
                calls = (call for call in ast.walk(node) if isinstance(call, ast.Call))
                found[node.name].extend(template(call.args[0]) for call in calls if call.args)
    return found


@pytest.mark.both_dtypes
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.stem == "remote":
        pytest.skip("needs a server: tests/test_remote_components.py runs it")
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


def test_every_error_is_explained_with_a_message_of_its_own() -> None:
    raised = {name for name in vars(errors) if name.endswith("Error")} - ROOTS

    assert raised <= {
        entry["error"] for entry in ENTRY.finditer(TROUBLESHOOTING) if "\n> " in entry["body"]
    }


def drawn_modules() -> list[Path]:
    """What the table of modules names; an indented row lies in the package of the row above it."""
    table = ARCHITECTURE.read_text(encoding="utf-8").partition("## Layout")[2].partition("\n## ")[0]
    named: list[Path] = []
    inside = [PACKAGE]
    for row in re.findall(r"^\| (?!module)(.+?) \|", table, re.MULTILINE):
        parents = inside if row.startswith("&nbsp;") else [PACKAGE]
        paths = [parent / name for parent in parents for name in MODULE.findall(row)]
        named += paths
        if parents == [PACKAGE]:
            inside = paths
    return named


def test_every_module_that_is_described_exists() -> None:
    assert [path for path in drawn_modules() if not path.exists()] == []


def test_every_module_is_described() -> None:
    modules = {path for path in PACKAGE.glob("[!_]*") if path.is_dir() or path.suffix == ".py"}

    assert modules - set(drawn_modules()) == set()


def test_every_module_in_the_drawing_exists() -> None:
    drawing = ElementTree.parse(ROOT / "docs" / "images" / "dataflow.svg")
    labels = [str(label.text) for label in drawing.iter("{http://www.w3.org/2000/svg}text")]
    named = re.findall(r"\w+(?:\.py|/)", "\n".join(labels))

    assert len(named) > 15
    assert [name for name in named if not (PACKAGE / name).exists()] == []


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_on_the_api_page(module: str) -> None:
    described = set(re.findall(r":: colbert_rag\.(?:\w+\.)*(\w+)$", API, re.MULTILINE))

    names = {name for name in import_module(module).__all__ if not name.endswith("Error")}
    assert names - described == set()


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)}: not installed, group docs")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """In a process of its own: Sphinx changes what it imports, and how modules warn."""
    command = (
        f"{sys.executable} -m sphinx --quiet --nitpicky --fail-on-warning --keep-going".split()
    )
    places = ["-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "site")]
    built = subprocess.run(
        [*command, *places],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )

    assert built.returncode == 0, built.stderr
    assert len(list((tmp_path / "site").glob("*.html"))) > len(PAGES)
