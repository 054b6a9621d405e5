"""Whether reranking and retrieval help: nDCG@10 and Recall@100 on judged collections."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytrec_eval

from benchmarks import corpora
from benchmarks.corpora import Collection
from benchmarks.machine import installed
from benchmarks.peers import ST
from benchmarks.rankers import Run, late_interaction, mean_pooled
from benchmarks.report import Plan, Table
from colbert_rag.device import resolve_device, resolve_dtype

COLLECTIONS = (
    "xquad-th",
    "xquad-en",
    "xquad-zh",
    "xquad-de",
    "xquad-hi",
    "xquad-ar",
    "squadshift-wiki",
    "cosqa",
    "lfrqa",
    "scifact",
)
"""Smallest first, by tokens: 3.4 million in all, two thirds of them in the last two. Two models
encode them in about 40 minutes on two cores without bfloat16."""

TOP, WHOLE = "BM25's top 100", "whole corpus"
BM25, MEAN, LATE = "BM25", "mean-pooled float32", "offline-minilm float32"
Key = tuple[str, str]
"""A ranking, and what it ranks."""

KEYS: tuple[Key, ...] = ((BM25, WHOLE), (MEAN, TOP), (MEAN, WHOLE), (LATE, TOP), (LATE, WHOLE))

# nDCG@10 as the README of the collections gives it, by collection and number of queries, in the
# order of KEYS.
Figures = tuple[float | None, float | None, float | None, float | None, float | None]
PUBLISHED: dict[tuple[str, int], Figures] = {
    ("scifact", 150): (0.697, 0.663, None, 0.724, None),
    ("lfrqa", 150): (0.719, 0.839, None, 0.840, None),
    ("cosqa", 150): (0.356, 0.535, None, 0.522, None),
    ("squadshift-wiki", 150): (0.869, 0.839, None, 0.927, None),
    ("xquad-en", 150): (0.974, 0.950, None, 0.985, None),
    ("xquad-de", 150): (0.915, 0.752, None, 0.915, None),
    ("xquad-zh", 150): (0.969, 0.457, None, 0.613, None),
    ("scifact", 300): (0.679, None, 0.6451, None, 0.7120),
    ("lfrqa", 500): (0.685, None, None, None, None),
    ("cosqa", 500): (0.391, None, None, None, None),
    ("squadshift-wiki", 500): (0.880, None, None, None, None),
}
DTYPE_TOLERANCE = 0.002
"""How much nDCG@10 may change from float32 to another dtype."""

NOTES = (
    "offline-minilm: all-MiniLM-L6-v2, its token vectors under MaxSim, never trained for it; "
    "mean-pooled: the same model as it was trained to be used. 256 tokens a document for both.",
    "Measures are trec_eval's. against: the mean difference of nDCG@10, query by query, with its "
    "standard error.",
)

TYPES = (
    "float32 and the other type computed by the same model on the same machine; similarities are "
    "summed in float32 in both."
)

UNKNOWN_QUERIES = (
    "published: in the README of the collections. Which queries those were is not known: BM25's "
    "own figure, which no model enters, differs on the first of the file."
)


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of one run, query by query."""

    ndcgs: tuple[float, ...]
    recalls: tuple[float, ...]

    @property
    def ndcg(self) -> float:
        """Mean nDCG@10."""
        return statistics.mean(self.ndcgs)

    @property
    def recall(self) -> float:
        """Mean Recall@100."""
        return statistics.mean(self.recalls)

    def gain(self, other: Quality) -> str:
        """How much better than another run on the same queries, and how sure that is."""
        changes = [ours - theirs for ours, theirs in zip(self.ndcgs, other.ndcgs, strict=True)]
        error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else 0.0
        return f"{statistics.mean(changes):+.4f} ± {error:.4f}"


def judge(run: Run, judgements: Mapping[str, Mapping[str, int]]) -> Quality:
    """Measure a run with trec_eval; a query for which nothing was found is a miss."""
    grades = {query: dict(judgements[query]) for query in run}
    # trec_eval sorts by score, and equal scores by name. The place as the score keeps our order.
    scores = {
        query: {name: -float(place) for place, name in enumerate(ranked)}
        for query, ranked in run.items()
    }
    evaluator = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut.10", "recall.100"})
    measured = evaluator.evaluate(scores)
    return Quality(
        tuple(measured[query]["ndcg_cut_10"] for query in run),
        tuple(measured[query]["recall_100"] for query in run),
    )


def run(plan: Plan) -> Iterator[Table]:
    """One table per collection, and one that compares float types, if there are two."""
    few = COLLECTIONS[:1] if plan.quick else COLLECTIONS
    types = Table("quality", "nDCG@10 by float type", notes=[TYPES])
    for name in plan.collections or few:
        if (corpora.DATA / name).is_dir():
            yield measure(
                name, 3 if plan.quick else plan.queries, plan.dtype, types, depth=plan.depth
            )
        else:
            yield Table("quality", name, notes=[f"not found under {corpora.DATA}"])
    if types.rows:
        yield types


def measure(
    name: str, count: int | None, dtype: str, types: Table, *, depth: int | None = None
) -> Table:
    """Rerank and retrieve for the first queries of a collection, or for all of them.

    Args:
        name: The collection.
        count: How many of its queries; None for all.
        dtype: What is compared with float32. Named, it is all that is asked, and the mean-pooled
            rankings are left out.
        types: Gets a row for each ranking that was computed in two types.
        depth: How many of BM25's best are reranked, with no other document; None for all.
    """
    found = corpora.collection(name)
    judged = [query for query in found.queries if query in found.judgements]
    queries = judged[:count]
    if depth is not None:
        found = _narrowed(found, queries, depth)
    table = Table(
        "quality",
        f"First {len(queries)} of {len(judged)} queries, {len(found.documents):,} documents: "
        f"{name}",
    )
    other = resolve_dtype(dtype, resolve_device(None))
    results = {
        key: judge(ranked, found.judgements)
        for key, ranked in _runs(found, queries, other, pooled=dtype == "auto").items()
        if depth is None or key[1] == TOP or key[0] == BM25
    }
    figures = PUBLISHED.get((name, len(queries)), (None,) * len(KEYS))
    published = dict(zip(KEYS, figures, strict=True))
    of: dict[str, object] = {} if depth is None else {"of": f"BM25's top {depth}"}
    table.rows += [
        _row(key, results, None if depth else published.get(key)) | of for key in results
    ]
    table.notes += [_dtype_note(results, other), *NOTES]
    types.rows += [{"collection": name, **row, **of} for row in _type_rows(results, other)]
    if len(queries) < len(judged) and any(figures):
        table.notes.append(UNKNOWN_QUERIES)
    return table


def _narrowed(found: Collection, queries: list[str], depth: int) -> Collection:
    """The collection with nothing in it but some of BM25's best documents."""
    candidates = {query: found.candidates.get(query, [])[:depth] for query in queries}
    kept = dict.fromkeys(name for names in candidates.values() for name in names)
    return replace(
        found,
        documents={name: found.documents[name] for name in kept},
        candidates=candidates,
    )


def _runs(found: Collection, queries: list[str], other: str, *, pooled: bool) -> dict[Key, Run]:
    """Every ranking of the collection; each model encodes it once."""
    # BM25 finds nothing at all for some queries; they count as misses.
    runs: dict[Key, Run] = {
        (BM25, WHOLE): {query: found.candidates.get(query, []) for query in queries}
    }
    if pooled and installed(ST):
        ranked = mean_pooled(found, queries)
        runs |= {(MEAN, TOP): ranked.reranked, (MEAN, WHOLE): ranked.retrieved}
    for dtype in dict.fromkeys(("float32", other)):
        label = f"offline-minilm {dtype}"
        ranked = late_interaction(found, queries, dtype)
        runs |= {(label, TOP): ranked.reranked, (label, WHOLE): ranked.retrieved}
    return runs


def _row(key: Key, results: Mapping[Key, Quality], published: float | None) -> dict[str, object]:
    """One ranking, beside BM25 and beside the mean-pooled ranking of the same documents."""
    (ranking, of), quality = key, results[key]
    mean = None if ranking in (BM25, MEAN) else results.get((MEAN, of))
    return {
        "ranking": ranking,
        "of": of,
        "nDCG@10": f"{quality.ndcg:.4f}",
        "Recall@100": f"{quality.recall:.4f}",
        "against BM25": None if ranking == BM25 else quality.gain(results[BM25, WHOLE]),
        "against mean-pooled": None if mean is None else quality.gain(mean),
        "published nDCG@10": published,
        "difference": None if published is None else f"{quality.ndcg - published:+.4f}",
    }


def _changes(results: Mapping[Key, Quality], dtype: str) -> dict[str, float]:
    """By how much another type moves nDCG@10, by what was ranked."""
    return {
        of: results[f"offline-minilm {dtype}", of].ndcg - exact.ndcg
        for (ranking, of), exact in results.items()
        if ranking == LATE
    }


def _type_rows(results: Mapping[Key, Quality], dtype: str) -> list[dict[str, object]]:
    """nDCG@10 in both types; no row where they are the same."""
    rows: list[dict[str, object]] = []
    if dtype == "float32":
        return rows
    for of, change in _changes(results, dtype).items():
        exact, rounded = results[LATE, of], results[f"offline-minilm {dtype}", of]
        rows.append(
            {
                "queries": len(exact.ndcgs),
                "of": of,
                "float32": f"{exact.ndcg:.4f}",
                dtype: f"{rounded.ndcg:.4f}",
                "difference": f"{change:+.4f}",
                "queries that changed": sum(
                    one != other for one, other in zip(exact.ndcgs, rounded.ndcgs, strict=True)
                ),
                f"within {DTYPE_TOLERANCE}": "yes" if abs(change) <= DTYPE_TOLERANCE else "NO",
            }
        )
    return rows


def _dtype_note(results: Mapping[Key, Quality], dtype: str) -> str:
    if dtype == "float32":
        return "The default dtype here is float32, so that there is none to compare with it."
    changes = _changes(results, dtype)
    words = {TOP: "reranked", WHOLE: "retrieved"}
    verdict = "within" if max(map(abs, changes.values())) <= DTYPE_TOLERANCE else "NOT within"
    said = " and ".join(f"{change:+.4f} {words[of]}" for of, change in changes.items())
    return f"{dtype} changes nDCG@10 by {said}, {verdict} {DTYPE_TOLERANCE}."
