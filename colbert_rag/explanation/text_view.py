"""An explanation as text: a table of matches and the document with its matches marked."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from colbert_rag.display import bar, columns, decimal, fitted, one_line, percent
from colbert_rag.explanation.overview import QueryUnit
from colbert_rag.explanation.passage import best_passage
from colbert_rag.tokenizer import Span

if TYPE_CHECKING:
    from colbert_rag.explanation.explanation import Explanation

SHOWN_CHARACTERS = 1200
"""Characters of a document that are shown; of a longer one, the part that matters most."""

STYLES = ((0.6, "1;30;43"), (0.25, "1;4"), (0.0, "4"))
"""How a terminal shows a word, by what it carries of the strongest word's share at least: bold
black on yellow, bold and underlined, underlined. All are legible on light and on dark."""

_BAR = 10
_NAME = 24
_NAMED = 3  # places named for a line of many tokens

Cell = tuple[str, float | None]
"""A character as shown, and the strength of its mark."""


def to_text(view: Explanation, *, width: int, document: bool, styled: bool) -> str:
    """Each query word with its similarity, its share, and its best match.

    With `document` the document stands below the table; without it, the table shows the matches in
    context. The arguments are those of `Explanation.to_text`.
    """
    units = view.overview.lines
    name = min(_NAME, max((columns(one_line(unit.name)) for unit in units), default=0))
    lines = [f"Score {decimal(view.score, 4)}: {summary(view)}"]
    lines += [f"Query: {one_line(view.query)}", ""]
    for unit in units:
        head = (
            f"{decimal(unit.similarity, 2):>5} {bar(unit.similarity, _BAR)} "
            f"{percent(unit.share):>7}  {fitted(one_line(unit.name), name)}  "
        )
        lines.append((head + _match(unit, view, width - columns(head), document)).rstrip())
    if document:
        lines += ["", *_document(view, width, styled)]
    for message in unread_notes(view):
        lines += ["", *textwrap.wrap(message, width)]
    return "\n".join(lines)


def summary(view: Explanation) -> str:
    """What the score is made of."""
    mean = view.score / len(view.matches) if view.matches else 0.0
    return f"the sum over {len(view.matches)} query tokens, {decimal(mean, 3)} on average"


def mostly_on(line: QueryUnit, view: Explanation) -> str:
    """Where a line's tokens found their matches, by name."""
    names = list(dict.fromkeys(one_line(view.overview.places[place].label) for place in line.best))
    start = "mostly on " if len(names) > _NAMED else ""
    return start + ", ".join(fitted(name, _NAME).rstrip() for name in names[:_NAMED])


def unread_notes(view: Explanation) -> list[str]:
    """Say what the model's length limits kept it from reading, or what it read apart."""
    notes = []
    start, stop = view.text_read
    if view.is_window:
        notes.append(
            "The document is longer than the model's limit. This is its best window: characters "
            f"{start:,} to {stop:,} of {len(view.text):,}."
        )
    cut = {"query": len(view.query) - view.query_read, "document": len(view.text) - stop}
    if view.is_window:
        del cut["document"]
    return notes + [
        f"The last {missing:,} characters of the {side} were not read: it is longer than the "
        "model's limit."
        for side, missing in cut.items()
        if missing
    ]


def _match(line: QueryUnit, view: Explanation, room: int, names: bool) -> str:
    """The best match with the words around it, or names where many tokens are summed."""
    spans = [span for place in line.best if (span := view.overview.places[place].span) is not None]
    if names or line.role != "text" or not spans:
        return fitted(mostly_on(line, view), room) if line.best else ""
    start, stop = spans[0]
    word = f"[{one_line(view.text[start:stop][:room])}]"
    # The word in the middle, or nearer to an end of the text that has not enough on its side.
    side = max(room - columns(word) - 2, 0) // 2
    before = one_line(view.text[max(start - side, 0) : start] + "|")[:-1]
    after = one_line("|" + view.text[stop : stop + 2 * room])[1:]
    if start > side:
        before = "…" + before.lstrip()
    return fitted(before + word + after, room)


def _document(view: Explanation, width: int, styled: bool) -> Iterator[str]:
    """The document, or the part of a long one that matters most."""
    shown = (0, len(view.text))
    if len(view.text) > SHOWN_CHARACTERS:
        shown = _best_part(view)
        places = view.overview.places
        carried = math.fsum(at.share for at in places if at.span and _within(at.span, shown))
        yield (
            f"Characters {shown[0]:,} to {shown[1]:,} of {len(view.text):,}, which carry "
            f"{percent(carried)} of the score:"
        )
        yield ""
    for cells in _wrapped(_cells(view, shown, styled), width - 2):
        yield f"  {_painted(cells, styled)}"


def _best_part(view: Explanation) -> Span:
    """Where the part that matters most stands, with as much around it as there is room for."""
    text, passage = view.text, best_passage(view.text, view.overview.places, SHOWN_CHARACTERS)
    start = max(passage.start - (SHOWN_CHARACTERS - len(passage.text)) // 2, 0)
    stop = min(start + SHOWN_CHARACTERS, len(text))
    start = max(stop - SHOWN_CHARACTERS, 0)
    # Whole words, where there are spaces.
    if start > 0:
        start = text.find(" ", start, passage.start) + 1 or start
    if stop < len(text):
        stop = max(text.rfind(" ", passage.stop, stop), 0) or stop
    return start, stop


def _within(span: Span, part: Span) -> bool:
    return part[0] <= span[0] and span[1] <= part[1]


def _cells(view: Explanation, shown: Span, styled: bool) -> Iterator[Cell]:
    """A part of the document, character by character, its matches marked."""
    matched = [place for place in view.overview.places if place.span and place.lines]
    strongest = max((place.share for place in matched), default=0.0)
    done, stop = shown
    for place in matched:
        first, last = place.span or (0, 0)
        if not _within((first, last), (done, stop)):
            continue
        yield from ((character, None) for character in view.text[done:first])
        word = view.text[first:last] if styled else f"[{view.text[first:last]}]"
        strength = place.share / strongest if strongest > 0 else 0.0
        yield from ((character, strength) for character in word)
        done = last
    yield from ((character, None) for character in view.text[done:stop])


def _wrapped(cells: Iterator[Cell], room: int) -> Iterator[list[Cell]]:
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
            space = max((index for index, cell in enumerate(line) if cell[0] == " "), default=0)
            end = space or len(line) - 1
            yield line[:end]
            line = line[end + 1 :] if space else line[end:]
            used = sum(columns(cell[0]) for cell in line)
    if line:
        yield line


def _painted(cells: Sequence[Cell], styled: bool) -> str:
    parts = []
    for strength, run in groupby(cells, key=lambda cell: cell[1]):
        text = "".join(character for character, _ in run)
        if styled and strength is not None and math.isfinite(strength):
            style = next((style for least, style in STYLES if strength >= least), STYLES[-1][1])
            text = f"\x1b[{style}m{text}\x1b[0m"
        parts.append(text)
    return "".join(parts).rstrip()
