"""What the level finds on real text: a judged collection, encoded by a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import corpora
from colbert_rag import ColBERT
from colbert_rag.index import LocalIndex
from colbert_rag.index.local.level import candidates, effort
from colbert_rag.index.local.level.effort import EFFORTS, Effort

NAME = "xquad-en"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (corpora.DATA / NAME).is_dir(), reason=f"{NAME} is not here"),
]


def test_a_sixth_of_the_passages_holds_the_best_of_all(
    minilm: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large index it is one in a hundred or fewer; here 40 of 240 are scored exactly."""
    monkeypatch.setattr(candidates, "_ALL", 0)
    monkeypatch.setattr(effort, "_WORTH", 0)
    monkeypatch.setitem(EFFORTS, 3, Effort(8, 120, 40))
    found = corpora.collection(NAME)
    queries = list(found.queries.values())[:100]
    with LocalIndex(tmp_path / "real.sqlite", minilm) as index:
        index.add(
            {"id": name, "text": text, "metadata": {"odd": at % 2}}
            for at, (name, text) in enumerate(found.documents.items())
        )
        index.optimize()
        for filter in (None, {"odd": 1}):
            exact = index.search_many(queries, 10, filter, exact=True)
            some = index.search_many(queries, 10, filter, exact=False, effort=3)
            parts = [
                len({hit.id for hit in first} & {hit.id for hit in second}) / 10
                for first, second in zip(exact, some, strict=True)
            ]
            assert sum(parts) / len(parts) >= 0.97
