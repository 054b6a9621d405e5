"""What storing vectors in fewer bits costs: quality on judged collections, time and bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import corpora
from benchmarks.corpora import Collection
from benchmarks.quality import COLLECTIONS, judge
from benchmarks.rankers import DEPTH, Run, minilm
from benchmarks.report import Plan, Table
from benchmarks.timing import interleave
from colbert_rag.codings import CODINGS, FLOAT16
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, IndexInfo, LocalIndex
from colbert_rag.settings import OFFLINE_CHECKPOINT

KEPT = os.environ.get("COLBERT_RAG_VECTORS")
"""A folder that keeps what was encoded for another run; encoding takes most of the time."""

TIMED = 5
"""Queries that are searched for one by one, in turn for each coding."""

NOTE = (
    "Everything is searched exactly, over the vectors as they are stored. R@10 and R@100: the part "
    "of float16's best that are among the best. ms, where it was measured: a search, median of "
    "queries one by one."
)


def run(plan: Plan) -> Iterator[Table]:
    """One table per collection."""
    few = COLLECTIONS[:1] if plan.quick else COLLECTIONS
    for name in plan.collections or few:
        if (corpora.DATA / name).is_dir():
            yield measure(name, plan)
        else:
            yield Table("codings", name, notes=[f"not found under {corpora.DATA}"])


def measure(name: str, plan: Plan) -> Table:
    """Search a collection in each coding."""
    found = corpora.collection(name)
    judged = [query for query in found.queries if query in found.judgements]
    queries = judged[: 3 if plan.quick else plan.queries]
    documents, vectors = encoded(name, found, queries)
    info = IndexInfo(
        checkpoint=OFFLINE_CHECKPOINT, fingerprint="0" * 64, dim=documents.dim, recipe={}
    )
    names = [Document(document, text) for document, text in found.documents.items()]
    indexes = {}
    for coding in CODINGS.values():
        indexes[coding.name] = LocalIndex(":memory:", like=info, vectors=coding.name)
        indexes[coding.name].add_encoded(names, documents)
    runs = {coding: _retrieve(index, queries, vectors) for coding, index in indexes.items()}
    some = vectors[: plan.size(TIMED, 1)]
    jobs = {coding: partial(_one_by_one, index, some) for coding, index in indexes.items()}
    # With --repeats 0 a machine that is busy can measure quality, which is the same there.
    timings = interleave(jobs, repeats=plan.repeats, least_seconds=0) if plan.repeats else {}
    table = Table(
        "codings",
        f"{len(queries)} queries, {len(names):,} documents, {len(documents.values):,} tokens of "
        f"width {documents.dim}: {name}",
    )
    for coding, ranked in runs.items():
        table.rows.append(
            {
                "vectors": coding,
                "bytes a token": CODINGS[coding].row_bytes(documents.dim),
                "nDCG@10": f"{judge(ranked, found.judgements).ndcg:.4f}",
                "against float16": judge(ranked, found.judgements).gain(
                    judge(runs[FLOAT16.name], found.judgements)
                ),
                "R@10": f"{kept(ranked, runs[FLOAT16.name], 10):.4f}",
                "R@100": f"{kept(ranked, runs[FLOAT16.name], 100):.4f}",
            }
        )
        if coding in timings:
            table.rows[-1]["ms"] = f"{1000 * timings[coding].seconds / len(some):.1f}"
    table.notes.append(NOTE)
    return table


def encoded(
    name: str, found: Collection, queries: Sequence[str]
) -> tuple[TokenEmbeddings, TokenEmbeddings]:
    """Vectors of all documents, in float16, and of the queries."""
    model = minilm()
    vectors = model.encode_queries([found.queries[query] for query in queries])
    file = Path(KEPT) / f"{name}.docs.safetensors" if KEPT else None
    if file is not None and file.exists():
        return TokenEmbeddings.load(file), vectors
    encoded = model.encode_documents(list(found.documents.values())).to(dtype=torch.float16)
    if file is not None:
        encoded.save(file)
    return encoded, vectors


def _retrieve(index: LocalIndex, queries: Sequence[str], vectors: TokenEmbeddings) -> Run:
    hits = index.search_embeddings(vectors, DEPTH)
    return {query: [hit.id for hit in best] for query, best in zip(queries, hits, strict=True)}


def _one_by_one(index: LocalIndex, vectors: TokenEmbeddings) -> None:
    for at in range(len(vectors)):
        index.search_embeddings(vectors[at : at + 1], 10)


def kept(ranked: Mapping[str, list[str]], base: Mapping[str, list[str]], depth: int) -> float:
    """The part of the best of `base` that is among the best of `ranked`: the mean of queries."""
    shares = [
        len({*ranked[query][:depth]} & {*base[query][:depth]}) / len(base[query][:depth])
        for query in base
    ]
    return sum(shares) / len(shares)
