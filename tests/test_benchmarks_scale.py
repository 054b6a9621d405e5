"""The job `scale` at toy size, beside the engines of others that are installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from benchmarks import scale, scale_peers, scale_pool, scale_timed
from benchmarks.report import Plan
from colbert_rag import TokenEmbeddings
from colbert_rag.index.local import searcher

EDGE = pytest.mark.skipif(
    not scale_peers.interpreter("qdrant-edge-py")[0], reason="qdrant-edge-py is not installed"
)


def units(*shape: int) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return normalize(drawn, dim=-1)


def by_definition(queries: np.ndarray, texts: list[np.ndarray]) -> list[list[int]]:
    scores = [
        [(query @ rows.astype(np.float32).T).max(1).sum() for rows in texts] for query in queries
    ]
    return [np.argsort(-np.array(row), kind="stable").tolist() for row in scores]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Thirty passages in two chunks, and three queries."""
    lengths = [2 + number % 5 for number in range(30)]
    texts = [rows.numpy() for rows in units(sum(lengths), 16).half().split(lengths)]
    queries = units(3, 4, 16).half().float().numpy()
    chunks = [
        (np.concatenate(some), np.array([len(rows) for rows in some]))
        for some in (texts[:20], texts[20:])
    ]
    scale_timed.give(tmp_path / "given", iter(chunks), queries, by_definition(queries, texts))
    return tmp_path / "given"


def test_what_is_given_comes_back(given: Path):
    (first, vectors, offsets), (second, _, rest) = scale_timed.given(given)

    assert (first, second) == (0, 20)
    assert offsets.tolist()[:4] == [0, 2, 5, 9]
    assert len(rest) == 11
    assert np.array_equal(vectors[2:5], units(120, 16)[2:5].half().numpy())


def test_recall_is_the_share_of_the_best_that_were_found():
    truth = [[1, 2, 3, 4], [5, 6, 7, 8]]

    assert scale_timed.recall([[2, 9, 1], [5, 6, 0], [0, 0, 0]], truth, 2) == 0.75


def test_a_slow_engine_is_asked_fewer_queries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scale_timed, "PASS_SECONDS", -1.0)

    cells = scale_timed.measured(lambda query, k: [query] * k, range(9), [[0], [9]])

    assert cells["queries"] == 3
    assert cells["recall@10"] == 0.05  # one of ten, and none


@EDGE
def test_a_peer_is_built_once_and_searched_in_processes_of_its_own(
    given: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scale_peers, "PEERS", {"Qdrant Edge": scale_peers.PEERS["Qdrant Edge"]})

    rows, notes = scale_peers.rows(given, given)
    monkeypatch.setattr(scale_peers, "BUILD_SECONDS", 0)  # not built again
    again, _ = scale_peers.rows(given, given)

    assert [row["search"] for row in rows] == [
        "exact",
        "mean vector, 256 rescored",
        "mean vector, 1,024 rescored",
    ]
    assert all(row["recall@10"] == 1 for row in rows)  # of thirty, all are rescored
    assert all(float(str(row["bytes/token"])) >= 32 for row in rows)
    assert notes[0].startswith("Qdrant Edge: qdrant-edge-py ")
    assert [row["store s"] for row in again] == [row["store s"] for row in rows]


def test_a_peer_that_does_not_run_is_named_and_the_reason_kept(
    given: Path, monkeypatch: pytest.MonkeyPatch
):
    peer = scale_peers.PEERS["LanceDB IVF_PQ"]
    monkeypatch.setattr(scale_peers, "PEERS", {"Missing": peer, "Slow": peer, "Unwanted": peer})
    found = iter([("", ""), (sys.executable, "1.0"), (sys.executable, "1.0")])
    monkeypatch.setattr(scale_peers, "interpreter", lambda package: next(found))
    monkeypatch.setattr(scale_peers, "BUILD_SECONDS", 0.01)

    rows, notes = scale_peers.rows(given, given)

    assert rows == []
    assert notes[:2] == [
        "Left out: Missing: not installed",
        "Left out: Slow 1.0: not done in 0.01 s: build",
    ]
    assert "not done" in (given / "Slow" / scale_peers.BUILT).read_text(encoding="utf-8")


def test_a_crash_of_a_peer_is_told(given: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scale_peers, "PEERS", {"No peer": scale_peers.PEERS["fast-plaid"]})
    monkeypatch.setattr(scale_peers, "interpreter", lambda package: (sys.executable, "1.0"))

    # The child knows no engine of this name.
    assert scale_peers.rows(given, given) == (
        [],
        ["Left out: No peer 1.0: build: KeyError: 'No peer'"],
    )


def directly(work: Callable[..., object], *arguments: object) -> object:
    return work(*arguments[:-1])


@EDGE
def test_our_searches_stand_beside_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lengths = [2 + number % 5 for number in range(60)]
    passages = TokenEmbeddings.from_lengths(units(sum(lengths), 96).half(), lengths)
    texts = [f"text {number}" for number in range(60)]
    pool = scale_pool.Pool(passages, texts, np.zeros(60, np.int64), units(8, 32, 96))
    monkeypatch.setattr(scale, "pool", lambda names: pool)
    monkeypatch.setattr(scale, "_apart", directly)
    monkeypatch.setattr(scale, "SIZES", ((240, 240),))
    monkeypatch.setattr(scale, "FOLDER", tmp_path)
    monkeypatch.setattr(searcher, "APPROXIMATE_FROM", searcher.APPROXIMATE_FROM)  # put back
    for module in (scale, scale_pool):
        monkeypatch.setattr(module, "CHUNK", 120)

    built, searched, beside = scale.run(
        Plan(1, quick=True, collections=("small",), without=("lancedb", "fast-plaid"))
    )

    assert built.rows[0]["passages"] == 240
    assert [row["effort"] for row in searched.rows] == ["1", "2", "3", "4", "5", "exact"]
    ways = {f"{row['peer']}: {row['search']}": row["recall@10"] for row in beside.rows}
    assert ways["LocalIndex, float16: exact"] == 1
    assert ways["LocalIndex, float16: effort 3"] == 1  # of so few, all are scored
    assert ways["Qdrant Edge: exact"] == 1
    assert "Left out: fast-plaid: not asked for" in beside.notes
