"""How cost grows with the number of documents, their length, and the number of queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import checkpoints, corpora, peers
from benchmarks.report import Plan, Table
from benchmarks.timing import interleave
from colbert_rag import ColBERT

DOCUMENTS = (16, 32, 64, 128, 256)
TOKENS = (32, 64, 128, 256, 507)
QUERIES = (1, 2, 4, 8)
FIXED = 32
"""Documents of the curves along tokens and queries."""

Jobs = dict[str, Callable[[], object]]


def run(plan: Plan) -> Iterator[Table]:
    """Three curves, for us and for sentence-transformers."""
    folder = checkpoints.build(plan.checkpoint)
    tokenizer = checkpoints.open_tokenizer(folder)
    opened, _ = peers.open_peers(folder, device="cpu", only=("colbert_rag", peers.ST))
    encoders = {label: peer.encode for label, peer in opened.items() if peer.encode is not None}
    title = checkpoints.title(plan.checkpoint, folder)
    fixed = plan.size(FIXED, 2)

    def encoding(texts: list[str]) -> Jobs:
        return {label: partial(encode, texts) for label, encode in encoders.items()}

    yield _curve(
        plan,
        f"Encode documents of about 149 tokens: {title}",
        "documents",
        {x: encoding(corpora.documents(x, tokenizer)) for x in _points(plan, DOCUMENTS)},
    )
    yield _curve(
        plan,
        f"Encode {fixed} documents of one length: {title}",
        "tokens per document",
        {x: encoding(corpora.cut([x] * fixed, tokenizer)) for x in _points(plan, TOKENS)},
    )
    yield _curve(
        plan,
        f"Rerank the same {fixed} new documents for several queries: {title}",
        "queries",
        {
            x: _asking(corpora.questions(x), opened, folder, fixed, plan.repeats)
            for x in _points(plan, QUERIES)
        },
    )


def _points(plan: Plan, points: tuple[int, ...]) -> tuple[int, ...]:
    return points[:2] if plan.quick else points


def _asking(
    queries: Sequence[str], opened: dict[str, peers.Opened], folder: Path, fixed: int, repeats: int
) -> Jobs:
    """Each call takes documents nobody has seen, so that our cache starts without them."""
    pool = corpora.documents(fixed * (repeats + 1), checkpoints.open_tokenizer(folder))
    groups = [pool[start : start + fixed] for start in range(0, len(pool), fixed)]

    def ask(score: peers.Scores, turn: itertools.cycle[list[str]]) -> None:
        texts = next(turn)
        for query in queries:
            score(query, texts)

    cached = ColBERT.from_pretrained(folder, device="cpu")
    scorers: dict[str, peers.Scores] = {"colbert_rag, as shipped (document cache)": cached.score}
    scorers |= {label: peer.rerank for label, peer in opened.items() if peers.ST in label}
    return {label: partial(ask, score, itertools.cycle(groups)) for label, score in scorers.items()}


def _curve(plan: Plan, title: str, axis: str, points: dict[int, Jobs]) -> Table:
    """One table; `exponent` is the slope to the point before on doubly logarithmic axes."""
    table = Table("growth", title, axis=axis)
    before: dict[str, tuple[int, float]] = {}
    for x, jobs in points.items():
        for job in jobs.values():
            job()
        timings = interleave(jobs, repeats=plan.repeats, least_seconds=0)
        baseline = timings.get(peers.BASELINE)
        for label, timing in timings.items():
            last, seconds = before.get(label, (0, 0.0))
            slope = math.log(timing.seconds / seconds) / math.log(x / last) if last else None
            cells = {axis: x, "exponent": slope}
            table.timed(label, timing, None if baseline is None else baseline.seconds, cells)
            before[label] = x, timing.seconds
    return table
