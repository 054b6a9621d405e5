"""Many queries at once: `rank_many` beside a loop of `rank`, and beside encoding each text once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import corpora
from benchmarks.report import Plan, Table
from benchmarks.scale_timed import status
from benchmarks.timing import Timing, interleave
from colbert_rag import ColBERT, Ranking
from colbert_rag.settings import DOCUMENT_CACHE_BYTES, OFFLINE_CHECKPOINT

COLLECTION = "scifact"
DOCUMENT_LENGTH, PART = 64, 4
"""Tokens read of a document, and what part that is of the 256 that its texts would fill. The loop's
cache is made smaller by as much, so that it holds as many documents as the default one would, and
the loop encodes as many again; but it ends in minutes."""

TOLERANCE = 1e-5
"""How far a score of `rank_many` may be from that of `rank`, in float32."""

ONCE, MANY, LOOP = "encode each text once", "colbert_rag rank_many", "colbert_rag loop of rank"


def run(plan: Plan) -> list[Table]:
    """One run of each: the loop alone takes minutes, and the three take their time alike."""
    if not (corpora.DATA / COLLECTION).is_dir():
        return [Table("many", COLLECTION, notes=[f"not found under {corpora.DATA}"])]
    found = corpora.collection(COLLECTION)
    judged = [query for query in found.queries if query in found.judgements]
    names = judged[: 4 if plan.quick else plan.queries]
    depth = plan.size(100, 5)
    queries = [found.queries[name] for name in names]
    lists = [
        [found.documents[document] for document in found.candidates.get(name, [])[:depth]]
        for name in names
    ]
    return [measure(queries, lists, of=len(judged))]


def measure(queries: list[str], lists: list[list[str]], *, of: int) -> Table:
    """Time the three in turn, and compare what they give."""
    model = ColBERT.from_pretrained(
        OFFLINE_CHECKPOINT,
        device="cpu",
        dtype="float32",
        document_length=DOCUMENT_LENGTH,
        document_cache=DOCUMENT_CACHE_BYTES // PART,
    )
    distinct = list(dict.fromkeys(text for texts in lists for text in texts))
    rankings: dict[str, list[Ranking]] = {}

    def encode() -> None:
        model.encode_queries(queries)
        model.encode_documents(distinct)

    def many() -> None:
        rankings[MANY] = model.rank_many(queries, lists)

    def loop() -> None:
        rankings[LOOP] = [
            model.rank(query, texts) for query, texts in zip(queries, lists, strict=True)
        ]

    table = Table(
        "many",
        f"First {len(queries)} of {of} queries x BM25's {max(map(len, lists))}, "
        f"{sum(map(len, lists)):,} texts, {len(distinct):,} distinct: {COLLECTION}",
        baseline=LOOP,
        drawn=False,
    )
    timings = {}
    for label, job in {ONCE: encode, MANY: many, LOOP: loop}.items():
        timings[label] = _timed(model, label, job)
    once, slow = timings[ONCE][0].seconds, timings[LOOP][0].seconds
    for label, (timing, encoded, peak) in timings.items():
        cells = {
            "time / each text once": timing.seconds / once,
            "texts encoded": encoded,
            "peak MiB beyond the model": peak,
        }
        table.timed(label, timing, slow, cells)
    distance = _distance(rankings[MANY], rankings[LOOP])
    table.notes += [
        f"The largest difference of a score is {distance:.1e}, "
        f"{'within' if distance <= TOLERANCE else 'NOT within'} {TOLERANCE}.",
        f"{OFFLINE_CHECKPOINT} in float32, 384 wide. Documents are cut to {DOCUMENT_LENGTH} tokens "
        f"and the cache has 1/{PART} of its default size: it holds as many documents of "
        f"{DOCUMENT_LENGTH} tokens as the default one does of {DOCUMENT_LENGTH * PART}.",
        "One run of each, from an empty cache. The first holds all vectors, and scores nothing.",
    ]
    return table


def _timed(model: ColBERT, label: str, job: Callable[[], None]) -> tuple[Timing, int, float | None]:
    """Time, texts encoded, and peak memory of one job that finds nothing in the cache."""
    model.unload()
    model.load()
    model.encode_documents(["warm"])
    before = model.truncation_info().documents
    base = _restarted_peak()
    timing = interleave({label: job}, repeats=1, least_seconds=0)[label]
    peak = None if base is None else (status("VmHWM") - base) / 2**20
    return timing, model.truncation_info().documents - before, peak


def _restarted_peak() -> int | None:
    """Let the peak of this process begin anew; what it holds now, or None where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return status("VmHWM")
    except OSError:  # no Linux
        return None


def _distance(found: list[Ranking], expected: list[Ranking]) -> float:
    """The largest difference between two scores of one text."""
    scores = ({place.index: place.score for place in ranking} for ranking in expected)
    return max(
        (
            abs(place.score - own[place.index])
            for ranking, own in zip(found, scores, strict=True)
            for place in ranking
        ),
        default=0.0,
    )


if __name__ == "__main__":
    from benchmarks.__main__ import start

    start("many")
