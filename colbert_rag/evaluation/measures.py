"""What is measured: nDCG, MRR, Recall and MAP, computed by trec_eval itself (pytrec-eval-terrier).

Gains of nDCG are the grades themselves and discounts are log2(rank + 1); everything else takes a
grade of 1 or more for relevant. A query for which nothing was found counts as 0, as with
`trec_eval -c`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

import numpy as np

from colbert_rag.errors import MissingExtraError

PACKAGE = "pytrec-eval-terrier"
DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "Recall@100", "MAP")


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of measures.

    Attributes:
        name: As it is written.
        whole: What trec_eval calls it over the whole ranking; "" where it has no such measure.
        cut: What trec_eval calls it down to a rank; "" where the ranking has to be cut instead.
    """

    name: str
    whole: str
    cut: str


KINDS = (
    Kind("nDCG", "ndcg", "ndcg_cut"),
    Kind("MRR", "recip_rank", ""),
    Kind("Recall", "", "recall"),
    Kind("MAP", "map", "map_cut"),
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure.

    Attributes:
        kind: Its family.
        depth: The rank down to which it looks; None for the whole ranking.
    """

    kind: Kind
    depth: int | None

    @classmethod
    def read(cls, text: str) -> Measure:
        """The measure that is written as in "nDCG@10" or "MAP", whatever the case.

        Raises:
            ValueError: there is no such measure.
        """
        found = re.fullmatch(r"\s*([A-Za-z]+)(?:@([1-9][0-9]{0,5}))?\s*", text)
        name, depth = (found[1].lower(), found[2]) if found else ("", None)
        kind = next((kind for kind in KINDS if kind.name.lower() == name), None)
        if kind is None or (depth is None and not kind.whole):
            known = ", ".join(kind.name + "@10" for kind in KINDS)
            raise ValueError(f"the measure is {text!r}, expected one such as {known}, MRR or MAP")
        return cls(kind, None if depth is None else int(depth))

    @property
    def name(self) -> str:
        """As it is written."""
        return self.kind.name if self.depth is None else f"{self.kind.name}@{self.depth}"

    @property
    def cut(self) -> int | None:
        """Where a ranking is cut before it is measured, for what trec_eval cannot cut itself."""
        return None if self.kind.cut else self.depth

    @property
    def key(self) -> tuple[str, str]:
        """What trec_eval is asked for, and what it calls its answer."""
        if self.depth is None or not self.kind.cut:
            return self.kind.whole, self.kind.whole
        return f"{self.kind.cut}.{self.depth}", f"{self.kind.cut}_{self.depth}"


class Evaluator(Protocol):
    """What is used of pytrec_eval, which has no types."""

    def evaluate(self, scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Values by measure, by query."""


def library() -> str:
    """What computes the measures, with its version.

    Raises:
        MissingExtraError: it is not installed.
    """
    _evaluator({}, {"map"})
    return f"trec_eval ({PACKAGE} {version(PACKAGE)})"


def in_order(scores: Mapping[str, float]) -> list[str]:
    """Documents in trec_eval's order: by score in single precision, equal ones by id, backwards.

    A run's own ranks do not count, nor does a difference that single precision does not hold.
    """
    single = np.fromiter(scores.values(), dtype=np.float32, count=len(scores)).tolist()
    pairs = sorted(zip(single, scores, strict=True), reverse=True)
    return [document for _, document in pairs]


def measure(
    rankings: Mapping[str, Sequence[str]],
    judgements: Mapping[str, Mapping[str, int]],
    measures: Sequence[Measure],
) -> dict[str, tuple[float, ...]]:
    """Measure rankings query by query.

    Args:
        rankings: Document ids, best first, by query id; a query that is not there found nothing.
        judgements: Grades by document id, for each query that counts.
        measures: What to measure.

    Returns:
        For each measure, by its name, a value for each query in the order of `judgements`.

    Raises:
        MissingExtraError: trec_eval is not installed.
    """
    grades = {query: dict(judged) for query, judged in judgements.items()}
    values: dict[str, tuple[float, ...]] = {}
    for cut in dict.fromkeys(one.cut for one in measures):
        asked = [one for one in measures if one.cut == cut]
        # The place as the score: all ties are broken by now.
        places = {
            query: {name: -float(place) for place, name in enumerate(rankings.get(query, ())[:cut])}
            for query in grades
        }
        evaluator = _evaluator(grades, {one.key[0] for one in asked})
        measured = evaluator.evaluate(places)
        for one in asked:
            values[one.name] = tuple(float(measured[query][one.key[1]]) for query in grades)
    return {one.name: values[one.name] for one in measures}


def _evaluator(grades: Mapping[str, Mapping[str, int]], asked: set[str]) -> Evaluator:
    try:
        from pytrec_eval import RelevanceEvaluator
    except ImportError as error:
        raise MissingExtraError(PACKAGE, extra="evaluate") from error
    evaluator: Evaluator = RelevanceEvaluator(grades, asked)
    return evaluator
