"""Rerank one query's documents: text in, scores out, cold and with known documents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import checkpoints, corpora, peers
from benchmarks.report import Plan, Table
from benchmarks.timing import Timing, interleave


def run(plan: Plan) -> list[Table]:
    """Time a cold rerank with all peers, and a warm one with those that can keep documents."""
    name, count = plan.checkpoint, plan.size(100, 6)
    folder = checkpoints.build(name)
    texts = corpora.documents(count, checkpoints.open_tokenizer(folder))
    tokens = checkpoints.count_tokens(texts, folder)
    query = corpora.questions(1)[0]
    opened, skipped = peers.open_peers(folder, device="cpu")
    job = f"1 query x {count} documents, {tokens:,} tokens of {corpora.source()}"
    checkpoint = checkpoints.title(name, folder)
    cold = _table(
        f"Rerank cold, {job}: {checkpoint}",
        {label: partial(peer.rerank, query, texts) for label, peer in opened.items()},
        plan.repeats,
    )
    cold.notes += [f"Left out: {reason}" for reason in skipped]
    warm = _table(
        f"Rerank warm (documents seen before), {job}: {checkpoint}",
        {
            label: partial(peer.remember(texts), query)
            for label, peer in opened.items()
            if peer.remember is not None
        },
        plan.repeats,
    )
    warm.notes += [
        "colbert_rag: the same call as cold; its document cache is on by default.",
        "sentence-transformers keeps nothing: here the caller stored the documents' vectors, and "
        "calls encode_query and similarity.",
    ]
    return [cold, warm]


def _table(title: str, jobs: dict[str, Callable[[], list[float]]], repeats: int) -> Table:
    """Check that the scores agree, then time."""
    table = Table("rerank", title)
    # The first call of each is its warm-up, on the shapes that are timed.
    agreements = peers.compare({label: job() for label, job in jobs.items()})
    timings = interleave(jobs, repeats=repeats)
    baseline = timings.get(peers.BASELINE)
    for label, timing in timings.items():
        found = agreements[label]
        table.timed(
            label,
            timing,
            baseline.seconds if baseline is not None and found.same else None,
            {
                "p95": _p95(timing),
                "largest score difference": found.difference,
                "Spearman": found.spearman,
                "shared top 10": found.shared_top,
            },
        )
    table.compare_best()
    others = [label for label, found in agreements.items() if not found.same]
    if others:
        table.notes.append(
            f"No ratio for {', '.join(others)}: these are other scores than the checkpoint's, "
            "so that their time is no comparison."
        )
    return table


def _p95(timing: Timing) -> str:
    """With fewer than 20 repetitions the 95th percentile is the slowest, and says so."""
    seconds = sorted(repetition.seconds for repetition in timing.kept)
    if len(seconds) < 20:
        return f"{seconds[-1]:.3g} (slowest)"
    return f"{seconds[int(0.95 * (len(seconds) - 1))]:.3g}"


if __name__ == "__main__":
    from benchmarks.__main__ import start

    start("rerank")
