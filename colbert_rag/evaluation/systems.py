"""What is compared: finished runs, BM25, indexes, and rerankers on top of any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_rag.evaluation.collection import JudgedCollection
from colbert_rag.evaluation.files import Scores, read_run
from colbert_rag.evaluation.keywords import bm25_scores
from colbert_rag.evaluation.measures import in_order
from colbert_rag.windows import find_windows

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT
    from colbert_rag.index import Index
    from colbert_rag.ranking import Ranking

DEPTH = 100
"""How many documents a first stage finds, and a reranker orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a system took for all queries together.

    Attributes:
        seconds: From the first text to the last answer; None for a finished run. Loading a model is
            not counted, nor is making an index.
        documents: Documents that were encoded.
        tokens: Tokens of those documents.
    """

    seconds: float | None = None
    documents: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a system found.

    Attributes:
        scores: Score by document id, by query id.
        cost: What that took.
        reranked: How many of each query's documents a reranker ordered; 0 without one.
        tokens: Tokens of each document that was encoded, by its id.
    """

    scores: Scores
    cost: Cost = Cost()
    reranked: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """Something that answers queries.

    Attributes:
        name: What it is called in tables.
        answer: Answers all queries of a collection; gets what `base` found, if there is one.
        base: The system whose documents this one reranks.
    """

    name: str
    answer: Callable[[JudgedCollection, Run], Run]
    base: System | None = None


def run_file(path: str | Path, name: str | None = None) -> System:
    """A finished run in TREC's format, from whatever system.

    Args:
        path: Its file, read when it is needed.
        name: What to call it; None takes the name of the file.

    Raises:
        ReadingError: when it is read: it is no run.
    """
    return System(name or Path(path).name, lambda collection, nothing: Run(scores=read_run(path)))


def bm25(*, depth: int = DEPTH) -> System:
    """BM25 as Lucene computes it, by the library bm25s: k1 1.5, b 0.75, no stemming, no stop words.

    Without both it suits any language; for one language alone, stemming finds more.

    Raises:
        MissingExtraError: when it runs: bm25s is not installed.
    """
    return System("BM25", lambda collection, nothing: _bm25(collection, depth))


def searched(index: Index, name: str | None = None, *, depth: int = DEPTH) -> System:
    """What an index of this package finds, whose documents have the ids of the collection.

    Args:
        index: Open, with its model.
        name: What to call it; None takes the name of the index.
        depth: How many documents to find.
    """

    def answer(collection: JudgedCollection, nothing: Run) -> Run:
        collection.needs_texts("an index")
        start = time.perf_counter()
        hits = index.search_many(list(collection.queries.values()), depth)
        seconds = time.perf_counter() - start
        scores = {
            query: {hit.id: hit.score for hit in found}
            for query, found in zip(collection.queries, hits, strict=True)
        }
        return Run(scores=scores, cost=Cost(seconds=seconds))

    return System(name or Path(index.name).name, answer)


def reranked(
    base: System,
    model: ColBERT,
    name: str | None = None,
    *,
    depth: int = DEPTH,
    show_progress: bool = False,
) -> System:
    """The best documents of another system, in the order of this package's scores.

    What the other system found beyond `depth` follows behind, in its own order, so that Recall of
    the whole stays comparable.

    Args:
        base: What finds the documents.
        model: What orders them.
        name: What to call it; None takes the checkpoint's name.
        depth: How many documents of each query are reranked.
        show_progress: Draw a bar.
    """

    def answer(collection: JudgedCollection, found: Run) -> Run:
        collection.needs_texts("a reranker")
        candidates = {
            query: [
                name
                for name in in_order(found.scores.get(query, {}))
                if name in collection.documents
            ]
            for query in collection.queries
        }
        best = {query: names[:depth] for query, names in candidates.items()}
        texts = [[collection.documents[name] for name in names] for names in best.values()]
        model.load()
        before, start = model.truncation_info().documents, time.perf_counter()
        rankings = model.rank_many(
            list(collection.queries.values()), texts, show_progress=show_progress
        )
        seconds = time.perf_counter() - start
        encoded = model.truncation_info().documents - before
        scores = {
            query: _scores(ranking, names, candidates[query][depth:])
            for (query, names), ranking in zip(best.items(), rankings, strict=True)
        }
        distinct = dict.fromkeys(name for names in best.values() for name in names)
        tokens, all_tokens = _tokens(model, {name: collection.documents[name] for name in distinct})
        cost = Cost(seconds=seconds, documents=encoded, tokens=all_tokens)
        return Run(scores=scores, cost=cost, reranked=depth, tokens=tokens)

    label = name or f"{Path(model.settings.checkpoint).name} over {base.name}'s {depth}"
    return System(label, answer, base)


def _scores(ranking: Ranking, names: Sequence[str], behind: Sequence[str]) -> dict[str, float]:
    """Scores that say the order of a ranking, whatever reads them, and of what follows behind it.

    A ranking puts texts without words and scores that are no number last, whatever their score.
    """
    scores: dict[str, float] = {}
    lowest = 0.0
    for place in ranking:
        score = place.score
        if scores and not score <= lowest:
            score = lowest - 1
        scores[names[place.index]] = lowest = score
    for number, name in enumerate(behind, start=1):
        scores[name] = lowest - number
    return scores


def _tokens(model: ColBERT, documents: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """Tokens of each document, its windows together, and of all: equal texts are encoded once."""
    pieces = [[text] for text in documents.values()]
    if model.settings.long_documents == "windows":
        cut = find_windows(model.tokenizer, list(documents.values()))
        pieces = [
            [text[start:stop] for start, stop in spans]
            for text, spans in zip(documents.values(), cut, strict=True)
        ]
    texts = list(dict.fromkeys(piece for parts in pieces for piece in parts))
    lengths = dict(zip(texts, model.tokenizer.documents(texts).lengths.tolist(), strict=True))
    by_document = {
        name: sum(lengths[piece] for piece in parts)
        for name, parts in zip(documents, pieces, strict=True)
    }
    return by_document, sum(lengths.values())


def _bm25(collection: JudgedCollection, depth: int) -> Run:
    collection.needs_texts("BM25")
    start = time.perf_counter()
    scores = bm25_scores(collection.queries, collection.documents, depth)
    return Run(scores=scores, cost=Cost(seconds=time.perf_counter() - start))
