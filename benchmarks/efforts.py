"""What each effort of an approximate search finds of the exact best, on judged collections."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import corpora
from benchmarks.codings import encoded, kept
from benchmarks.quality import COLLECTIONS, judge
from benchmarks.rankers import DEPTH, Run
from benchmarks.report import Plan, Table
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, IndexInfo, LocalIndex
from colbert_rag.index.how import MOST_EFFORT
from colbert_rag.settings import OFFLINE_CHECKPOINT

POOLED = "all of them in one index"

PARTS = (1, 10, 50)
"""Percent of the documents that a filter keeps: the first of them, so of one kind."""

NOTE = (
    "R@10 and R@100: the part of the exact best that was found. Exact scores either way. p50: of "
    "single queries. Filters keep the documents that come first."
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
    """One table per collection, and one for all together."""
    few = COLLECTIONS[:1] if plan.quick else COLLECTIONS
    names = [name for name in plan.collections or few if (corpora.DATA / name).is_dir()]
    found = []
    for name in names:
        found.append(_read(name, plan))
        yield measure(name, found[-1])
    if len(found) > 1:
        yield measure(POOLED, _pooled(found))


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
    return Judged(
        [document for part in parts for document in part.documents],
        TokenEmbeddings.cat([part.vectors for part in parts]),
        [query for part in parts for query in part.queries],
        TokenEmbeddings.cat([part.asked for part in parts]),
        {query: graded for part in parts for query, graded in part.judgements.items()},
    )


def measure(name: str, given: Judged) -> Table:
    """Compare every effort with the exact search."""
    dim = given.vectors.dim
    info = IndexInfo(checkpoint=OFFLINE_CHECKPOINT, fingerprint="0" * 64, dim=dim, recipe={})
    count = len(given.documents)
    documents = [
        Document(document.id, document.text, {"part": 100 * place // count})
        for place, document in enumerate(given.documents)
    ]
    table = Table(
        "efforts",
        f"{len(given.queries)} queries, {count:,} documents, {len(given.vectors.values):,} tokens "
        f"of width {dim}: {name}",
        notes=[NOTE],
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalIndex(Path(folder) / "index.sqlite", like=info) as index,
    ):
        index.add_encoded(documents, given.vectors)
        index.optimize()
        exact, _ = _searched(index, given, exact=True)
        best = judge(exact, given.judgements).ndcg
        narrow = {part: _searched(index, given, exact=True, part=part)[0] for part in PARTS}
        for effort in range(1, MOST_EFFORT + 1):
            ranked, times = _searched(index, given, effort=effort)
            row: dict[str, object] = {
                "effort": str(effort),
                "R@10": f"{kept(ranked, exact, 10):.4f}",
                "R@100": f"{kept(ranked, exact, 100):.4f}",
                "nDCG@10 of exact": f"{judge(ranked, given.judgements).ndcg / best:.4f}",
                "p50 ms": round(float(np.percentile(times, 50)), 1),
                "p95 ms": round(float(np.percentile(times, 95)), 1),
            }
            for part, base in narrow.items():
                some, _ = _searched(index, given, effort=effort, part=part)
                row[f"R@10, {part} %"] = f"{kept(some, base, 10):.4f}"
            table.rows.append(row)
    return table


def _searched(
    index: LocalIndex,
    given: Judged,
    *,
    exact: bool = False,
    effort: int | None = None,
    part: int | None = None,
) -> tuple[Run, list[float]]:
    """The best documents of each query, and the milliseconds that each took."""
    condition: Mapping[str, object] | None = None if part is None else {"part": {"$lt": part}}
    ranked, times = {}, []
    for place, query in enumerate(given.queries):
        start = time.perf_counter()
        (hits,) = index.search_embeddings(
            given.asked[place : place + 1], DEPTH, condition, exact=exact, effort=effort
        )
        times.append(1000 * (time.perf_counter() - start))
        ranked[query] = [hit.id for hit in hits]
    return ranked, times
