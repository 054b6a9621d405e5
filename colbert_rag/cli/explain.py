"""`colbert-rag explain`: which words made the score of a document."""

from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_rag.cli.options import (
    FORMS,
    UsageError,
    add_long_documents,
    add_model,
    add_reading,
    add_recipe,
    checked_query,
    count_argument,
    counted_truncation,
    open_model,
    settings_of,
)
from colbert_rag.cli.output import note, say, say_json, width
from colbert_rag.cli.rerank import RankedDocument, best_documents, read_batches
from colbert_rag.display import (
    Html,
    bar,
    columns,
    decimal,
    element,
    fitted,
    markup,
    one_line,
    percent,
)

if TYPE_CHECKING:
    from colbert_rag.explanation import Explanation
    from colbert_rag.explanation.overview import Line, Overview

SHOWN_CHARACTERS = 1200
"""Characters of a document that are shown in a terminal; of more, the part that matters most."""

BAR, LONGEST_NAME = 10, 24

STYLES = ((0.6, "1;30;43"), (0.25, "1;4"), (0.0, "4"))
"""How a terminal shows a word, by what it carries of the strongest word's share at least: bold
black on yellow, bold and underlined, underlined. All are legible on light and on dark."""

DESCRIPTION = f"""\
Say why a document answers a query: which of its words each word of the query
matched, how well, and what that adds to the score. It is the best document of
the files, or the one at --rank.

A FILE is one of these, told by its suffix, else by its first line:
{FORMS}
A folder is read with its sub-folders. Without FILE, or for -, standard input
is read."""

EPILOG = """\
examples:
  colbert-rag explain "how do refunds work" handbook/
  colbert-rag explain "red planet" facts.jsonl --rank 2
  colbert-rag explain "red planet" facts.jsonl --html why.html
  echo "We ship to Europe." | colbert-rag explain "delivery" --json"""

# No script runs in the page, and nothing is fetched, whatever a document holds.
HEAD = Html(
    '<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
    "<style>:root{color-scheme:light dark}body{max-width:980px;margin:24px auto;padding:0 12px;"
    "font:14px/1.5 system-ui,sans-serif}h1{font-size:16px;overflow-wrap:anywhere}</style>\n"
)

Cell = tuple[str, float | None]
"""A character as shown, and the strength of its mark."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] QUERY [FILE ...]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    parser.add_argument("files", metavar="FILE", nargs="*", default=[], help="files, folders, or -")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--rank", type=count_argument, default=1, metavar="N", help="explain the N-th best (1)"
    )
    add_long_documents(results)
    form = results.add_mutually_exclusive_group()
    form.add_argument("--html", metavar="FILE", help="write a web page instead")
    form.add_argument("--json", action="store_true", help="write one JSON object instead")
    add_reading(parser)
    add_model(parser)
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rank, and explain one place."""
    query = checked_query(arguments.query)
    rank = arguments.rank
    if rank < 1:
        raise UsageError(f"--rank is {rank}, expected 1 for the best, or more")
    settings = settings_of(arguments)
    batches = read_batches(arguments)
    if batches is None:
        return 0
    colbert = open_model(settings)
    with counted_truncation(colbert):
        places, seen = best_documents(colbert, query, batches, top_k=rank)
    if len(places) < rank:
        raise UsageError(f"--rank is {rank}, and there are only {seen:,} documents")
    place = places[-1]
    explanation = colbert.explain(query, place.document.content)
    heading = f"{place.name}, number {rank} of {seen:,}"
    if arguments.json:
        say_json(_record(rank, place) | explanation.to_dict())
    elif arguments.html:
        # A file name that is not valid Unicode must not make the page impossible.
        Path(arguments.html).write_text(
            page(heading, explanation), encoding="utf-8", errors="backslashreplace"
        )
        note(f"{arguments.html} explains {one_line(heading)}")
    else:
        for line in _text(heading, explanation.overview, explanation, _styled()):
            say(line)
    return 0


def page(heading: str, explanation: Explanation) -> str:
    """A web page that needs nothing else."""
    title = element("title", one_line(f"{explanation.query} - {heading}"))
    body = element("body", element("h1", heading), Html("\n" + explanation.to_html()))
    head = element("head", Html("\n"), HEAD, title)
    return f"<!DOCTYPE html>\n{markup(element('html', head, body))}\n"


def _record(rank: int, place: RankedDocument) -> dict[str, object]:
    document = place.document
    return {
        "rank": rank,
        "source": document.source,
        "line": document.line,
        "id": document.id,
        "title": document.title or None,
    }


def _styled() -> bool:
    """Whether colours help: a terminal shows them, and nobody asked for none (no-color.org)."""
    shows = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    # The old console of Windows would print the codes.
    capable = os.name != "nt" or "WT_SESSION" in os.environ
    return shows and capable and not os.environ.get("NO_COLOR")


def _text(heading: str, view: Overview, explanation: Explanation, styled: bool) -> Iterator[str]:
    from colbert_rag.explanation.text_view import summary, unread_notes

    yield one_line(heading)
    yield f"Score {decimal(view.score, 4)}: {summary(view)}"
    yield ""
    names = [columns(one_line(line.name)) for line in view.lines]
    for line in view.lines:
        yield _line(line, view, min(max(names), LONGEST_NAME))
    yield ""
    start, stop = 0, len(view.text)
    if stop > SHOWN_CHARACTERS:
        start, stop = _best_part(explanation)
        carried = math.fsum(
            place.share for place in view.places if place.span and _within(place.span, start, stop)
        )
        yield (
            f"Characters {start:,} to {stop:,} of {len(view.text):,}, which carry "
            f"{percent(carried)} of the score:"
        )
        yield ""
    for cells in _wrapped(list(_cells(view, start, stop, styled)), width() - 2):
        yield f"  {_painted(cells, styled)}"
    for message in unread_notes(view):
        yield ""
        yield from textwrap.wrap(message, width())


def _best_part(explanation: Explanation) -> tuple[int, int]:
    """Where the part that matters most stands, with as much around it as there is room for."""
    text, passage = explanation.text, explanation.best_passage(SHOWN_CHARACTERS)
    start = max(passage.start - (SHOWN_CHARACTERS - len(passage.text)) // 2, 0)
    stop = min(start + SHOWN_CHARACTERS, len(text))
    start = max(stop - SHOWN_CHARACTERS, 0)
    # Whole words, where there are spaces.
    if start > 0:
        start = text.find(" ", start, passage.start) + 1 or start
    if stop < len(text):
        stop = max(text.rfind(" ", passage.stop, stop), 0) or stop
    return start, stop


def _within(span: tuple[int, int], start: int, stop: int) -> bool:
    return start <= span[0] and span[1] <= stop


def _line(line: Line, view: Overview, room: int) -> str:
    from colbert_rag.explanation.text_view import mostly_on

    fixed = (
        f"{decimal(line.similarity, 2):>5} {bar(line.similarity, BAR)} {percent(line.share):>7}  "
        f"{fitted(one_line(line.name), room)}  "
    )
    found = mostly_on(line, view) if line.best else ""
    return (fixed + fitted(found, width() - columns(fixed))).rstrip()


def _cells(view: Overview, start: int, stop: int, styled: bool) -> Iterator[Cell]:
    """A part of the document, character by character, its matches marked."""
    matched = [place for place in view.places if place.span and place.lines]
    strongest = max((place.share for place in matched), default=0.0)
    done = start
    for place in matched:
        first, last = place.span or (0, 0)
        if not _within((first, last), done, stop):
            continue
        yield from ((character, None) for character in view.text[done:first])
        word = view.text[first:last] if styled else f"[{view.text[first:last]}]"
        strength = place.share / strongest if strongest > 0 else 0.0
        yield from ((character, strength) for character in word)
        done = last
    yield from ((character, None) for character in view.text[done:stop])


def _wrapped(cells: Sequence[Cell], room: int) -> Iterator[list[Cell]]:
    """Lines of at most `room` columns, broken at spaces where there are any."""
    line: list[Cell] = []
    used = 0
    for character, strength in cells:
        shown = " " if character.isspace() else one_line(character)
        if shown == " " and (not line or line[-1][0] == " "):
            continue
        line.append((shown, strength))
        used += columns(shown)
        if used > room:
            space = max((at for at, cell in enumerate(line) if cell[0] == " "), default=0)
            end = space or len(line) - 1
            yield line[:end]
            line = line[end + 1 :] if space else line[end:]
            used = sum(columns(cell[0]) for cell in line)
    if line:
        yield line


def _painted(cells: Sequence[Cell], styled: bool) -> str:
    parts = []
    for strength, run_of in groupby(cells, key=lambda cell: cell[1]):
        text = "".join(character for character, _ in run_of)
        if styled and strength is not None and math.isfinite(strength):
            style = next((style for least, style in STYLES if strength >= least), STYLES[-1][1])
            text = f"\x1b[{style}m{text}\x1b[0m"
        parts.append(text)
    return "".join(parts).rstrip()
