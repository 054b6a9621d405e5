"""What commands write: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest

from colbert_rag.display import columns, one_line, plain
from colbert_rag.written import named

NARROWEST, WIDEST = 60, 100

# What JSON allows inside a string, and a terminal obeys, a reader takes for a line end, or UTF-8
# cannot hold: the upper controls, marks of reading direction, separators, lone surrogates.
_OBEYED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

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
    """Write a line of the result; what it quotes must not colour or move a terminal."""
    write(f"{plain(text)}\n")


def write(text: str) -> None:
    """Write a part of the result as it is.

    Raises:
        OSError: it cannot be written; says that it is of standard output.
    """
    with naming_stdout():
        sys.stdout.write(text)


@contextmanager
def naming_stdout() -> Iterator[None]:
    """Say of errors of standard output that they are, since theirs name no file."""
    try:
        yield
    except OSError as error:
        raise named(error, "standard output") from error


def note(text: str) -> None:
    """Write one line about the work to standard error, which no pipe mistakes for a result.

    A log that cannot be written, as on a full disk, does not end the work.
    """
    with suppress(OSError):
        sys.stderr.write(f"{one_line(text)}\n")


@contextmanager
def plain_logs() -> Iterator[None]:
    """While a command runs, what libraries log and warn of is written as `note` would write it."""
    last, shown = logging.lastResort, warnings.showwarning
    logging.lastResort = _Notes(logging.WARNING)
    # Not `logging.captureWarnings`, which hands them to a logger that says nothing.
    warnings.showwarning = lambda message, category, *_: note(f"{category.__name__}: {message}")
    try:
        yield
    finally:
        logging.lastResort, warnings.showwarning = last, shown


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record))


def say_json(value: Mapping[str, object]) -> None:
    """Write a result as one line of JSON."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    write(f"{json_line(value, ascii_only=encoding != 'utf8')}\n")


def json_line(value: Mapping[str, object], *, ascii_only: bool = False) -> str:
    """A line of JSON, without its end, in which a number that is not finite becomes null.

    Only what the output cannot show, or a terminal would obey, is escaped.
    """
    line = json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


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
            one_line(value), width() - indent, break_long_words=False, break_on_hyphens=False
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
