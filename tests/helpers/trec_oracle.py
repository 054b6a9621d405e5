"""Measures of retrieval from their published definitions, without any library.

nDCG: Järvelin and Kekäläinen 2002, with the grade as the gain and log2(rank + 1) as the discount,
as trec_eval has it. MRR, Recall, MAP: Manning, Raghavan and Schütze, Introduction to Information
Retrieval, chapter 8. Order: trec_eval's, by single-precision score and then by id, backwards.
"""

from __future__ import annotations

import struct
from math import log2


def single(score: float) -> float:
    return struct.unpack("f", struct.pack("f", score))[0]


def ranked(scores: dict[str, float]) -> list[str]:
    by_name = sorted(scores, reverse=True)
    return sorted(by_name, key=lambda name: -single(scores[name]))


def ndcg(names: list[str], grades: dict[str, int], depth: int) -> float:
    def total(gains: list[int]) -> float:
        return sum(gain / log2(place + 2) for place, gain in enumerate(gains[:depth]))

    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    return total([max(grades.get(name, 0), 0) for name in names]) / total(best) if best else 0.0


def reciprocal_rank(names: list[str], grades: dict[str, int], depth: int) -> float:
    for place, name in enumerate(names[:depth], start=1):
        if grades.get(name, 0) > 0:
            return 1 / place
    return 0.0


def recall(names: list[str], grades: dict[str, int], depth: int) -> float:
    relevant = {name for name, grade in grades.items() if grade > 0}
    return len(relevant & set(names[:depth])) / len(relevant) if relevant else 0.0


def average_precision(names: list[str], grades: dict[str, int], depth: int) -> float:
    relevant = {name for name, grade in grades.items() if grade > 0}
    precisions, seen = [], 0
    for place, name in enumerate(names[:depth], start=1):
        if name in relevant:
            seen += 1
            precisions.append(seen / place)
    return sum(precisions) / len(relevant) if relevant else 0.0


MEASURES = {
    "nDCG": ndcg,
    "MRR": reciprocal_rank,
    "Recall": recall,
    "MAP": average_precision,
}


def measured(name: str, scores: dict[str, float], grades: dict[str, int]) -> float:
    kind, _, depth = name.partition("@")
    return MEASURES[kind](ranked(scores), grades, int(depth or 10**9))
