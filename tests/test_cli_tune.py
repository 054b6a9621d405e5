"""`colbert-rag tune`, and the options of `search` for large indexes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from colbert_rag import shared_colbert
from colbert_rag.cli.search import EFFORTS as OFFERED
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, LocalIndex
from colbert_rag.index.local.level.effort import EFFORTS
from colbert_rag.index.local.searcher import Searcher
from tests.helpers.index_fakes import sentences
from tests.helpers.index_levels import INFO
from tests.helpers.shell import Run, runner
from tests.test_cli import refused


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def made(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """An index of some sentences."""
    model = shared_colbert(tiny_checkpoint, device="cpu", dtype="float32")
    path = tmp_path / "made.sqlite"
    with LocalIndex(path, model) as index:
        index.add(sentences(60))
    return path


def test_tune_makes_a_level_and_prints_what_each_effort_finds(run: Run, made: Path) -> None:
    status, out, err = run("tune", made, "--sample", 12, "--k", 5)

    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split()[:2] == ["effort", "recall@5"]
    assert [line.split()[0] for line in lines[1:7]] == ["1", "2", "3", "4", "5", "exact"]
    # So few are all scored, by any effort.
    assert lines[7] == "* effort 1 is the smallest that finds 99.0% of the best (12 queries)"
    assert Path(f"{made}-level").exists()


def test_tune_as_json_with_queries_of_ones_own(run: Run, made: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries.tsv"
    queries.write_text("1\tmars storm\n2\tring of ice\n", encoding="utf-8")

    status, out, _ = run("tune", made, "--queries", queries, "--recall", "0.5", "--json")

    measured = json.loads(out)
    assert status == 0
    assert (measured["k"], measured["queries"], measured["wanted"]) == (10, 2, 0.5)
    assert measured["chosen"] == 1
    assert [way["effort"] for way in measured["efforts"]] == list(EFFORTS)
    assert measured["exact"]["recall"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("made.sqlite", "--recall", "1.5"), "--recall is 1.5, expected a part from 0 to 1"),
        (("made.sqlite", "--k", "0"), "--k: '0' is not a whole number of 1 or more"),
        (("made.sqlite", "--sample", "0"), "--sample: '0' is not a whole number of 1 or more"),
    ],
)
def test_what_tune_refuses(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["tune", *arguments], capsys)[1]


def test_an_empty_index_is_not_tuned(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shared_colbert(tiny_checkpoint, device="cpu", dtype="float32")
    LocalIndex(tmp_path / "empty.sqlite", model).close()

    assert "holds no document" in refused(["tune", str(tmp_path / "empty.sqlite")], capsys)[1]


def test_an_index_of_texts_without_words_is_not_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wordless.sqlite"
    with LocalIndex(path, like=INFO) as index:
        nothing = TokenEmbeddings.from_list([torch.zeros(0, INFO.dim)], dim=INFO.dim)
        index.add_encoded([Document("a", "...")], nothing)

    status, message = refused(["tune", str(path)], capsys)

    assert status == 2
    assert f"no text of {path} has words, so there is nothing to measure" in message


def test_tune_says_that_there_is_no_level_where_none_can_be(
    made: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(f"{made}-level").mkdir()

    status, message = refused(["tune", str(made)], capsys)

    assert status == 2
    assert f"{made} has no level, so every search is exact" in message
    assert "call optimize() first" not in message
    assert f"{made}-level is in the way" in caplog.text


def test_tune_without_a_query_to_ask(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = TokenEmbeddings.from_list([], dim=INFO.dim)
    monkeypatch.setattr(Searcher, "sampled", lambda self, count: nothing)
    assert "give queries of your own, or a larger sample" in refused(["tune", str(made)], capsys)[1]


def test_search_passes_its_options_on(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    search_many = LocalIndex.search_many

    def noted(self: LocalIndex, *arguments: object, **how: object) -> object:
        asked.append(how)
        return search_many(self, *arguments, **how)

    monkeypatch.setattr(LocalIndex, "search_many", noted)
    for options in ((), ("--exact",), ("--effort", "2")):
        assert run("search", "mars", made, *options)[0] == 0

    assert asked == [
        {"exact": None, "effort": None},
        {"exact": True, "effort": None},
        {"exact": None, "effort": 2},
    ]


def test_search_offers_the_efforts_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(OFFERED) == list(EFFORTS)
    words = ["search", "q", "x", "--exact", "--effort", "2"]
    assert "not allowed with" in refused(words, capsys)[1]


def test_info_names_the_level(run: Run, made: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "Level" not in run("info", made)[1]
    with LocalIndex(made) as index, caplog.at_level(logging.WARNING):
        index.optimize()

    assert "Level" in run("info", made)[1]
    assert json.loads(run("info", made, "--json")[1])["level_bytes"] > 0
