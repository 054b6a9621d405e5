"""What stands around the package: files for the repository's host and for contributors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import colbert_rag

ROOT = Path(__file__).parents[1]
FORMS = [
    path
    for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    if path.stem != "config"
]
HOOKS = ROOT / ".pre-commit-config.yaml"
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI, RELEASE = (ROOT / ".github" / "workflows" / name for name in ("ci.yml", "release.yml"))
OLDEST = ROOT / "constraints-oldest.txt"
NAMED = ["CHANGELOG.md", "CITATION.cff", "Makefile", "README.md", OLDEST.name]
"""What else the tests read beside the package."""

needs_bash = pytest.mark.skipif(
    os.name == "nt" or shutil.which("bash") is None, reason="releases are built where there is bash"
)


def read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^(\w+):", makefile, re.MULTILINE))


def test_a_commit_is_checked_by_the_ruff_that_make_check_runs() -> None:
    pinned = dict(pin.split("==") for pin in pyproject()["dependency-groups"]["lint"])

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

    assert {"quick", "test"} <= set(named) <= targets()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_what_the_host_asks_of_it(workflow: Path) -> None:
    """https://docs.github.com/actions/reference/workflow-syntax-for-github-actions"""
    loaded = read_yaml(workflow)

    assert {"name", True, "jobs", "permissions"} <= set(loaded)  # YAML 1.1 reads `on` as true
    assert loaded["permissions"] == {"contents": "read"}
    for job in loaded["jobs"].values():
        assert ("uses" in job) != ("runs-on" in job and "timeout-minutes" in job)
        assert set(job.get("needs", [])) <= set(loaded["jobs"])
        for step in job.get("steps", []):
            assert ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.fullmatch(r"[\w./-]+@[\w./-]+", step["uses"])


def test_every_python_that_the_package_claims_is_tested_on_every_system() -> None:
    matrix = read_yaml(CI)["jobs"]["test"]["strategy"]["matrix"]
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(pyproject()["project"]["classifiers"]))

    assert claimed == matrix["python"]
    assert claimed[0] == pyproject()["project"]["requires-python"].removeprefix(">=")
    assert {os.partition("-")[0] for os in matrix["os"]} == {"ubuntu", "macos", "windows"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_only_targets_that_exist(workflow: Path) -> None:
    jobs = read_yaml(workflow)["jobs"]
    runs = " ".join(step.get("run", "") for job in jobs.values() for step in job.get("steps", []))
    named = set(re.findall(r"\bmake (\w+)", runs))
    if "dependencies" in jobs:
        rows = jobs["dependencies"]["strategy"]["matrix"]["include"]
        named |= {row["dependencies"] for row in rows}

    assert named
    assert named <= targets()


def test_only_the_last_job_of_a_release_may_write_and_it_waits_for_the_others() -> None:
    jobs = read_yaml(RELEASE)["jobs"]

    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}


def run_step(name: str, folder: Path, tag: str) -> subprocess.CompletedProcess[str]:
    """Run one step of the release as the host does, in a folder that stands for a checkout."""
    (script,) = [
        step["run"]
        for step in read_yaml(RELEASE)["jobs"]["build"]["steps"]
        if step.get("id") == name
    ]
    return subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env={**os.environ, "TAG": tag},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_bash
@pytest.mark.parametrize(
    ("tag", "accepted"), [("v1.2.3", True), ("v1.2.4", False), ("1.2.3", False)]
)
def test_a_release_needs_the_tag_of_its_version(tmp_path: Path, tag: str, accepted: bool) -> None:
    (tmp_path / "colbert_rag").mkdir()
    (tmp_path / "colbert_rag/__init__.py").write_text('"""Doc."""\n\n__version__ = "1.2.3"\n')

    run = run_step("version", tmp_path, tag)

    assert (run.returncode == 0) is accepted
    assert accepted or f"The tag is {tag}, expected v1.2.3" in run.stderr


@needs_bash
def test_a_release_reads_the_version_of_this_package(tmp_path: Path) -> None:
    (tmp_path / "colbert_rag").mkdir()
    shutil.copy(ROOT / "colbert_rag/__init__.py", tmp_path / "colbert_rag")

    assert run_step("version", tmp_path, f"v{colbert_rag.__version__}").returncode == 0


CHANGELOG = """# Changelog

## [Unreleased]

- Later.

## [1.2.3] - 2026-12-01

### Added

- This one.

## [1.2.2] - 2026-11-01

- Before.

## [1.2.1] - 2026-10-01

[1.2.3]: https://example.org
"""


@needs_bash
def test_a_release_shows_its_own_section_of_the_changelog(tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)

    run = run_step("notes", tmp_path, "v1.2.3")

    assert run.returncode == 0, run.stderr
    assert (tmp_path / "notes.md").read_text().split() == "### Added - This one.".split()


@needs_bash
@pytest.mark.parametrize("tag", ["v1.2.1", "v1.2.0", "v1.2", "v1.2.33"])
def test_a_release_needs_a_section_with_text(tmp_path: Path, tag: str) -> None:
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)

    run = run_step("notes", tmp_path, tag)

    assert run.returncode != 0
    assert f"no text under [{tag[1:]}]" in run.stderr


def test_the_sdist_has_what_its_tests_read() -> None:
    read = [*GUIDES, *FORMS, *WORKFLOWS, HOOKS, *map(ROOT.joinpath, NAMED)]
    included = pyproject()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]

    roots = {f"/{path.relative_to(ROOT).parts[0]}" for path in read}

    assert roots <= set(included)
    assert [name for name in included if not (ROOT / name[1:]).exists()] == []


def test_the_oldest_dependencies_are_the_lower_bounds() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(line for name in extras for line in extras[name])]
    required = [Requirement(line) for line in listed if project["name"] not in line]
    lowest = {
        requirement.name: Version(bound.version)
        for requirement in required
        for bound in requirement.specifier
        if bound.operator == ">="
    }

    lines = OLDEST.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))

    assert set(lowest) == {requirement.name for requirement in required}
    assert {name: Version(pin) for name, pin in pins.items()} == lowest
