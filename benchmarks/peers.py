"""Who is measured, as a table, and whether their scores agree: a fast wrong score is no peer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.machine import installed
from colbert_rag import ColBERT
from colbert_rag.device import computes_bfloat16, resolve_device, resolve_dtype

Scores = Callable[[str, list[str]], list[float]]

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.32}
"""Largest difference of a 32-row MaxSim sum from the baseline's: rounding, not another rule."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One peer's model.

    Attributes:
        rerank: Scores of texts for a query, in input order: text in, scores out, nothing kept.
        encode: Token vectors of documents; None for peers that only rerank.
        remember: Given documents, returns a function that scores them for a query without encoding
            them again; None for peers that cannot.
    """

    rerank: Scores
    encode: Callable[[list[str]], list[Tensor]] | None = None
    remember: Callable[[list[str]], Callable[[str], list[float]]] | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """One row: a package in one float type.

    Attributes:
        name: What tables call it.
        dtype: What it computes in; "auto" is what the package chooses.
        package: The distribution that must be installed.
        open: Opens a checkpoint folder on a device in a dtype.
    """

    name: str
    dtype: str
    package: str
    open: Callable[[Path, str, str], Opened]

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.name} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one peer's scores compare with the baseline's.

    Attributes:
        difference: Largest absolute difference.
        spearman: Rank correlation.
        shared_top: Documents among the best ten of both.
        same: Whether the difference is rounding.
    """

    difference: float
    spearman: float
    shared_top: int
    same: bool


def _colbert_rag(folder: Path, device: str, dtype: str) -> Opened:
    model = ColBERT.from_pretrained(folder, device=device, dtype=dtype, document_cache=None)

    def remember(texts: list[str]) -> Callable[[str], list[float]]:
        cached = ColBERT.from_pretrained(folder, device=device, dtype=dtype)
        cached.cache_documents(texts)
        return lambda query: cached.score(query, texts)

    return Opened(model.score, lambda texts: list(model.encode_documents(texts)), remember)


def _sentence_transformers(
    folder: Path, device: str, dtype: str, *, batch_size: int = 32
) -> Opened:
    from sentence_transformers import MultiVectorEncoder

    options = {"dtype": getattr(torch, dtype)}
    model = MultiVectorEncoder(
        str(folder), device=device, local_files_only=True, model_kwargs=options
    )

    def encode(texts: list[str]) -> list[Tensor]:
        vectors: list[Tensor] = model.encode_document(
            texts, batch_size=batch_size, show_progress_bar=False
        )
        return vectors

    def score(query: str, documents: list[Tensor]) -> list[float]:
        rows = model.encode_query([query], show_progress_bar=False)
        scores: list[float] = model.similarity(rows, documents)[0].tolist()
        return scores

    def remember(texts: list[str]) -> Callable[[str], list[float]]:
        documents = encode(texts)
        return lambda query: score(query, documents)

    return Opened(lambda query, texts: score(query, encode(texts)), encode, remember)


def _rerankers(folder: Path, device: str, dtype: str) -> Opened:
    from rerankers import Reranker

    model = Reranker(str(folder), model_type="colbert", device=device, dtype=dtype, verbose=0)

    def rerank(query: str, texts: list[str]) -> list[float]:
        results = model.rank(query, texts, doc_ids=list(range(len(texts)))).results
        return [result.score for result in sorted(results, key=lambda result: result.doc_id)]

    return Opened(rerank)


def _llama_index(folder: Path, device: str, dtype: str) -> Opened:
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.colbert_rerank import ColbertRerank

    model = ColbertRerank(model=str(folder), tokenizer=str(folder), top_n=10**9, device=device)

    def rerank(query: str, texts: list[str]) -> list[float]:
        nodes = [
            NodeWithScore(node=TextNode(text=text, id_=str(place)))
            for place, text in enumerate(texts)
        ]
        ranked = model.postprocess_nodes(nodes, query_str=query)
        return [node.score for node in sorted(ranked, key=lambda node: int(node.node.node_id))]

    return Opened(rerank)


ST = "sentence-transformers"
LLAMA_INDEX = "llama-index-postprocessor-colbert-rerank"
PEERS = (
    Peer("colbert_rag", "auto", "torch", _colbert_rag),
    Peer("colbert_rag", "float32", "torch", _colbert_rag),
    Peer(ST, "float32", ST, _sentence_transformers),  # its default
    Peer(ST, "bfloat16", ST, _sentence_transformers),
    Peer("rerankers", "float32", "rerankers", _rerankers),
    Peer(LLAMA_INDEX, "float32", LLAMA_INDEX, _llama_index),
)
ST_LARGE_BATCHES = Peer(
    f"{ST} in batches of 256", "bfloat16", ST, partial(_sentence_transformers, batch_size=256)
)
BASELINE = f"{ST} float32"
"""Whose scores are the reference and whose time is the unit of every ratio: ST as it is shipped."""


def open_peers(
    folder: Path,
    *,
    device: str | None = None,
    only: Sequence[str] = (),
    table: Sequence[Peer] = PEERS,
) -> tuple[dict[str, Opened], list[str]]:
    """Open a checkpoint with every peer that runs here.

    Args:
        folder: The checkpoint.
        device: Where; None as colbert_rag chooses.
        only: Names of peers; empty for all.
        table: Who could run.

    Returns:
        The opened peers by label, and a sentence about each that is left out.
    """
    device = resolve_device(device)
    quiet()
    opened: dict[str, Opened] = {}
    skipped = []
    for peer in table:
        if only and peer.name not in only:
            continue
        dtype = resolve_dtype(peer.dtype, device)
        label = f"{peer.name} {dtype}"
        if label in opened:
            continue
        if installed(peer.package) is None:
            skipped.append(f"{label}: not installed")
        elif dtype == "bfloat16" and not computes_bfloat16(device):
            skipped.append(f"{label}: this processor computes bfloat16 more slowly than float32")
        else:
            try:
                opened[label] = peer.open(folder, device, dtype)
            except (AttributeError, ImportError, OSError, RuntimeError, TypeError) as error:
                # A peer made for other versions of its own dependencies fails while it loads.
                version = installed(peer.package)
                skipped.append(f"{label}: {version} does not load here: {error}".splitlines()[0])
    return opened, skipped


def agreement(scores: Sequence[float], reference: Sequence[float], dtype: str) -> Agreement:
    """Compare one peer's scores with the baseline's, document by document."""
    ours, theirs = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    difference = float(np.abs(ours - theirs).max())
    ranks = (np.argsort(np.argsort(values)) for values in (ours, theirs))
    tops = [set(np.argsort(-values, kind="stable")[:10].tolist()) for values in (ours, theirs)]
    return Agreement(
        difference,
        float(np.corrcoef(np.stack(list(ranks)))[0, 1]),
        len(tops[0] & tops[1]),
        difference <= TOLERANCE[dtype],
    )


def compare(scores: dict[str, list[float]]) -> dict[str, Agreement]:
    """The agreement of every peer with the baseline, by label."""
    reference = scores.get(BASELINE) or next(iter(scores.values()))
    return {
        label: agreement(values, reference, label.rsplit(" ", 1)[1])
        for label, values in scores.items()
    }


def quiet() -> None:
    """Keep the peers' bars and load reports out of the tables."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for package in ("llama_index", "rerankers", "sentence_transformers", "transformers"):
        warnings.filterwarnings("ignore", module=rf"{package}\.")
