"""Documents to token vectors, small jobs and bulk, small and base-size backbones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks import checkpoints, corpora, peers
from benchmarks.report import Plan, Table
from benchmarks.timing import interleave

JOBS = (
    # checkpoint (empty: the plan's), documents, documents in a quick run
    ("", 64, 4),
    ("", 500, 8),
    ("bert-base", 16, 0),
    ("modernbert-base", 16, 0),
)
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.995}
"""Of any token vector with the baseline's: rounding, not another model."""


LENGTHS = 0.01
"""How far a vector's length may be from the baseline's: normalised in bfloat16, it is off by up to
0.6 %."""


def least_cosine(rows: Tensor, reference: Tensor) -> float:
    """The smallest cosine of two rows of the same place; -1 where shapes or lengths differ.

    Not the dot product of rows that should have unit length: a peer that normalises in bfloat16
    leaves them up to 0.6 % too short, which says nothing about where they point.
    """
    if rows.shape != reference.shape:
        return -1.0
    if not torch.allclose(rows.norm(dim=1), reference.norm(dim=1), rtol=LENGTHS, atol=0.0):
        return -1.0
    return float(torch.nn.functional.cosine_similarity(rows, reference).min())


def run(plan: Plan) -> Iterator[Table]:
    """Time every job with all peers that give token vectors."""
    for name, full, quick in JOBS:
        if plan.size(full, quick):
            yield _encode(plan, name or plan.checkpoint, plan.size(full, quick))


def _encode(plan: Plan, name: str, count: int) -> Table:
    folder = checkpoints.build(name)
    texts = corpora.documents(count, checkpoints.open_tokenizer(folder))
    tokens = checkpoints.count_tokens(texts, folder)
    opened, skipped = peers.open_peers(folder, device="cpu", only=("colbert_rag", peers.ST))
    table = Table(
        "encode",
        f"Encode {count} documents, {tokens:,} tokens of {corpora.source()}: "
        f"{checkpoints.title(name, folder)}",
        notes=[f"Left out: {reason}" for reason in skipped],
    )
    encoders = {label: peer.encode for label, peer in opened.items() if peer.encode is not None}
    # The first call of each is its warm-up, on the shapes that are timed.
    vectors = {label: torch.cat(encode(texts)).float() for label, encode in encoders.items()}
    reference = vectors.get(peers.BASELINE, next(iter(vectors.values())))
    cosines = {label: least_cosine(rows, reference) for label, rows in vectors.items()}
    timings = interleave(
        {label: partial(encode, texts) for label, encode in encoders.items()},
        repeats=plan.repeats,
    )
    baseline = timings[peers.BASELINE].seconds if peers.BASELINE in timings else None
    for label, timing in timings.items():
        same = cosines[label] >= LEAST_COSINE[label.rsplit(" ", 1)[1]]
        table.timed(
            label,
            timing,
            baseline if same else None,
            {
                "documents/s": count / timing.seconds,
                "tokens/s": tokens / timing.seconds,
                "least cosine with the baseline's vectors": f"{cosines[label]:.6f}",
            },
        )
    table.compare_best()
    return table
