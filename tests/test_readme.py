"""The README keeps what it promises: its code runs, prints what it shows, and is soon read."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers.pages import COMMENT, read_blocks, run_page

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.both_dtypes
def test_the_code_of_the_readme_runs_and_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_page(README, tmp_path, monkeypatch)


def test_every_python_block_of_the_readme_is_run() -> None:
    assert not any(block.skipped for block in read_blocks(README))


def test_every_python_block_of_the_readme_shows_what_it_prints() -> None:
    blocks = read_blocks(README)

    shown = [
        bool(COMMENT.search(block.code)) or (after.language == "text" and after.follows)
        for block, after in pairwise([*blocks, blocks[-1]])
        if block.language == "python"
    ]
    assert shown == [True, True, True]


def test_every_link_into_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README.read_text(encoding="utf-8"))

    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_a_reader_sees_code_and_its_result_without_scrolling() -> None:
    code, result = (
        next(block for block in read_blocks(README) if block.language == language)
        for language in ("python", "text")
    )

    assert code.line <= 20
    assert result.line <= 30


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120
