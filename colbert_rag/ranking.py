"""The result of ranking: which text, with which score, best first."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias, TypeVar, overload

from colbert_rag.display import Html, bar, decimal, element, fitted, one_line, panel
from colbert_rag.errors import MissingExtraError
from colbert_rag.inputs import has_words

if TYPE_CHECKING:  # who ranks by a server needs no torch
    import pandas as pd

    from colbert_rag.explanation import Explanation

_SHOWN = 50  # places that the views list
_QUERIES, _EACH = 20, 3  # rankings that the views of many list, and places of each
_SNIPPET = 300  # characters of a text in a notebook
_WIDTH = 100  # columns of a terminal
_BAR = 8

_CSS = """
& caption{text-align:start;padding:0 0 8px;caption-side:top;color:var(--ink)}
& .query{font-size:15px;font-weight:600;display:block}
& td{vertical-align:top;padding-block:5px}
& .score{width:9em}& .score .track{margin:5px 0 2px}
& .up{color:light-dark(#18794e,#3dd68c)}& .down{color:light-dark(#a35200,#ffa057)}
& .text{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden}
& .foot{margin:8px 0 0}
@container (width < 560px){& .score{width:5em}& .text{-webkit-line-clamp:4}}
"""


_EMPTY = element("small", "empty text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One text's place in a ranking.

    Attributes:
        rank: Its place, counted from 1.
        index: Its position in the list that was ranked, counted from 0 as Python does.
        score: MaxSim: the sum over the query's rows of the best similarity each finds.
        text: The text.
        query_rows: How many similarities the score sums.
        span: Start and end, in characters, of the window that has this score; None where the text
            was scored as one.
        item: What the caller gave for the text: itself, or the mapping or object that holds it.
    """

    rank: int
    index: int
    score: float
    text: str
    query_rows: int
    span: tuple[int, int] | None = None
    item: object = field(default=None, compare=False, repr=False)

    @property
    def mean(self) -> float:
        """The mean similarity, from -1 to 1: comparable between queries, as the sum is not."""
        return self.score / self.query_rows

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; a score that is not finite becomes None."""
        finite = math.isfinite(self.score)
        return {
            "rank": self.rank,
            "index": self.index,
            "score": self.score if finite else None,
            "mean": self.mean if finite else None,
            "text": self.text,
            "span": None if self.span is None else list(self.span),
        }


Explain: TypeAlias = "Callable[[Ranked], Explanation]"
"""Explains the score of one place."""


class Ranking(Sequence[Ranked]):
    """Texts in the order of their scores, best first.

    Equal scores keep the order of the input; a score that is not a number comes last. A ranking
    pickles small: without vectors and model, and then cannot explain its places any more.

    Attributes:
        query: The query.
        texts: All texts that were ranked, in input order.
        query_rows: Rows of the query that were summed.
    """

    def __init__(
        self,
        ranked: Sequence[Ranked],
        *,
        query: str,
        texts: Sequence[str],
        query_rows: int,
        explain: Explain | None = None,
    ) -> None:
        """Hold places that are already in order."""
        self.query = query
        self.texts = texts
        self.query_rows = query_rows
        self._ranked = list(ranked)
        self._explain = explain

    @classmethod
    def from_scores(
        cls,
        scores: Sequence[float],
        *,
        query: str,
        texts: Sequence[str],
        query_rows: int,
        items: Sequence[object] | None = None,
        spans: Sequence[tuple[int, int] | None] | None = None,
        top_k: int | None = None,
    ) -> Ranking:
        """Put scores in input order into ranking order.

        `torch.topk` breaks ties as it likes, and sorting in torch puts NaN first.
        """
        keys = [
            (math.isnan(score), not has_words(text), -score)
            for score, text in zip(scores, texts, strict=True)
        ]
        order = sorted(range(len(scores)), key=keys.__getitem__)
        ranked = [
            Ranked(
                rank=rank,
                index=index,
                score=scores[index],
                text=texts[index],
                query_rows=query_rows,
                span=None if spans is None else spans[index],
                item=texts[index] if items is None else items[index],
            )
            for rank, index in enumerate(order[:top_k], start=1)
        ]
        return cls(ranked, query=query, texts=texts, query_rows=query_rows)

    def explained_by(self, explain: Explain) -> Ranking:
        """The same places, with someone to ask for explanations."""
        explained = copy.copy(self)
        explained._explain = explain
        return explained

    def explain(self, position: int) -> Explanation:
        """Which words made the score of one place.

        At the top of a ranking this re-uses the vectors that ranked it. Others come from the
        model's document cache, or are computed again.

        Args:
            position: Counted from 0 as in `ranking[position]`.

        Raises:
            IndexError: there is no such place.
            TypeError: `position` is no whole number.
            ValueError: the ranking has been pickled, or was not made by a model.
        """
        place = self._ranked[self._position(position)]
        if self._explain is None:
            raise ValueError(
                "this ranking has no model to ask, because it was pickled or made by hand. Use "
                "ColBERT.explain(ranking.query, ranking[position].text)"
            )
        return self._explain(place)

    def _position(self, given: object) -> int:
        """A position, as Python's own whole number."""
        if not isinstance(given, SupportsIndex):
            raise TypeError(f"position is {given!r}, expected a whole number, counted from 0")
        position = operator.index(given)
        if not -len(self) <= position < len(self):
            raise IndexError(
                f"position {position} is outside the {len(self)} places of this ranking"
            )
        return position

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON: the query and its places, best first."""
        return {
            "query": self.query,
            "query_rows": self.query_rows,
            "ranked": [place.to_dict() for place in self],
        }

    def to_pandas(self) -> pd.DataFrame:
        """A table with a row for each place: rank, index, score, mean and text.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", extra="notebook") from error
        names = ("rank", "index", "score", "mean", "text")
        return pd.DataFrame({name: [getattr(place, name) for place in self] for name in names})

    def __getstate__(self) -> dict[str, object]:
        """Pickle without vectors and model: what is stored should not carry or load them."""
        return {**self.__dict__, "_explain": None}

    def __deepcopy__(self, memo: dict[int, object]) -> Ranking:
        """The same one: nothing in it changes."""
        return self

    def __len__(self) -> int:
        """How many places there are."""
        return len(self._ranked)

    def __iter__(self) -> Iterator[Ranked]:
        """Best first."""
        return iter(self._ranked)

    @overload
    def __getitem__(self, key: int) -> Ranked: ...
    @overload
    def __getitem__(self, key: slice) -> list[Ranked]: ...
    def __getitem__(self, key: int | slice) -> Ranked | list[Ranked]:
        """One place or several; the first, 0, is the best."""
        return self._ranked[key if isinstance(key, slice) else self._position(key)]

    def __repr__(self) -> str:
        """A table for the terminal."""
        return self._table(_SHOWN)

    def _table(self, most: int) -> str:
        lines = [f"{self._summary()} for {one_line(self.query)!r}"]
        if self:
            lines.append(f"{'rank':>4}  {'score':>8} {'':{_BAR}} {'input':>6} {'moved':>6}  text")
        for place in self[:most]:
            row = (
                f"{place.rank:>4}  {decimal(place.score, 4):>8} {bar(self._part(place), _BAR)} "
                f"{place.index + 1:>6} {_moved(place):>6}  "
            )
            text = one_line(_beginning(place, _WIDTH))
            lines.append((row + fitted(text, _WIDTH - len(row))).rstrip())
        return "\n".join([*lines, *_left_out(len(self) - most, "place")])

    def _repr_html_(self) -> str:
        """A table for a notebook; every text is escaped."""
        return self._panel(_SHOWN)

    def _panel(self, most: int) -> Html:
        caption = element(
            "caption",
            element("bdi", one_line(self.query)[:_SNIPPET], class_="query"),
            element("small", self._summary()),
        )
        heads = dict.fromkeys(["rank", "score", "input", "moved", "text"], "number")
        heads |= {"score": "score", "text": ""}
        titles = element("tr", *(element("th", text, class_=heads[text]) for text in heads))
        rows = [self._row(place) for place in self[:most]]
        foot = _left_out(len(self) - most, "place")
        if rows and self._explain is not None:
            foot.append("Its method explain(0) shows which words made the first score.")
        return panel(
            element("table", caption, element("thead", titles), element("tbody", *rows)),
            *(element("p", element("small", line), class_="foot") for line in foot),
            css=_CSS,
        )

    def _row(self, place: Ranked) -> Html:
        moved = _moved(place)
        kind = {"▲": "up", "▼": "down"}.get(moved[0], "soft")
        fill = element("i", style=f"width:{100 * self._part(place):.1f}%")
        text = one_line(_beginning(place, _SNIPPET))
        return element(
            "tr",
            element("td", str(place.rank), class_="number"),
            element(
                "td",
                element("span", decimal(place.score, 4), class_="number"),
                element("span", fill, class_="track"),
                class_="score",
            ),
            element("td", str(place.index + 1), class_="number soft"),
            element("td", moved, class_=f"number {kind}", title=_spoken(place)),
            element("td", element("span", text, class_="text", dir="auto") if text else _EMPTY),
        )

    def _summary(self) -> str:
        shown = f"{len(self)} of {len(self.texts)}" if len(self) < len(self.texts) else len(self)
        return f"Ranking of {shown} texts"

    def _part(self, place: Ranked) -> float:
        """A score as a part of the best: bars begin at zero, so that their lengths compare."""
        best = next((other.score for other in self if math.isfinite(other.score)), 0.0)
        if best <= 0 or not math.isfinite(place.score):
            return 0.0
        return max(place.score / best, 0.0)


R = TypeVar("R", bound=Ranking)


class Rankings(list[R]):
    """Rankings for many queries: a list like any other, that shows the best of each."""

    def __repr__(self) -> str:
        """A short table for each query."""
        if not self:
            return super().__repr__()
        # Whoever has a list may put other things in it.
        shown = (each._table(_EACH) if isinstance(each, Ranking) else repr(each) for each in self)
        left_out = _left_out(len(self) - _QUERIES, "ranking")
        return "\n\n".join([*islice(shown, _QUERIES), *left_out])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        shown = (each._panel(_EACH) if isinstance(each, Ranking) else repr(each) for each in self)
        left_out = _left_out(len(self) - _QUERIES, "ranking")
        return element("div", *islice(shown, _QUERIES), *(element("p", line) for line in left_out))


def _left_out(more: int, what: str) -> list[str]:
    return [f"and {more} more {what}{'s' * (more > 1)}"] if more > 0 else []


def _moved(place: Ranked) -> str:
    places = place.index + 1 - place.rank
    return f"▲ {places}" if places > 0 else f"▼ {-places}" if places < 0 else "="


def _spoken(place: Ranked) -> str:
    places = place.index + 1 - place.rank
    if not places:
        return "the same place as in the input"
    count = "1 place" if abs(places) == 1 else f"{abs(places)} places"
    return f"{count} {'up' if places > 0 else 'down'} from the input"


def _beginning(place: Ranked, width: int) -> str:
    """Where reading a text begins that is cut to `width`: at the window that has the score."""
    start = 0 if place.span is None else place.span[0]
    part = place.text[start : start + 2 * width]
    flat = part[:width] + "…" if len(part) > width else part
    return f"…{flat}" if start else flat
