"""Lines as SVG, in light and dark, readable on 400 pixels: one figure answers one question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from colbert_rag.display import Html, element, visible

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 62, 54
LINE = 16
TICK = 44
"""What a tick takes where ticks could run into each other."""

MARKS = ("circle", "square", "triangle", "diamond")
"""Shapes beside colours: a figure is also read in grey."""

PAGE = """svg { font: 13px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", sans-serif;
color-scheme: light dark;
--ink: light-dark(#17202a, #e9edf1); --soft: light-dark(#5a6672, #a9b4be);
--line: light-dark(#e0e2e6, #363a40); --paper: light-dark(#ffffff, #131416); }"""
"""What a page would give a figure."""

RULES = {
    ".paper": "fill:var(--paper)",
    ".grid": "stroke:var(--line)",
    ".leader": "stroke:var(--soft)",
    "text": "fill:var(--soft)",
    ".question": "fill:var(--ink);font-weight:600",
    ".name": "fill:var(--ink)",
    ".s0": "--c: light-dark(#1f5fd0, #8ab8ff)",
    ".s1": "--c: light-dark(#b4530a, #f5a35c)",
    ".s2": "--c: light-dark(#18794e, #4cc38a)",
    ".s3": "--c: light-dark(#8e3fb0, #d3a1ea)",
    ".series": "fill:none;stroke-width:2;stroke:var(--c)",
    ".level": "stroke-dasharray:5 4",
    ".mark": "stroke:var(--c);fill:var(--c)",
    ".ring": "fill:none;stroke:var(--ink);stroke-width:1.5",
}

NESTED = """
& svg{display:block;width:100%;max-width:560px;height:auto;margin:8px 0;
font:13px system-ui,-apple-system,"Segoe UI",sans-serif}
""" + "".join(f"& svg {selector}{{{rules}}}" for selector, rules in RULES.items())
"""The rules for a figure within a page: a style sheet inside of it would be that of the whole page,
and would restyle all other drawings."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One question and its answer.

    Attributes:
        question: What stands above the lines.
        unit: What is upwards, and what is to the right.
        ticks: What stands below each place: one line, or two parted by a line end.
        lines: Values at these places, by the name of the line; NaN where there is none.
        levels: Values that do not depend on the place, drawn across.
        places: How far to the right each place is, from 0 to 1; evenly far if there are none.
        ringed: The place whose values have a ring around them.
    """

    question: str
    unit: str
    ticks: Sequence[str]
    lines: Mapping[str, Sequence[float]]
    levels: Mapping[str, float]
    places: Sequence[float] = ()
    ringed: int | None = None

    def svg(self, *, standalone: bool = False) -> Html:
        """The figure as an element; `standalone` brings the style that `NESTED` gives a page."""
        names = [*self.lines, *self.levels]
        height = HEIGHT + LINE * len(names)
        own = "\n".join(f"{selector} {{{rules}}}" for selector, rules in RULES.items())
        style = Html(f"<style>{PAGE}\n{own}</style>") if standalone else Html()
        described = f"{self.question} {self.unit}. " + "; ".join(self._spoken())
        return element(
            "svg",
            style,
            element("rect", class_="paper", width=str(WIDTH), height=str(height), rx="8"),
            _text(12, 24, self.question, "question"),
            _text(12, 43, self.unit, "unit"),
            *self._axes(),
            *self._series(),
            *(self._legend(number, name) for number, name in enumerate(names)),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH} {height}",
            role="img",
            # As a picture of its own it has a size; in a page it fills up to this width.
            **({"width": str(WIDTH), "height": str(height)} if standalone else {}),
            **{"aria-label": described},
        )

    def _range(self) -> tuple[float, float, float]:
        """Lowest and highest value of the axis, and the step of its grid."""
        values = [value for line in self.lines.values() for value in line if math.isfinite(value)]
        values += self.levels.values()
        low, high = min(values, default=0.0), max(values, default=1.0)
        spread = max(high - low, 1e-3)
        step = next(
            size * 10**power
            for power in range(-4, 9)
            for size in (1, 2, 5)
            if spread / (size * 10**power) <= 4
        )
        return math.floor(low / step) * step, math.ceil(high / step) * step, step

    def _x(self, place: int) -> float:
        room = WIDTH - LEFT - RIGHT - 40
        part = self.places[place] if self.places else place / max(len(self.ticks) - 1, 1)
        return LEFT + 20 + room * part

    def _tick_x(self) -> list[float]:
        """Where ticks stand: below their places, or beside each other where those are close."""
        where = [self._x(place) for place in range(len(self.ticks))]
        if self.places:
            order = sorted(range(len(where)), key=where.__getitem__)
            for left, right in pairwise(order):
                where[right] = max(where[right], where[left] + TICK)
            last = WIDTH - RIGHT - TICK / 2
            for place in reversed(order):
                where[place] = last = min(where[place], last)
                last -= TICK
        return where

    def _y(self, value: float) -> float:
        low, high, _ = self._range()
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / max(high - low, 1e-9)

    def _axes(self) -> Iterator[Html]:
        low, high, step = self._range()
        digits = max(0, -math.floor(math.log10(step)))
        for number in range(round((high - low) / step) + 1):
            value = low + number * step
            y = f"{self._y(value):.1f}"
            yield element("line", class_="grid", x1=str(LEFT), x2=str(WIDTH - RIGHT), y1=y, y2=y)
            yield _text(LEFT - 6, float(y) + 4, f"{value:,.{digits}f}", "tick", anchor="end")
        for place, (tick, x) in enumerate(zip(self.ticks, self._tick_x(), strict=True)):
            if self.places:
                yield self._leader(self._x(place), x)
            for row, part in enumerate(tick.split("\n")):
                yield _text(x, HEIGHT - BOTTOM + 18 + LINE * row, part, "tick", anchor="middle")

    def _leader(self, x: float, tick: float) -> Html:
        """From a place on the axis to its tick, which may stand beside it."""
        return element(
            "line",
            class_="leader",
            x1=f"{x:.1f}",
            x2=f"{tick:.1f}",
            y1=str(HEIGHT - BOTTOM),
            y2=str(HEIGHT - BOTTOM + 6),
        )

    def _series(self) -> Iterator[Html]:
        for number, values in enumerate(self.lines.values()):
            places = [
                (self._x(place), self._y(value))
                for place, value in enumerate(values)
                if math.isfinite(value)
            ]
            kind = f"s{number % 4}"
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            yield element("polyline", class_=f"series {kind}", points=points)
            yield from (_mark(x, y, number) for x, y in places)
            if self.ringed is not None and math.isfinite(values[self.ringed]):
                yield _ring(self._x(self.ringed), self._y(values[self.ringed]))
        for number, value in enumerate(self.levels.values(), start=len(self.lines)):
            y = f"{self._y(value):.1f}"
            yield element(
                "line",
                class_=f"series level s{number % 4}",
                x1=str(LEFT),
                x2=str(WIDTH - RIGHT),
                y1=y,
                y2=y,
            )

    def _legend(self, number: int, name: str) -> Html:
        y = HEIGHT - 2 + LINE * number
        level = number >= len(self.lines)
        stroke = element(
            "line",
            class_=f"series {'level ' * level}s{number % 4}",
            x1="14",
            x2="40",
            y1=str(y - 4),
            y2=str(y - 4),
        )
        mark = Html() if level else _mark(27, y - 4, number)
        return Html(stroke + mark + _text(48, y, name, "name"))

    def _spoken(self) -> Iterator[str]:
        for name, values in self.lines.items():
            pairs = zip(self.ticks, values, strict=True)
            yield f"{name}: " + ", ".join(
                f"{value:.3g} at {tick.splitlines()[0]}"
                for tick, value in pairs
                if math.isfinite(value)
            )
        for name, value in self.levels.items():
            yield f"{name}: {value:.3g}"


def _mark(x: float, y: float, number: int) -> Html:
    shape, kind = MARKS[number % 4], f"mark s{number % 4}"
    if shape == "circle":
        return element("circle", class_=kind, cx=f"{x:.1f}", cy=f"{y:.1f}", r="3.5")
    around = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "triangle": ((-4, 3), (4, 3), (0, -4)),
        "diamond": ((0, -4.5), (4.5, 0), (0, 4.5), (-4.5, 0)),
    }[shape]
    points = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in around)
    return element("polygon", class_=kind, points=points)


def _ring(x: float, y: float) -> Html:
    return element("circle", class_="ring", cx=f"{x:.1f}", cy=f"{y:.1f}", r="8")


def _text(x: float, y: float, text: str, role: str, *, anchor: str = "start") -> Html:
    return element(
        "text", visible(text), class_=role, x=f"{x:.1f}", y=f"{y:.1f}", **{"text-anchor": anchor}
    )
