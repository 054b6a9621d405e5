"""Measures what searches that are not exact find on an index, and chooses how much they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import ingest
from colbert_rag.index.documents import Hit
from colbert_rag.index.how import MOST_EFFORT
from colbert_rag.settings import whole_number

if TYPE_CHECKING:
    from colbert_rag.index.base import Index

WANTED = 0.99
"""The part of the exact best that the chosen effort must find."""

# Rows of a query that is a piece of a passage: about those of a question.
_PIECE = 24

# Exact searches that are timed.
_TIMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One way to search.

    Attributes:
        effort: Its number; None is the exact search.
        recall: The part of the exact best that was found, on average.
        p50: Milliseconds that half of the queries took at most.
        p95: Milliseconds that 95 of 100 queries took at most.
    """

    effort: int | None
    recall: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """What each effort finds, and takes.

    Attributes:
        k: How many of the best documents counted.
        queries: How many queries were asked.
        wanted: What the chosen effort was to reach.
        exact: The exact search.
        efforts: The others, from the smallest effort.
        chosen: The effort that was chosen: the smallest that reaches `wanted`, else the largest.
    """

    k: int
    queries: int
    wanted: float
    exact: Measured
    efforts: tuple[Measured, ...]
    chosen: int

    @property
    def reached(self) -> float:
        """What the chosen effort found."""
        return next(way for way in self.efforts if way.effort == self.chosen).recall

    def to_dict(self) -> dict[str, object]:
        """Plain values, as for JSON."""
        return asdict(self)

    @property
    def verdict(self) -> str:
        """What follows from the table."""
        words = (
            f"effort {self.chosen} is the smallest that finds {self.wanted:.1%} of the best"
            if self.reached >= self.wanted
            else f"no effort finds {self.wanted:.1%} of the best; {self.chosen} finds the most"
        )
        return f"* {words} ({self.queries} queries)"

    def name(self, way: Measured) -> str:
        """What a way is called in a table: its effort, and a star for the chosen one."""
        if way.effort is None:
            return "exact"
        return f"{way.effort} *" if way.effort == self.chosen else str(way.effort)

    def __repr__(self) -> str:
        """A table for the terminal, and what follows from it."""
        lines = [f"effort  {f'recall@{self.k}':>10}  {'p50 ms':>8}  {'p95 ms':>8}"]
        for way in (*self.efforts, self.exact):
            numbers = f"{way.recall:>10.3f}  {way.p50:>8.1f}  {way.p95:>8.1f}"
            lines.append(f"{self.name(way):<6}  {numbers}")
        return "\n".join([*lines, self.verdict])

    def to_html(self) -> str:
        """The table and a plot of recall by time: a block of HTML without script."""
        from colbert_rag.index.html_view import to_html

        return to_html(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()


class Asking:
    """What is asked, and of how many."""

    def __init__(self, k: int, sample: int, wanted: float) -> None:
        """Take a caller's arguments; see `Index.recall`.

        Raises:
            TypeError: one is of another type.
            ValueError: one is out of range.
        """
        self._k = whole_number("k", k, least=1)
        self._sample = whole_number("sample", sample, least=1)
        self._wanted = _part(wanted)

    def queries(
        self,
        index: Index,
        queries: Sequence[str] | TokenEmbeddings | None,
        passages: Callable[[int], TokenEmbeddings],
    ) -> TokenEmbeddings:
        """The vectors of what was given, else pieces of stored passages.

        Args:
            index: Whose model encodes texts.
            queries: Texts or vectors; None takes passages.
            passages: Gives the vectors of so many of them, at most.

        Raises:
            ValueError: there are none.
        """
        given = None if queries is None else _vectors(index, queries)
        asked = _pieces(passages(self._sample)) if given is None else _some(given, self._sample)
        if not len(asked):
            raise ValueError(
                f"of the passages that were drawn from {index.name}, none has words to make a "
                "query of: give queries of your own, or a larger sample"
                if given is None
                else "queries is empty, expected one or more"
            )
        return asked

    def compare(self, index: Index, asked: TokenEmbeddings) -> Recall:
        """Every effort, from the smallest, beside the exact search."""
        # Together, since each would read everything; a few of them alone for the time.
        best = index.search_embeddings(asked, self._k, exact=True)
        exact, _ = _timed(index, asked[:_TIMED], self._k, None)
        truth = [{hit.id for hit in hits} for hits in best]
        ways = []
        for effort in range(1, MOST_EFFORT + 1):
            times, found = _timed(index, asked, self._k, effort)
            ways.append(_measured(effort, times, _part_found(truth, found)))
        chosen = next((way for way in ways if way.recall >= self._wanted), ways[-1])
        assert chosen.effort is not None
        return Recall(
            k=self._k,
            queries=len(asked),
            wanted=self._wanted,
            exact=_measured(None, exact, 1.0),
            efforts=tuple(ways),
            chosen=chosen.effort,
        )


def _part(wanted: object) -> float:
    if isinstance(wanted, bool) or not isinstance(wanted, Real):
        raise TypeError(f"wanted is {wanted!r}, expected a part from 0 to 1")
    if not 0 <= (part := float(wanted)) <= 1:
        raise ValueError(f"wanted is {wanted}, expected a part from 0 to 1")
    return part


def _vectors(index: Index, queries: Sequence[str] | TokenEmbeddings) -> TokenEmbeddings:
    if isinstance(queries, TokenEmbeddings):
        return queries
    if isinstance(queries, str):
        raise TypeError(f"queries is one string, expected several: [{queries!r}]")
    return ingest.encode_queries(list(queries), index._model(), index.info)


def _pieces(passages: TokenEmbeddings) -> TokenEmbeddings:
    """A piece of each passage."""
    random = np.random.default_rng(0)
    pieces = []
    for rows in passages:
        start = int(random.integers(max(1, len(rows) - _PIECE + 1)))
        pieces.append(rows[start : start + _PIECE].float())
    return TokenEmbeddings.from_list(pieces, dim=passages.dim)


def _some(queries: TokenEmbeddings, sample: int) -> TokenEmbeddings:
    """At most `sample` of the queries, from all over them."""
    if len(queries) <= sample:
        return queries
    return queries[torch.linspace(0, len(queries) - 1, sample).round().long()]


def _timed(
    index: Index, queries: TokenEmbeddings, k: int, effort: int | None
) -> tuple[list[float], list[list[Hit]]]:
    """Milliseconds of each query, asked alone, and what it found; `effort` None is exact."""
    exact = effort is None
    times, found = [], []
    index.search_embeddings(queries[:1], k, exact=exact, effort=effort)  # reads what is cold
    for number in range(len(queries)):
        query = queries[number : number + 1]
        start = time.perf_counter()
        found += index.search_embeddings(query, k, exact=exact, effort=effort)
        times.append(1e3 * (time.perf_counter() - start))
    return times, found


def _part_found(truth: Sequence[set[str]], found: Sequence[Sequence[Hit]]) -> float:
    parts = [
        len(best & {hit.id for hit in hits}) / len(best)
        for best, hits in zip(truth, found, strict=True)
        if best
    ]
    return float(np.mean(parts)) if parts else 1.0


def _measured(effort: int | None, times: Sequence[float], recall: float) -> Measured:
    p50, p95 = np.percentile(times, [50, 95])
    return Measured(effort=effort, recall=recall, p50=float(p50), p95=float(p95))
