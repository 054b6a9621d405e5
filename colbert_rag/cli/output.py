"""What commands write: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from colbert_rag.display import columns, one_line, visible

NARROWEST, WIDEST = 60, 100

SHOWN_LINES = 3
"""Lines of a document's text in a table."""

SHORTEST_TITLE = 12
"""Columns below which a title is left out of a table."""


@dataclass(frozen=True, slots=True)
class Row:
    """A document in a table.

    Attributes:
        score: What it is ordered by.
        name: Where it was read, or its id.
        title: What it is called, or "".
        text: Its text.
    """

    score: float
    name: str
    title: str
    text: str


def width() -> int:
    """Columns to fill: the terminal's, but never so many that lines are hard to read."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


def say(text: str = "") -> None:
    """Write a line of the result."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Write a line about the work, which no pipe mistakes for a result.

    What it quotes may come from a file, and must not colour or move a terminal.
    """
    sys.stderr.write(f"{visible(text)}\n")


def say_json(value: Mapping[str, object]) -> None:
    """Write a result as one line of JSON, in which a number that is not finite becomes null.

    Only where the output cannot show a character is it escaped.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    say(json.dumps(_finite(value), ensure_ascii=encoding != "utf8", allow_nan=False))


def _finite(value: object) -> object:
    """The same value with None for what JSON does not know: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def shows_progress() -> bool:
    """Whether somebody watches: a bar in a log file is noise."""
    return sys.stderr.isatty()


def shortened(text: str, room: int, *, lines: int = 1) -> list[str]:
    """The beginning of a text, wrapped to a number of columns."""
    # No more than could ever be shown, since wrapping a whole book takes seconds.
    opening = one_line(text[: 4 * room * lines])
    # textwrap counts characters, and one of Chinese takes two columns.
    characters = room * len(opening) // max(columns(opening), 1)
    return textwrap.wrap(opening, max(characters, 8), max_lines=lines, placeholder=" ...") or [""]


def say_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Write names and values in two columns."""
    rows = list(facts)
    indent = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        # A long path stays whole, so that it can be copied.
        lines = textwrap.wrap(
            value, width() - indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
        for head, line in zip_longest([name], lines, fillvalue=""):
            say(f"{head:<{indent}}{line}")


def say_table(rows: Iterable[Row]) -> None:
    """Write documents, best first, with the beginnings of their texts."""
    indent = " " * 15
    for rank, row in enumerate(rows, start=1):
        # A long path stays whole, so that it can be copied; a title gives way to it.
        heading = one_line(row.name)
        room = width() - len(indent) - len(heading) - 2
        if row.title and room >= SHORTEST_TITLE:
            heading += f": {shortened(row.title, room)[0]}"
        say()
        say(f"{rank:>4}  {row.score:>7.4f}  {heading}")
        for line in shortened(row.text, width() - len(indent), lines=SHOWN_LINES):
            say(f"{indent}{line}")


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
