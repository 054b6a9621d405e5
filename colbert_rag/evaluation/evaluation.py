"""Several systems on one collection: how good, how surely better, at what cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from colbert_rag.errors import EvaluationError
from colbert_rag.evaluation import significance
from colbert_rag.evaluation.collection import JudgedCollection, some
from colbert_rag.evaluation.measures import (
    DEFAULT_MEASURES,
    Measure,
    in_order,
    library,
    measure,
)
from colbert_rag.evaluation.results import Comparison, Evaluation, Point, Result
from colbert_rag.evaluation.systems import Run, System

DEPTHS = (10, 20, 50, 100, 200)
"""How deep reranking goes in the curve of quality against depth."""


def evaluate(
    collection: JudgedCollection,
    systems: Sequence[System],
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    depths: Sequence[int] = DEPTHS,
    seed: int = 0,
) -> Evaluation:
    """Let systems answer the queries of a collection, and compare them.

    Args:
        collection: Judged queries, and their documents.
        systems: The first one is what the others are compared with. What a reranker is based on is
            measured, too, and before it.
        measures: Such as "nDCG@10", "MRR@10", "Recall@100" or "MAP"; the first one decides.
        depths: Where the curve of a reranker has its points, as far as it went.
        seed: Of the significance test and the intervals.

    Raises:
        EvaluationError: there is nothing to compare, or a system's answers do not belong to the
            collection.
        MissingExtraError: the extra `evaluate` is not installed.
        ReadingError: a run cannot be read.
        ValueError: a measure is unknown.
    """
    asked = [Measure.read(name) for name in dict.fromkeys(measures)]
    if not asked or not systems:
        raise EvaluationError("there is nothing to measure: name a system and a measure")
    computed = library()  # a missing extra shows before anything is ranked
    runs = _answers(collection, systems)
    notes = list(collection.notes)
    results = []
    for system, run in runs.items():
        notes += _misfits(system.name, run, collection)
        rankings = {query: in_order(run.scores.get(query, {})) for query in collection.judgements}
        values = measure(rankings, collection.judgements, asked)
        results.append(Result(system=system.name, values=values, cost=run.cost, scores=run.scores))
    few = significance.too_few(len(collection.judgements))
    return Evaluation(
        collection=collection,
        measures=tuple(one.name for one in asked),
        library=computed,
        results=tuple(results),
        comparisons=_comparisons(results, asked[0].name, list(collection.judgements), seed),
        curves={
            system.name: _curve(collection, run, runs[system.base], asked[0], depths)
            for system, run in runs.items()
            if system.base is not None
        },
        notes=(*notes, few) if few else tuple(notes),
        seed=seed,
    )


def _answers(collection: JudgedCollection, systems: Sequence[System]) -> dict[System, Run]:
    runs: dict[System, Run] = {}

    def answer(system: System) -> Run:
        if system not in runs:
            found = Run(scores={}) if system.base is None else answer(system.base)
            runs[system] = system.answer(collection, found)
        return runs[system]

    for system in systems:
        answer(system)
    names = [system.name for system in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EvaluationError(f"two systems are called {twice!r}: give one of them another name")
    return runs


def _misfits(system: str, run: Run, collection: JudgedCollection) -> list[str]:
    """What of a run does not fit the collection."""
    judged = collection.judgements
    answered = [query for query in judged if run.scores.get(query)]
    if not answered and any(query in run.scores for query in judged):
        raise EvaluationError(
            f"{system} finds nothing for any of the {len(judged):,} judged queries of "
            f"{collection.name}, expected documents for one at least. BM25 finds those that share "
            "a word with a query; to search by a model alone, name an index of the corpus"
        )
    if not answered:
        raise EvaluationError(
            f"{system} answers none of the {len(judged):,} judged queries of {collection.name}: "
            f"judged are {some(judged)}, its queries are {some(run.scores) or 'none at all'}. "
            "Are these the judgements for this run?"
        )
    found = {name for query in answered for name in run.scores[query]}
    known = collection.documents or {name for query in judged for name in judged[query]}
    unknown = [name for name in found if name not in known]
    where = "in the corpus" if collection.documents else "judged for any query"
    if len(unknown) == len(found):
        raise EvaluationError(
            f"{system}: none of the {len(found):,} documents that it found is {where} of "
            f"{collection.name}: it found {some(sorted(found))}, there are {some(known)}. "
            "Do run and judgements belong to the same collection?"
        )
    notes = []
    if len(answered) < len(judged):
        notes.append(
            f"{system} found nothing for {len(judged) - len(answered):,} of {len(judged):,} "
            "queries, which count as 0"
        )
    if unknown and collection.documents:
        notes.append(
            f"{system} found {len(unknown):,} documents that are not in the corpus, such as "
            f"{some(sorted(unknown))}"
        )
    tied = sum(_ties(run.scores[query]) for query in answered)
    if tied:
        notes.append(
            f"{system} gave equal scores to documents among the best 10 of {tied:,} queries: "
            "trec_eval puts equal scores into the reverse order of their ids, whatever rank a run "
            "gives them"
        )
    return notes


def _ties(scores: Mapping[str, float]) -> bool:
    best = np.array([scores[name] for name in in_order(scores)[:11]], dtype=np.float32)
    return bool((best[1:] == best[:-1]).any())


def _comparisons(
    results: Sequence[Result], name: str, queries: Sequence[str], seed: int
) -> tuple[Comparison, ...]:
    base = results[0].values[name]
    differences = [
        [ours - theirs for ours, theirs in zip(result.values[name], base, strict=True)]
        for result in results[1:]
    ]
    p_values = significance.holm(
        [significance.randomisation_test(values, seed=seed) for values in differences]
    )
    compared = []
    for result, values, p_value in zip(results[1:], differences, p_values, strict=True):
        low, high = significance.interval(values, seed=seed)
        compared.append(
            Comparison(
                system=result.system,
                differences=dict(zip(queries, values, strict=True)),
                low=low,
                high=high,
                p_value=p_value,
                visible=significance.visible_difference(values),
                needed=significance.queries_needed(values),
            )
        )
    return tuple(compared)


def _curve(
    collection: JudgedCollection, run: Run, base: Run, asked: Measure, depths: Sequence[int]
) -> tuple[Point, ...]:
    """Quality at each depth: scores of documents do not depend on each other, so one run has all.

    At a depth, that many of the first stage's documents are in the order of the reranker, and the
    others follow as they were.
    """
    first = {query: in_order(base.scores.get(query, {})) for query in collection.judgements}
    points = []
    for depth in sorted({*(depth for depth in depths if depth < run.reranked), run.reranked}):
        rankings = {}
        encoded: dict[str, None] = {}
        for query, names in first.items():
            scores = run.scores.get(query, {})
            names = [name for name in names if name in scores]
            best = in_order({name: scores[name] for name in names[:depth]})
            rankings[query] = best + names[depth:]
            encoded |= dict.fromkeys(best)
        (values,) = measure(rankings, collection.judgements, [asked]).values()
        points.append(
            Point(
                depth=depth,
                value=statistics.fmean(values),
                documents=len(encoded),
                tokens=sum(run.tokens.get(name, 0) for name in encoded),
            )
        )
    return tuple(points)
