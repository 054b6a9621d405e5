"""An evaluation for a terminal: quality, difference, cost, depth."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from colbert_rag.display import fitted, one_line
from colbert_rag.evaluation import words

if TYPE_CHECKING:
    from colbert_rag.evaluation.results import Comparison, Evaluation

WIDTH = 100
WIDEST_NAME = 40
EXTREMES = 3
"""Queries shown on either side."""


def to_text(view: Evaluation, width: int = WIDTH) -> str:
    """All of it, in at most `width` columns where names allow."""
    lines = [*_wrapped(words.heading(view), width), "", *_quality(view)]
    if view.comparisons:
        lines += ["", *_differences(view, width)]
    lines += ["", *_costs(view)]
    for system in view.curves:
        lines += ["", *_depths(view, system)]
    if view.comparisons:
        lines += ["", *_wrapped(words.TEST, width)]
    for note in view.notes:
        lines += ["", *_wrapped(f"note: {note}", width)]
    return "\n".join(line.rstrip() for line in lines)


def _quality(view: Evaluation) -> Iterator[str]:
    rows = [
        [result.system, *(f"{result.mean(name):.4f}" for name in view.measures)]
        for result in view.results
    ]
    yield from _table(["quality", *view.measures], rows)


def _differences(view: Evaluation, width: int) -> Iterator[str]:
    baseline, measure = view.results[0].system, view.measures[0]
    rows = [
        [
            one.system,
            f"{one.mean:+.4f}",
            f"{one.low:+.4f} to {one.high:+.4f}",
            words.p_value(one),
            words.counts(one),
        ]
        for one in view.comparisons
    ]
    heads = [
        f"{measure} against {baseline}",
        "difference",
        "interval",
        "p",
        "better / same / worse",
    ]
    yield from _table(heads, rows)
    for one in view.comparisons:
        yield ""
        yield from _wrapped(words.verdict(one, baseline), width)
        yield from _extremes(view, one, width)


def _extremes(view: Evaluation, one: Comparison, width: int) -> Iterator[str]:
    for query, value in one.extremes(EXTREMES):
        text = one_line(view.collection.queries.get(query, ""))
        line = f"  {value:+.3f}  {query}  {text}"
        yield fitted(line, width) if text else line


def _costs(view: Evaluation) -> Iterator[str]:
    rows = [
        [
            result.system,
            words.seconds(result.cost.seconds),
            f"{result.cost.documents:,}" if result.cost.documents else "-",
            f"{result.cost.tokens:,}" if result.cost.tokens else "-",
        ]
        for result in view.results
    ]
    yield from _table(["cost", "seconds", "documents encoded", "tokens"], rows)


def _depths(view: Evaluation, system: str) -> Iterator[str]:
    points = view.curves[system]
    yield from _table(
        [system, *(f"depth {point.depth}" for point in points)],
        [
            [view.measures[0], *(f"{point.value:.4f}" for point in points)],
            ["distinct documents", *(f"{point.documents:,}" for point in points)],
            ["tokens", *(f"{point.tokens:,}" for point in points)],
        ],
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    shown = [[one_line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[place]) for row in shown) for place in range(len(heads))]
    widths[0] = min(widths[0], WIDEST_NAME)
    for row in shown:
        first, *others = zip(row, widths, strict=True)
        yield fitted(*first) + "".join(f"  {cell:>{width}}" for cell, width in others)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), width, break_long_words=False, break_on_hyphens=False)
