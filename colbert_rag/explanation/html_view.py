"""An explanation for a notebook: the document with its matches marked, and where they came from.

It needs no script. Numbers tie query words to what they match, underlines are as thick as what a
word carries, so that it can be read in grey, on paper, and where style sheets are taken out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from colbert_rag.display import Html, decimal, element, markup, panel, percent
from colbert_rag.explanation.heatmap import strips
from colbert_rag.explanation.overview import DocumentUnit, QueryUnit
from colbert_rag.explanation.text_view import mostly_on, summary, unread_notes

if TYPE_CHECKING:
    from colbert_rag.explanation.explanation import Explanation

_OPEN_UP_TO = 24  # lines of the table that are shown without a click
_LONGEST_RUN = 3000  # characters shown of a stretch without a match, such as what was not read
_LONGEST_WORD = 200
_APART = " apart"  # the class of tokens that are not in the text
_LEGEND = (
    "Colour and underline: how much of the score a word carries. Numbers: which words of the query "
    "it matches. Point at a word, or tap it in the query, to see its matches alone."
)

_CSS = """
& .score{font-size:20px;font-weight:600;font-variant-numeric:tabular-nums;margin-inline-end:8px}
& .query{font-size:15px;line-height:2.2;margin-bottom:6px}
& .query label,& mark{color:inherit;border-radius:3px;
-webkit-box-decoration-break:clone;box-decoration-break:clone}
& .query label{position:relative;cursor:pointer;padding:3px 5px;margin-inline:1px;
background:color-mix(in srgb,var(--warm) calc(8% + 57%*var(--s)),transparent)}
& mark{border-radius:3px 3px 0 0;padding:1px 2px 0;border-bottom:calc(.5px + 3px*var(--s)) solid
color-mix(in srgb,var(--warm) 80%,var(--ink));
background:color-mix(in srgb,var(--warm) calc(55%*var(--s)),transparent)}
& mark.apart{margin-inline-end:5px}& :not(.apart)+mark.apart{margin-inline-start:5px}
& input{position:absolute;opacity:0;width:1px;height:1px;margin:0}
& .query label:has(:focus-visible){outline:2px solid var(--cool)}
& sup{font-size:9px;line-height:0;margin-inline-start:2px;color:var(--soft);
font-variant-numeric:tabular-nums;white-space:nowrap}
& .document{white-space:pre-wrap;line-height:1.95;margin:0 0 10px;padding:10px 0;
box-shadow:inset 0 1px var(--line),inset 0 -1px var(--line)}
& .apart{font-family:ui-monospace,monospace;font-size:12px;color:var(--soft)}
& .unread{opacity:.45}
& summary{cursor:pointer;color:var(--soft);font-size:12px}
& .strip{width:30%;min-width:96px}& .name,& .words{min-width:7em}
& img{display:block;width:100%;height:14px;margin:0;image-rendering:pixelated;border-radius:2px}
& .meter{display:grid;grid-template-columns:30px minmax(30px,1fr);align-items:center;gap:6px}
& tr.line:hover td{background:color-mix(in srgb,var(--cool) 12%,transparent)}
&:has(.line:hover,.query label:hover,.query :checked) mark{background:none}
@container (width < 600px){& .words{display:none}}
@container (width < 420px){& .track{display:none}& .meter{display:block}}
"""


def to_html(view: Explanation) -> str:
    """The whole block, markup and style."""
    return panel(
        element(
            "p",
            element("span", decimal(view.score, 2), class_="score"),
            element("small", f"score, {summary(view)}"),
        ),
        element("p", *_query(view), class_="query", dir="auto"),
        element("div", *_document(view), class_="document", dir="auto"),
        element("p", element("small", _LEGEND)),
        _table(view),
        *(element("p", element("small", note)) for note in unread_notes(view)),
        css=_CSS + "".join(map(_highlight, range(1, len(view.overview.lines) + 1))),
    )


def _highlight(number: int) -> str:
    """Rules that show what belongs together, from either side."""
    line, match = f".q{number}", f".m{number}"
    chosen = "background:var(--cool);color:var(--paper)"
    return (
        f"&:has({line}:hover,{line} :checked,{line} :focus-visible) mark{match},"
        f"&:has({match}:hover,{line} :checked) label{line}{{{chosen};& sup{{color:inherit}}}}"
    )


def _query(view: Explanation) -> Iterator[Html]:
    """The query with a switch on each word, then switches for the tokens that are not in it."""
    lines = view.overview.lines
    strongest = max((line.share for line in lines if line.span), default=0.0)
    done = 0
    for number, line in enumerate(lines, start=1):
        if line.span is not None:
            start, stop = line.span
            yield _run(view.query[done:start])
            yield _switch(view.query[start:stop], number, line, strongest)
            done = stop
    yield _run(view.query[done : view.query_read])
    yield _unread(view.query[view.query_read :])
    for number, line in enumerate(lines, start=1):
        if line.span is None:
            count = f"{line.tokens} \u00d7 " if line.role == "expansion" else ""
            yield markup(" ")
            yield _switch(f"{count}{line.label}", number, line, strongest)


def _switch(word: str, number: int, line: QueryUnit, strongest: float) -> Html:
    said = f"{decimal(line.similarity, 2)}, {percent(line.share)} of the score"
    return element(
        "label",
        element("input", type="checkbox"),
        _clipped(word, _LONGEST_WORD),
        element("sup", str(number)),
        class_=f"q{number}" + _APART * (line.span is None),
        # Names of tokens are not to decide the reading direction of a text.
        dir="ltr" if line.span is None else False,
        style=_strength(line.share, strongest),
        title=f"{line.name}: {said}",
    )


def _document(view: Explanation) -> Iterator[Html]:
    """The document with its matches marked; tokens around the text only where they match."""
    places = view.overview.places
    strongest = max((place.share for place in places if place.span), default=0.0)
    last = max((index for index, place in enumerate(places) if place.span), default=-1)
    done, read = view.text_read
    yield _unread(view.text[:done])
    for index, place in enumerate(places):
        if not place.lines:
            continue
        # Tokens behind the text stand behind all of it.
        start, stop = place.span or ((done, done) if index < last else (read, read))
        yield _run(view.text[done:start])
        yield _mark(view.text[start:stop] if place.span else place.label, place, view, strongest)
        done = stop
    yield _run(view.text[done:read])
    yield _unread(view.text[read:])


def _mark(word: str, place: DocumentUnit, view: Explanation, strongest: float) -> Html:
    names = ", ".join(view.overview.lines[line].name for line in place.lines)
    return element(
        "mark",
        _clipped(word, _LONGEST_WORD),
        element("sup", "\u00a0".join(str(line + 1) for line in place.lines)),
        class_=" ".join(f"m{line + 1}" for line in place.lines) + _APART * (place.span is None),
        dir="ltr" if place.span is None else False,
        style=_strength(place.share, strongest),
        title=f"{percent(place.share)} of the score, for {names}",
    )


def _table(view: Explanation) -> Html:
    """Every line with its numbers, and its similarity along the document."""
    lines, places = view.overview.lines, view.overview.places
    images: list[str | None] = [None] * len(lines)
    if places:
        images = [*strips(view.overview.profiles, [line.best for line in lines])]
    heads = (("", "number"), ("query", ""), ("similarity", ""), ("share", "number"))
    titles = [element("th", text, class_=kind) for text, kind in heads]
    if places:
        titles.append(element("th", "similarity along the document", class_="strip"))
    titles.append(element("th", "best match", class_="words"))
    rows = [
        _row(number, line, view, image)
        for number, (line, image) in enumerate(zip(lines, images, strict=True), start=1)
    ]
    return element(
        "details",
        element("summary", "Query word by query word"),
        element("table", element("thead", element("tr", *titles)), element("tbody", *rows)),
        open=len(rows) <= _OPEN_UP_TO,
    )


def _row(number: int, line: QueryUnit, view: Explanation, image: str | None) -> Html:
    width = min(max(line.similarity, 0.0), 1.0) if math.isfinite(line.similarity) else 0.0
    meter = element("i", style=f"width:{100 * width:.0f}%")
    found = mostly_on(line, view) if line.best else "nothing to match"
    tokens = f" {line.tokens} tokens" if line.role == "text" and line.tokens > 1 else ""
    cells = [
        element("td", str(number), class_="number soft"),
        element(
            "td",
            element("bdi", _clipped(line.name, _LONGEST_WORD)),
            element("small", tokens),
            class_="name",
        ),
        element(
            "td",
            element(
                "span",
                element("span", decimal(line.similarity, 2), class_="number"),
                element("span", meter, class_="track"),
                class_="meter",
            ),
        ),
        element("td", percent(line.share), class_="number"),
        element("td", element("bdi", found), class_="words"),
    ]
    if image is not None:
        picture = element("img", src=image, alt=found, title=found)
        cells.insert(-1, element("td", picture, class_="strip"))
    return element("tr", *cells, class_=f"line q{number}")


def _strength(share: float, strongest: float) -> str:
    part = share / strongest if strongest > 0 and math.isfinite(share) else 0.0
    # The power keeps weak matches visible beside one that carries a third of the score.
    return f"--s:{min(max(part, 0.0), 1.0) ** 0.75:.2f}"


def _unread(text: str) -> Html:
    return element("span", _run(text), class_="unread", title="not read") if text else Html()


def _run(text: str) -> Html:
    return markup(_clipped(text, _LONGEST_RUN))


def _clipped(text: str, longest: int) -> str:
    """The text, or its two ends and how much lies between them."""
    if len(text) <= longest:
        return text
    side = longest // 2
    return f"{text[:side]} … {len(text) - 2 * side:,} characters … {text[-side:]}"
