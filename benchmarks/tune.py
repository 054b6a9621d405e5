"""What depth, document length and a threshold change: measured, and drawn for the page on tuning.

Costs are counted in tokens, which no other load on the machine changes.
`python -m benchmarks.tune` takes some minutes, writes `benchmarks/results/tune.json`, and draws
`docs/images/tune-*.svg`; with `--draw` it draws what is there. The model is `offline-minilm`, which
was never trained for late interaction: the shape of a curve carries over, its height does not.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from benchmarks import corpora
from benchmarks.machine import ROOT
from colbert_rag import ColBERT
from colbert_rag.evaluation import JudgedCollection, evaluate, reranked, run_file
from colbert_rag.evaluation.measures import in_order
from colbert_rag.figure import Figure

RESULTS = ROOT / "benchmarks" / "results" / "tune.json"
IMAGES = ROOT / "docs" / "images"
MEASURE = "nDCG@10"
QUERIES = 50
LENGTH_COLLECTION, LENGTH_QUERIES, LENGTH_DEPTH = "scifact", 100, 20
LENGTHS = (32, 64, 128, 256, 512)
DEPTHS = (5, 10, 20, 50, 100)
DEPTH_COLLECTIONS = ("scifact", "lfrqa", "cosqa")
DEPTH_LENGTH = 128
THRESHOLDS = tuple(round(0.30 + 0.05 * step, 2) for step in range(9))


def opened(length: int, long_documents: str = "truncate") -> ColBERT:
    """The offline model in float32, reading so many tokens of a document."""
    return ColBERT.from_pretrained(
        "offline-minilm", dtype="float32", document_length=length, long_documents=long_documents
    )


def read(name: str, queries: int) -> JudgedCollection:
    """Some queries of a collection, always the same ones."""
    return JudgedCollection.read(corpora.DATA / name).sample(queries)


def by_depth() -> dict[str, object]:
    """Quality and distinct documents at each depth, by collection."""
    model, found = opened(DEPTH_LENGTH), {}
    for name in DEPTH_COLLECTIONS:
        base = run_file(corpora.DATA / name / "bm25.top100.trec", "BM25")
        view = evaluate(
            read(name, QUERIES), [reranked(base, model, "ours")], measures=[MEASURE], depths=DEPTHS
        )
        found[name] = {
            "BM25": view.results[0].mean(MEASURE),
            "points": [
                [point.depth, point.value, point.documents, point.tokens]
                for point in view.curves["ours"]
            ],
        }
    return found


def by_length() -> dict[str, object]:
    """Quality and cost at each document length."""
    collection, found = read(LENGTH_COLLECTION, LENGTH_QUERIES), {}
    base = run_file(corpora.DATA / LENGTH_COLLECTION / "bm25.top100.trec", "BM25")
    models = {str(length): opened(length) for length in LENGTHS}
    models["windows of 128"] = opened(128, "windows")
    for label, model in models.items():
        system = reranked(base, model, "ours", depth=LENGTH_DEPTH)
        view = evaluate(collection, [system], measures=[MEASURE], depths=())
        ours = view.results[1]
        found[label] = [ours.mean(MEASURE), ours.cost.tokens]
        found["BM25"] = view.results[0].mean(MEASURE)
        model.unload()
    return found


def by_threshold() -> list[list[float]]:
    """Of the best answers: how many reach a mean similarity, and how many of those are right."""
    collection = read("lfrqa", 2 * QUERIES)
    base = run_file(corpora.DATA / "lfrqa" / "bm25.top100.trec", "BM25")
    found = base.answer(collection, None).scores  # type: ignore[arg-type]  # a run needs no base
    model, best = opened(DEPTH_LENGTH), []
    for query, text in collection.queries.items():
        names = in_order(found.get(query, {}))[:LENGTH_DEPTH]
        if names:
            first = model.rank(text, [collection.documents[name] for name in names], top_k=1)[0]
            best.append((first.mean, collection.judgements[query].get(names[first.index], 0) > 0))
    rows = []
    for threshold in THRESHOLDS:
        kept = [right for mean, right in best if mean >= threshold]
        rows.append(
            [threshold, len(kept) / len(best), sum(kept) / len(kept) if kept else float("nan")]
        )
    return rows


def measure() -> dict[str, object]:
    """All of it, with the day."""
    return {
        "day": datetime.now(UTC).date().isoformat(),
        "depth": by_depth(),
        "length": by_length(),
        "threshold": by_threshold(),
    }


def figures(results: dict[str, object]) -> dict[str, Figure]:
    """One figure for each question of the page."""
    depth, length, threshold = results["depth"], results["length"], results["threshold"]
    assert isinstance(depth, dict)
    assert isinstance(length, dict)
    assert isinstance(threshold, list)
    sizes = [str(size) for size in LENGTHS]
    kept = [row for row in threshold if row[1] > 0]
    return {
        "tune-depth": Figure(
            "How deep is it worth reranking?",
            "gain of nDCG@10 over BM25, by depth",
            [str(point[0]) for point in depth[DEPTH_COLLECTIONS[0]]["points"]],
            {
                name: [point[1] - found["BM25"] for point in found["points"]]
                for name, found in depth.items()
            },
            {"BM25 alone": 0.0},
        ),
        "tune-length": Figure(
            "How many tokens of a document?",
            "nDCG@10 by document length; below: thousand tokens",
            [f"{size}\n{length[size][1] / 1000:.0f}" for size in sizes],
            {"cut at that length": [length[size][0] for size in sizes]},
            {"windows of 128": length["windows of 128"][0], "BM25 alone": length["BM25"]},
        ),
        "tune-threshold": Figure(
            "What does a threshold leave?",
            "share of queries, by the least mean similarity",
            [f"{row[0]:.2f}" for row in kept],
            {
                "have an answer": [row[1] for row in kept],
                "of those, right": [row[2] for row in kept],
            },
            {},
        ),
    }


def main() -> None:
    """Measure unless told to draw alone, and draw."""
    if "--draw" not in sys.argv[1:]:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, figure in figures(results).items():
        (IMAGES / f"{name}.svg").write_text(f"{figure.svg(standalone=True)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
