"""What a model makes of many texts, in a form that two models can be compared by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tests.helpers.oracle import Oracle, Tokens, best_sum

if TYPE_CHECKING:
    from pathlib import Path

    from colbert_rag import ColBERT
    from colbert_rag.tokenizer import TokenBatch

VECTORS = 1e-5  # largest difference of a component, float32
SCORES = 1e-4  # largest difference of a MaxSim sum, float32
SCORED = 4  # queries that are scored against every document; vectors are compared for all


@dataclass(frozen=True)
class Answers:
    """Tokens and vectors of texts, by the names of the texts."""

    query_tokens: dict[str, Tokens]
    document_tokens: dict[str, Tokens]
    query_vectors: dict[str, Tensor]
    document_vectors: dict[str, Tensor]
    scores: dict[tuple[str, str], float]


def open_exactly(checkpoint: Path | str, **options: Any) -> ColBERT:
    """Open and load a checkpoint in float32, the dtype parity is promised in."""
    from colbert_rag import ColBERT

    return ColBERT.from_pretrained(checkpoint, **{"device": "cpu", "dtype": "float32", **options})


def ask_oracle(oracle: Oracle, queries: Mapping[str, str], documents: Mapping[str, str]) -> Answers:
    """Ask one text at a time; scores are MaxSim in float64."""
    encoded_queries = {name: oracle.query(text) for name, text in queries.items()}
    encoded_documents = {name: oracle.document(text) for name, text in documents.items()}
    scores = {
        (query, document): best_sum(left.rows, right.rows)
        for query, left in itertools.islice(encoded_queries.items(), SCORED)
        for document, right in encoded_documents.items()
    }
    return Answers(
        {name: encoded.tokens for name, encoded in encoded_queries.items()},
        {name: encoded.tokens for name, encoded in encoded_documents.items()},
        {name: encoded.rows for name, encoded in encoded_queries.items()},
        {name: encoded.rows for name, encoded in encoded_documents.items()},
        scores,
    )


def ask_colbert(
    colbert: ColBERT, queries: Mapping[str, str], documents: Mapping[str, str]
) -> Answers:
    """Ask all texts at once, through the public calls."""
    texts = list(documents.values())
    scores = {
        (query, document): value
        for query, text in itertools.islice(queries.items(), SCORED)
        for document, value in zip(documents, colbert.score(text, texts), strict=True)
    }
    return Answers(
        named_tokens(queries, colbert.tokenizer.queries(list(queries.values()))),
        named_tokens(documents, colbert.tokenizer.documents(texts)),
        dict(zip(queries, colbert.encode_queries(list(queries.values())), strict=True)),
        dict(zip(documents, colbert.encode_documents(texts), strict=True)),
        scores,
    )


def named_tokens(texts: Mapping[str, str], batch: TokenBatch) -> dict[str, Tokens]:
    """Cut a ragged batch into texts."""
    starts = batch.offsets.tolist()
    spans = [slice(*span) for span in itertools.pairwise(starts)]
    return {
        name: Tokens(
            batch.ids[span].tolist(), batch.attention[span].tolist(), batch.scoring[span].tolist()
        )
        for name, span in zip(texts, spans, strict=True)
    }


def unlike(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = VECTORS
) -> dict[str, float]:
    """The texts whose vectors are further apart than `tolerance`, and by how much."""
    distances = {name: distance(rows, expected[name]) for name, rows in found.items()}
    return {name: value for name, value in distances.items() if not value <= tolerance}


def unlike_scores(
    found: Mapping[tuple[str, str], float], expected: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], tuple[float, float]]:
    """The pairs whose scores are further apart than `SCORES`: found, expected."""
    return {
        pair: (value, expected[pair])
        for pair, value in found.items()
        if not abs(value - expected[pair]) <= SCORES
    }


def distance(left: Tensor, right: Tensor) -> float:
    """The largest difference of a component, infinite between shapes."""
    if left.shape != right.shape:
        return math.inf
    return (left.float() - right.float()).abs().max().item()
