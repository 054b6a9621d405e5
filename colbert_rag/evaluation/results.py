"""What an evaluation found, as values that show themselves: a table wherever they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from colbert_rag.evaluation import significance
from colbert_rag.evaluation.collection import JudgedCollection
from colbert_rag.evaluation.systems import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one system achieved.

    Attributes:
        system: Its name.
        values: For each measure, a value for each query.
        cost: What it took.
        scores: What it found, as a run.
    """

    system: str
    values: Mapping[str, tuple[float, ...]]
    cost: Cost
    scores: Mapping[str, Mapping[str, float]] = field(repr=False)

    def mean(self, name: str) -> float:
        """The mean of one measure."""
        return statistics.fmean(self.values[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One system against the first one, by the first measure.

    Attributes:
        system: Its name.
        differences: Value minus the first system's, by query id.
        low: Where 95 % of bootstrap samples of the queries have their mean difference, from ...
        high: ... to.
        p_value: Of the randomisation test, corrected for the number of comparisons.
        visible: The smallest difference that so many queries show four times out of five.
        needed: How many queries would show the difference that was measured, four times out of
            five; None where there is none.
    """

    system: str
    differences: Mapping[str, float]
    low: float
    high: float
    p_value: float
    visible: float
    needed: int | None

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences.values())

    @property
    def significant(self) -> bool:
        """Whether chance alone would seldom make such a difference."""
        return self.p_value < significance.ALPHA

    @property
    def counts(self) -> tuple[int, int, int]:
        """Queries for which the system is better, as good, and worse."""
        values = self.differences.values()
        better, worse = sum(value > 0 for value in values), sum(value < 0 for value in values)
        return better, len(values) - better - worse, worse

    def extremes(self, count: int) -> list[tuple[str, float]]:
        """The queries with the largest differences either way, most improved first."""
        order = sorted(self.differences.items(), key=lambda pair: (-pair[1], pair[0]))
        gained = [pair for pair in order[:count] if pair[1] > 0]
        lost = [pair for pair in order[len(order) - count :] if pair[1] < 0]
        return gained + lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Quality and cost of reranking so deep.

    Attributes:
        depth: How many documents of each query are reranked.
        value: The first measure.
        documents: Distinct documents to encode.
        tokens: Tokens of those.
    """

    depth: int
    value: float
    documents: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All results; a table wherever it is shown.

    Attributes:
        collection: What was measured on.
        measures: Names of the measures; the first one is compared and drawn.
        library: What computed them.
        results: One for each system, the baseline first.
        comparisons: One for each system but the first.
        curves: Points by depth, by the name of each reranking system.
        notes: What a reader should know: what was left out, ties, whether there are too few
            queries.
        seed: Of the significance test and the intervals.
    """

    collection: JudgedCollection
    measures: tuple[str, ...]
    library: str
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    curves: Mapping[str, tuple[Point, ...]]
    notes: tuple[str, ...]
    seed: int

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, with every query."""
        queries = list(self.collection.judgements)
        return {
            "collection": self.collection.name,
            "queries": len(queries),
            "documents": len(self.collection.documents),
            "library": self.library,
            "systems": [
                {
                    "system": result.system,
                    "measures": {name: result.mean(name) for name in self.measures},
                    "seconds": result.cost.seconds,
                    "documents_encoded": result.cost.documents,
                    "tokens_encoded": result.cost.tokens,
                    "by_query": {
                        name: dict(zip(queries, result.values[name], strict=True))
                        for name in self.measures
                    },
                }
                for result in self.results
            ],
            "comparisons": [
                {
                    "system": one.system,
                    "baseline": self.results[0].system,
                    "measure": self.measures[0],
                    "difference": one.mean,
                    "interval": [one.low, one.high],
                    "p_value": one.p_value,
                    "visible_difference": one.visible,
                    "queries_needed": one.needed,
                    "better_equal_worse": list(one.counts),
                    "by_query": dict(one.differences),
                }
                for one in self.comparisons
            ],
            "depths": {
                system: [
                    {
                        "depth": point.depth,
                        self.measures[0]: point.value,
                        "documents": point.documents,
                        "tokens": point.tokens,
                    }
                    for point in points
                ]
                for system, points in self.curves.items()
            },
            "notes": list(self.notes),
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        """Tables for a terminal."""
        from colbert_rag.evaluation.text_view import to_text

        return to_text(self)

    def _repr_html_(self) -> str:
        """Tables and a figure for a notebook."""
        return self.to_html()

    def to_html(self) -> str:
        """The same as a block of HTML, which needs no script and nothing from elsewhere."""
        from colbert_rag.evaluation.html_view import to_html

        return to_html(self)
