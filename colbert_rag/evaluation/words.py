"""What an evaluation says in words: the same in a terminal and in a notebook."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from colbert_rag.evaluation import significance
from colbert_rag.wording import counted

if TYPE_CHECKING:
    from colbert_rag.evaluation.results import Comparison, Evaluation

TEST = (
    "p: randomisation test, two-sided, paired by query (Smucker et al. 2007), corrected by Holm "
    "for several systems. Interval: 95 % of bootstrap samples of the queries."
)


def heading(view: Evaluation) -> str:
    """What was measured, on how much, by what."""
    collection = view.collection
    queries = counted(len(collection.judgements), "judged query", "judged queries")
    held = f", {counted(len(collection.documents), 'document')}" if collection.documents else ""
    return f"{collection.name}: {queries}{held}; measures by {view.library}"


def verdict(one: Comparison, baseline: str) -> str:
    """What a difference means, and what it would take to know more."""
    if one.significant:
        direction = "better" if one.mean > 0 else "worse"
        return f"{one.system} is {direction} than {baseline}: chance alone would seldom do that."
    if abs(one.mean) < 1e-9:
        return f"{one.system} is as good as {baseline}: there is no difference on the whole."
    said = f"No difference is shown between {one.system} and {baseline}"
    if one.needed is not None and math.isfinite(one.visible):
        said += (
            f": {len(one.differences):,} queries would show one of {one.visible:.3f} or more, "
            f"{significance.POWER:.0%} of the time. One of {abs(one.mean):.3f} takes about "
            f"{one.needed:,} queries"
        )
    return said + "."


def p_value(one: Comparison) -> str:
    """A p-value as it is usually written."""
    return "< 0.001" if one.p_value < 0.001 else f"{one.p_value:.3f}"


def counts(one: Comparison) -> str:
    """Queries that are better, the same and worse."""
    return " / ".join(f"{count:,}" for count in one.counts)


def seconds(value: float | None) -> str:
    """A time, or a dash where nobody measured one."""
    return "-" if value is None else f"{value:,.1f}"
