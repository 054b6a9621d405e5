"""What searches that are not exact find, for a notebook: a table, and recall by time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from colbert_rag.display import element, panel, table
from colbert_rag.figure import NESTED, Figure

if TYPE_CHECKING:
    from colbert_rag.index.recall import Recall

_CSS = """
& .scroll{overflow-x:auto;max-width:560px}& .head{font-size:15px;font-weight:600}
& .marked td{font-weight:600}
& .scroll+p{margin-top:8px}
"""

_WORDS = (
    "exact: every document is read and scored. effort: how many documents a search that is not "
    "exact looks at; the scores of those that it finds are exact. p50, p95: milliseconds that 50 "
    "and 95 of 100 queries took at most, asked one by one on this machine."
)


def to_html(recall: Recall) -> str:
    """The whole block, markup and style."""
    about = f"{recall.queries} queries, {recall.wanted:.1%} wanted"
    ways = (*recall.efforts, recall.exact)
    efforts = [way.effort for way in ways]
    return panel(
        element(
            "p",
            element("span", f"recall@{recall.k}", class_="head"),
            " ",
            element("small", about),
        ),
        table(
            ["effort", f"recall@{recall.k}", "p50 ms", "p95 ms"],
            [
                [recall.name(way), f"{way.recall:.3f}", f"{way.p50:,.1f}", f"{way.p95:,.1f}"]
                for way in ways
            ],
            marked=efforts.index(recall.chosen),
        ),
        element("p", recall.verdict),
        _figure(recall).svg(),
        element("p", element("small", _WORDS)),
        css=_CSS + NESTED,
    )


def _figure(recall: Recall) -> Figure:
    """Recall upwards, time to the right."""
    ways = (*recall.efforts, recall.exact)
    return Figure(
        "What does each effort find, and take?",
        f"recall@{recall.k} by p50 (log scale); below: effort, p50 in ms",
        [f"{recall.name(way)}\n{_milliseconds(way.p50)}" for way in ways],
        {
            "by effort (* chosen)": [*(way.recall for way in recall.efforts), math.nan],
            "exact": [*(math.nan for _ in recall.efforts), recall.exact.recall],
        },
        {"wanted": recall.wanted},
        places=_parts([way.p50 for way in ways]),
        ringed=next(
            number for number, way in enumerate(recall.efforts) if way.effort == recall.chosen
        ),
    )


def _milliseconds(time: float) -> str:
    return f"{time:,.1f}" if time < 100 else f"{time:,.0f}"


def _parts(times: Sequence[float]) -> list[float]:
    """How far each is from the least to the most, by their logarithms: exact takes many times."""
    logs = [math.log(max(time, 1e-3)) for time in times]
    low, spread = min(logs), max(logs) - min(logs)
    return [(log - low) / spread if spread else 0.5 for log in logs]
