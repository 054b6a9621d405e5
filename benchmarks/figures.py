"""Bars as SVG, in light and dark: one figure answers one question."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 520
LABELS = 240  # where the bars begin; left of it stand their labels
LONGEST = 204  # the longest bar; right of it is room for its number
EDGE = 16
LINE = 18
LABEL_LETTERS = 29
HEADING_LETTERS = 56

STYLE = """<style>
  text { font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
  text { font-size: 14px; fill: #44525f; }
  .paper { fill: #ffffff; }
  .question { font-size: 17px; font-weight: 600; fill: #17202a; }
  .heading { font-weight: 600; fill: #17202a; }
  .label { text-anchor: end; }
  .number { fill: #17202a; }
  .ours { fill: #4a76c4; }
  .other { fill: #a9b4be; }
  @media (prefers-color-scheme: dark) {
    text { fill: #b4bfca; }
    .paper { fill: #131416; }
    .question, .heading, .number { fill: #e9edf1; }
    .ours { fill: #6d93d6; }
    .other { fill: #66727d; }
  }
</style>"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One number.

    Attributes:
        label: Whose it is.
        value: How long the bar is, in the unit of its figure; not negative.
        number: The value as it is written beside the bar.
        ours: Whether it has the colour of this package.
    """

    label: str
    value: float
    number: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One question and its answer.

    Attributes:
        question: What stands above the bars.
        unit: What the bars show, and which direction is better.
        groups: Bars by the heading above them; all share one scale.
    """

    question: str
    unit: str
    groups: Mapping[str, Sequence[Bar]]

    def svg(self) -> str:
        """The figure as the text of an SVG file, as high as its bars need."""
        longest = max((bar.value for bars in self.groups.values() for bar in bars), default=0) or 1
        y = EDGE + LINE
        marks = [_text(EDGE, y - 4, "question", self.question)]
        y += LINE
        marks.append(_text(EDGE, y, "unit", self.unit))
        for heading, bars in self.groups.items():
            y += LINE // 2
            for line in _wrapped(heading, HEADING_LETTERS):
                y += LINE
                marks.append(_text(EDGE, y, "heading", line))
            y += LINE // 2
            for bar in bars:
                marks += _bar(bar, y, LONGEST * bar.value / longest)
                y += _height(bar)
        height = y + EDGE
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
                f'viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
                f'<title id="title">{escape(f"{self.question} {self.unit}")}</title>',
                STYLE,
                f'<rect class="paper" width="{WIDTH}" height="{height}" rx="10"/>',
                *marks,
                "</svg>\n",
            ]
        )


def _wrapped(text: str, letters: int) -> list[str]:
    # A name such as ModernBERT-base stays whole.
    return textwrap.wrap(text, letters, break_on_hyphens=False)


def _lines(bar: Bar) -> list[str]:
    return _wrapped(bar.label, LABEL_LETTERS)


def _height(bar: Bar) -> int:
    return LINE * len(_lines(bar)) + 4


def _bar(bar: Bar, top: int, length: float) -> Iterator[str]:
    """Label, bar and number, from `top` downwards."""
    for place, line in enumerate(_lines(bar), 1):
        yield _text(LABELS - 8, top + LINE * place - 4, "label", line)
    middle = top + LINE * len(_lines(bar)) / 2
    colour = "ours" if bar.ours else "other"
    yield (
        f'<rect class="{colour}" x="{LABELS}" y="{middle - 7:g}" width="{max(length, 1):.1f}" '
        'height="14" rx="2"/>'
    )
    yield _text(LABELS + length + 6, middle + 5, "number", bar.number)


def _text(x: float, y: float, role: str, text: str) -> str:
    return f'<text class="{role}" x="{x:.6g}" y="{y:g}">{escape(text)}</text>'
