"""An evaluation for a notebook: tables, and how quality grows with depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from colbert_rag.display import Html, element, one_line, panel, table
from colbert_rag.evaluation import words
from colbert_rag.figure import NESTED, Figure

if TYPE_CHECKING:
    from colbert_rag.evaluation.results import Evaluation

EXTREMES = 5

_CSS = """
& h4{margin:16px 0 4px;font-size:13px;font-weight:600}
& .scroll{overflow-x:auto}& .head{font-size:15px;font-weight:600}
& td:first-child{min-width:9em}& td.number{vertical-align:top}
& summary{cursor:pointer;color:var(--soft);font-size:12px}
& details p{margin:4px 0}
"""


def to_html(view: Evaluation) -> str:
    """The whole block, markup and style."""
    name, _, rest = words.heading(view).partition(": ")
    parts = [
        element("p", element("span", one_line(name), class_="head"), " ", element("small", rest)),
        table(
            ["quality", *view.measures],
            [
                [result.system, *(f"{result.mean(name):.4f}" for name in view.measures)]
                for result in view.results
            ],
        ),
        *_differences(view),
        *_curve(view),
        _costs(view),
    ]
    if view.comparisons:
        parts.append(element("p", element("small", words.TEST)))
    parts += [element("p", element("small", f"Note: {note}")) for note in view.notes]
    return panel(*parts, css=_CSS + NESTED)


def _differences(view: Evaluation) -> Iterator[Html]:
    if not view.comparisons:
        return
    baseline = view.results[0].system
    yield element("h4", f"{view.measures[0]} against {baseline}")
    yield table(
        ["", "difference", "interval", "p", "better / same / worse"],
        [
            [
                one.system,
                f"{one.mean:+.4f}",
                f"{one.low:+.3f} to {one.high:+.3f}",
                words.p_value(one),
                words.counts(one),
            ]
            for one in view.comparisons
        ],
    )
    for one in view.comparisons:
        changed = [
            element("p", f"{value:+.3f} ", element("bdi", _query(view, query)))
            for query, value in one.extremes(EXTREMES)
        ]
        yield element("p", words.verdict(one, baseline))
        if changed:
            yield element("details", element("summary", "Queries that changed most"), *changed)


def _query(view: Evaluation, query: str) -> str:
    return one_line(view.collection.queries.get(query, query))[:200]


def _curve(view: Evaluation) -> Iterator[Html]:
    """How quality grows with depth, and what each depth takes."""
    if not view.curves:
        return
    depths = sorted({point.depth for points in view.curves.values() for point in points})
    documents = {
        point.depth: point.documents for points in view.curves.values() for point in points
    }
    lines = {
        system: [
            {point.depth: point.value for point in points}.get(depth, math.nan) for depth in depths
        ]
        for system, points in view.curves.items()
    }
    measure = view.measures[0]
    figure = Figure(
        "How deep is it worth reranking?",
        f"{measure} by depth; below: documents to encode",
        [f"{depth}\n{documents[depth]:,}" for depth in depths],
        lines,
        {
            result.system: result.mean(measure)
            for result in view.results
            if result.system not in view.curves
        },
    )
    yield figure.svg()


def _costs(view: Evaluation) -> Html:
    return table(
        ["cost", "seconds", "documents encoded", "tokens"],
        [
            [
                result.system,
                words.seconds(result.cost.seconds),
                f"{result.cost.documents:,}" if result.cost.documents else "-",
                f"{result.cost.tokens:,}" if result.cost.tokens else "-",
            ]
            for result in view.results
        ],
    )
