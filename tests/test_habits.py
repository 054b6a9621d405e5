"""What stands around the package: files for the repository's host and for contributors."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FORMS = [
    path
    for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    if path.stem != "config"
]
HOOKS = ROOT / ".pre-commit-config.yaml"
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


def read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_commit_is_checked_by_the_ruff_that_make_check_runs() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = dict(pin.split("==") for pin in groups["dependency-groups"]["lint"])

    hooks = {repo["repo"].rpartition("/")[2]: repo for repo in read_yaml(HOOKS)["repos"]}

    assert hooks["ruff-pre-commit"]["rev"] == f"v{pinned['ruff']}"
    # mypy is that of the environment itself, so that there is no second version of it.
    assert [hook["entry"] for hook in hooks["local"]["hooks"]] == [".venv/bin/mypy"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_the_host_asks_of_it(form: Path) -> None:
    """https://docs.github.com/communities/using-templates-to-encourage-useful-issues-and-pull-requests/syntax-for-issue-forms"""
    fields = read_yaml(form)

    assert {"name", "description", "body"} <= set(fields)
    ids = [field["id"] for field in fields["body"]]
    assert len(ids) == len(set(ids))
    assert {field["type"] for field in fields["body"]} <= {"input", "textarea"}
    assert all(field["attributes"]["label"] for field in fields["body"])


def test_the_citation_has_what_its_format_asks_of_it() -> None:
    """https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema-guide.md"""
    citation = read_yaml(ROOT / "CITATION.cff")

    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert all({"type", "title", "authors"} <= set(work) for work in citation["references"])


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_file_that_a_guide_names_exists(guide: Path) -> None:
    named = re.findall(r"[`(]([\w./-]+\.(?:py|md|toml))[`)]", guide.read_text(encoding="utf-8"))

    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_target_that_the_guide_names_exists() -> None:
    named = re.findall(r"`make (\w+)`", GUIDES[0].read_text(encoding="utf-8"))
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert {"quick", "test"} <= set(named) <= set(targets)
