"""What each effort of an approximate search finds of the exact best, on judged collections."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks import corpora
from benchmarks.codings import encoded, kept
from benchmarks.quality import COLLECTIONS, judge
from benchmarks.rankers import DEPTH, Run, minilm
from benchmarks.report import Plan, Table
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, IndexInfo, LocalIndex
from colbert_rag.index.how import MOST_EFFORT
from colbert_rag.index.local import searcher
from colbert_rag.index.local.level import candidates
from colbert_rag.index.local.level.effort import EFFORTS
from colbert_rag.settings import OFFLINE_CHECKPOINT

POOLED, POOLED_QUERIES = "all of them in one index", 100

PARTS = (1, 10, 50)
"""Percent of the documents that a filter keeps: the first of them, so of one kind."""

BEST = 10
"""Documents that a search is asked for, but for R@100."""

TIMED, SAMPLE = 10, 100
"""Exact searches that are timed, and documents that are encoded to see how fast that is."""

FOREIGN = (("cosqa", "squadshift-wiki"), ("scifact", "lfrqa"), ("lfrqa", "cosqa"))
"""Collections, and those of whose documents a tenth as many are added to them."""

NOTE = (
    "R@10 and R@100: the part of the exact best that a search for 10, or 100, found. Scores are "
    "exact either way. p50 and p95: of single queries for 10. Filters keep the documents that come "
    "first. An effort that would save nothing on so few documents is an exact search."
)
DRIFT = (
    "R@10 of the exact best. Inverted lists are used, as in a large index, where in so small a one "
    "all are scored by their codes; an effort that would save nothing is an exact search. Behind: "
    "what was added is not in the level yet. After: optimize() has taken it in."
)
BUILDING = (
    "CPU seconds, which other work on the machine disturbs little. Encoding: what all documents "
    "would take, by the speed at which a sample of them was encoded, in the same process."
)


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """A collection with its vectors; ids begin with its name."""

    documents: list[Document]
    vectors: TokenEmbeddings
    queries: list[str]
    asked: TokenEmbeddings
    judgements: dict[str, dict[str, int]]


def run(plan: Plan) -> Iterator[Table]:
    """One table per collection, one for all together, and what building and drift do."""
    few = COLLECTIONS[:1] if plan.quick else COLLECTIONS
    names = [name for name in plan.collections or few if (corpora.DATA / name).is_dir()]
    found: dict[str, Judged] = {}
    building = Table("efforts", "Making the level, beside encoding", notes=[BUILDING])
    for name in names:
        found[name] = _read(name, plan)
        table, made = measure(name, found[name])
        building.rows.append({**made, **_encoding(found[name], float(str(made["level CPU s"])))})
        yield table
    yield building
    for name, other in FOREIGN:
        if name in found and other in found:
            yield drifted(name, found[name], other, found[other])
    if len(found) > 1:
        yield measure(POOLED, _pooled(list(found.values())))[0]


def _read(name: str, plan: Plan) -> Judged:
    collection = corpora.collection(name)
    judged = [query for query in collection.queries if query in collection.judgements]
    queries = judged[: 3 if plan.quick else plan.queries]
    vectors, asked = encoded(name, collection, queries)
    return Judged(
        [Document(f"{name}/{at}", text) for at, text in collection.documents.items()],
        vectors,
        [f"{name}/{query}" for query in queries],
        asked,
        {
            f"{name}/{query}": {f"{name}/{at}": grade for at, grade in graded.items()}
            for query, graded in collection.judgements.items()
        },
    )


def _pooled(parts: Sequence[Judged]) -> Judged:
    queries = [query for part in parts for query in part.queries]
    asked = TokenEmbeddings.cat([part.asked for part in parts])
    some = np.unique(np.linspace(0, len(queries) - 1, POOLED_QUERIES).round().astype(int)).tolist()
    return Judged(
        [document for part in parts for document in part.documents],
        TokenEmbeddings.cat([part.vectors for part in parts]),
        [queries[at] for at in some],
        asked[some],
        {query: graded for part in parts for query, graded in part.judgements.items()},
    )


def _info(dim: int) -> IndexInfo:
    return IndexInfo(checkpoint=OFFLINE_CHECKPOINT, fingerprint="0" * 64, dim=dim, recipe={})


def measure(name: str, given: Judged) -> tuple[Table, dict[str, object]]:
    """Compare every effort with the exact search; and say what making the level took."""
    dim, count, tokens = given.vectors.dim, len(given.documents), len(given.vectors.values)
    documents = [
        Document(document.id, document.text, {"part": 100 * place // count})
        for place, document in enumerate(given.documents)
    ]
    table = Table(
        "efforts",
        f"{len(given.queries)} queries, {count:,} documents, {tokens:,} tokens of width {dim}: "
        f"{name}",
        notes=[NOTE],
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalIndex(Path(folder) / "index.sqlite", like=_info(dim)) as index,
    ):
        with patch.object(searcher, "APPROXIMATE_FROM", 2**62):  # no level before that is timed
            index.add_encoded(documents, given.vectors)
        start = time.process_time()
        index.optimize()
        made = time.process_time() - start
        _compare(index, given, table)
    return table, {"collection": name, "tokens": tokens, "level CPU s": round(made, 2)}


def _compare(index: LocalIndex, given: Judged, table: Table) -> None:
    """A row for the exact search, and one for each effort."""
    exact = _together(index, given, DEPTH)
    best = judge(exact, given.judgements).ndcg
    narrow = {part: _together(index, given, BEST, part=part) for part in PARTS}
    _, times = _one_by_one(index, given, TIMED, exact=True)
    table.rows.append({"effort": "exact", **_cells(exact, exact, given, best), **_times(times)})
    for effort in range(1, MOST_EFFORT + 1):
        ranked, times = _one_by_one(index, given, effort=effort)
        deep = _together(index, given, DEPTH, exact=False, effort=effort)
        row = {"effort": str(effort), **_cells(ranked, exact, given, best), **_times(times)}
        row["R@100"] = f"{kept(deep, exact, DEPTH):.4f}"
        row["by"] = "level" if EFFORTS[effort].saves(len(given.documents)) else "exact search"
        for part, base in narrow.items():
            some = _together(index, given, BEST, exact=False, effort=effort, part=part)
            row[f"R@10, {part} %"] = f"{kept(some, base, BEST):.4f}"
        table.rows.append(row)


def _cells(ranked: Run, exact: Run, given: Judged, best: float) -> dict[str, object]:
    return {
        "by": "exact search",
        "R@10": f"{kept(ranked, exact, BEST):.4f}",
        "R@100": f"{kept(ranked, exact, DEPTH):.4f}",
        # Few queries may have nothing relevant among the best ten.
        "nDCG@10 of exact": f"{judge(ranked, given.judgements).ndcg / best:.4f}" if best else "-",
    }


def _times(times: Sequence[float]) -> dict[str, object]:
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50 ms": round(float(p50), 1), "p95 ms": round(float(p95), 1)}


def _together(
    index: LocalIndex,
    given: Judged,
    count: int,
    *,
    exact: bool = True,
    effort: int | None = None,
    part: int | None = None,
) -> Run:
    """The best `count` documents of each query, all asked at once."""
    condition: Mapping[str, object] | None = None if part is None else {"part": {"$lt": part}}
    found = index.search_embeddings(given.asked, count, condition, exact=exact, effort=effort)
    return {
        query: [hit.id for hit in hits] for query, hits in zip(given.queries, found, strict=True)
    }


def _one_by_one(
    index: LocalIndex,
    given: Judged,
    some: int | None = None,
    *,
    exact: bool = False,
    effort: int | None = None,
) -> tuple[Run, list[float]]:
    """The best documents of each query, and the milliseconds that each took."""
    ranked, times = {}, []
    for place, query in enumerate(given.queries[:some]):
        start = time.perf_counter()
        asked = given.asked[place : place + 1]
        (hits,) = index.search_embeddings(asked, BEST, exact=exact, effort=effort)
        times.append(1000 * (time.perf_counter() - start))
        ranked[query] = [hit.id for hit in hits]
    return ranked, times


def _encoding(given: Judged, made: float) -> dict[str, object]:
    """What encoding the documents of a collection takes, and the share of that a level took."""
    model = minilm()
    step = max(1, len(given.documents) // SAMPLE)
    texts = [document.text for document in given.documents[::step]]
    model.encode_documents(texts[:2])  # loads it
    start = time.process_time()
    tokens = len(model.encode_documents(texts).values)
    speed = tokens / (time.process_time() - start)
    encoding = len(given.vectors.values) / speed
    return {
        "encoded, tokens/CPU s": round(speed),
        "encoding CPU s": round(encoding, 1),
        "level of encoding": f"{made / encoding:.1%}",
    }


def drifted(name: str, own: Judged, other: str, foreign: Judged) -> Table:
    """What is found where a tenth as many documents of another collection were added."""
    added = min(len(own.documents) // 10, len(foreign.documents))
    table = Table(
        "efforts",
        f"{len(own.documents):,} documents of {name}, then {added:,} of {other}",
        notes=[DRIFT],
    )
    with (
        patch.object(candidates, "_ALL", 0),
        tempfile.TemporaryDirectory() as folder,
        LocalIndex(Path(folder) / "index.sqlite", like=_info(own.vectors.dim)) as index,
    ):
        index.add_encoded(own.documents, own.vectors)
        index.optimize()
        index.add_encoded(foreign.documents[:added], foreign.vectors[:added])
        for when in ("behind", "after"):
            exact = [_together(index, some, BEST) for some in (foreign, own)]
            for effort in range(1, MOST_EFFORT + 1):
                row: dict[str, object] = {"when": when, "effort": str(effort)}
                for which, some, base in zip((other, name), (foreign, own), exact, strict=True):
                    ranked = _together(index, some, BEST, exact=False, effort=effort)
                    row[f"R@10, queries of {which}"] = f"{kept(ranked, base, BEST):.4f}"
                table.rows.append(row)
            index.optimize()
    return table
