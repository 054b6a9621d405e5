"""Rankings of a judged collection by models that encode each of its documents once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.corpora import Collection
from benchmarks.peers import quiet
from colbert_rag import ColBERT
from colbert_rag.checkpoint.source import locate
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, LocalIndex
from colbert_rag.settings import OFFLINE_CHECKPOINT, Settings

DOCUMENT_LENGTH = 256
DEPTH = 100
"""Places of a ranking that are judged."""

Run = dict[str, list[str]]
"""Document ids, best first, by query id."""


@dataclass(frozen=True, slots=True)
class Rankings:
    """What one model makes of a collection.

    Attributes:
        reranked: BM25's candidates, reordered.
        retrieved: The best of the whole corpus.
    """

    reranked: Run
    retrieved: Run


def minilm(dtype: str = "float32") -> ColBERT:
    """offline-minilm by its token vectors, which remembers nothing."""
    return ColBERT.from_pretrained(
        OFFLINE_CHECKPOINT,
        raw_token_embeddings=True,
        dtype=dtype,
        document_length=DOCUMENT_LENGTH,
        document_cache=None,
    )


def late_interaction(found: Collection, queries: Sequence[str], dtype: str) -> Rankings:
    """Rank by offline-minilm's token vectors, the way users do: `ColBERT.rank` and `LocalIndex`."""
    model = minilm(dtype)
    vectors = model.encode_documents(list(found.documents.values()))
    return Rankings(
        _rerank(model, found, queries, vectors), _retrieve(model, found, queries, vectors)
    )


def _rerank(
    model: ColBERT, found: Collection, queries: Sequence[str], vectors: TokenEmbeddings
) -> Run:
    held = dict(zip(found.documents.values(), vectors, strict=True))

    def known(texts: Sequence[str]) -> dict[str, Tensor]:
        return {text: held[text] for text in texts}

    run = {}
    for query in queries:
        names = found.candidates.get(query, [])
        texts = [found.documents[name] for name in names]
        ranking = model.rank(found.queries[query], texts, known=known)
        run[query] = [names[place.index] for place in ranking]
    return run


def _retrieve(
    model: ColBERT, found: Collection, queries: Sequence[str], vectors: TokenEmbeddings
) -> Run:
    documents = [Document(name, text) for name, text in found.documents.items()]
    with LocalIndex(":memory:", model) as index:
        index.add_encoded(documents, vectors)
        hits = index.search_many([found.queries[query] for query in queries], DEPTH)
    return {query: [hit.id for hit in best] for query, best in zip(queries, hits, strict=True)}


def mean_pooled(found: Collection, queries: Sequence[str]) -> Rankings:
    """Rank by the cosine of mean-pooled vectors, as sentence-transformers computes them."""
    from sentence_transformers import SentenceTransformer

    quiet()
    folder = locate(Settings.normalised(OFFLINE_CHECKPOINT))
    model = SentenceTransformer(str(folder), local_files_only=True)
    model.max_seq_length = DOCUMENT_LENGTH

    def encode(texts: list[str]) -> Tensor:
        vectors: Tensor = model.encode(
            texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors

    documents = encode(list(found.documents.values()))
    scores = encode([found.queries[query] for query in queries]) @ documents.T
    names = list(found.documents)
    places = {name: place for place, name in enumerate(names)}
    rankings = Rankings({}, {})
    for query, row in zip(queries, scores, strict=True):
        candidates = found.candidates.get(query, [])
        chosen = torch.tensor([places[name] for name in candidates], dtype=torch.int64)
        rankings.reranked[query] = _best(row[chosen], candidates)
        rankings.retrieved[query] = _best(row, names)
    return rankings


def _best(scores: Tensor, names: Sequence[str]) -> list[str]:
    order = scores.argsort(descending=True, stable=True)
    return [names[place] for place in order[:DEPTH].tolist()]
