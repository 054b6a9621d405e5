"""An explanation as a table of plain characters, about 100 columns wide."""

from __future__ import annotations

from colbert_rag.display import bar, columns, decimal, fitted, one_line, percent
from colbert_rag.explanation.overview import Line, Overview

_WIDTH = 100
_BAR = 10
_NAME = 24
_NAMED = 3  # places named for a line of many tokens


def to_text(view: Overview) -> str:
    """Each query word with its similarity, its share, and its best match in context."""
    name = min(_NAME, max((columns(one_line(line.name)) for line in view.lines), default=0))
    head = f"Score {decimal(view.score, 4)}: {summary(view)}"
    rows = [_row(line, view, name) for line in view.lines]
    notes = unread_notes(view)
    blank = [""] if notes else []
    return "\n".join([head, f"Query: {one_line(view.query)}", "", *rows, *blank, *notes])


def summary(view: Overview) -> str:
    """What the score is made of."""
    mean = view.score / view.tokens if view.tokens else 0.0
    return f"the sum over {view.tokens} query tokens, {decimal(mean, 3)} on average"


def mostly_on(line: Line, view: Overview) -> str:
    """Where a line's tokens found their matches, by name."""
    names = list(dict.fromkeys(one_line(view.places[place].label) for place in line.best))
    start = "mostly on " if len(names) > _NAMED else ""
    return start + ", ".join(_shortened(name) for name in names[:_NAMED])


def unread_notes(view: Overview) -> list[str]:
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


def _shortened(name: str) -> str:
    return fitted(name, _NAME).rstrip()


def _row(line: Line, view: Overview, name: int) -> str:
    fixed = (
        f"{decimal(line.similarity, 2):>5} {bar(line.similarity, _BAR)} "
        f"{percent(line.share):>7}  {fitted(one_line(line.name), name)}  "
    )
    return (fixed + _match(line, view, _WIDTH - len(fixed))).rstrip()


def _match(line: Line, view: Overview, room: int) -> str:
    """The best match with the words around it, or names where many tokens are summed."""
    spans = [span for place in line.best if (span := view.places[place].span) is not None]
    if line.role != "text" or not spans:
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
