"""What the views share: markup that escapes by itself, one look for notebooks, terminal columns."""

from __future__ import annotations

import hashlib
import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

# Control characters would end a terminal's line, colour it, or be refused by an HTML parser; each
# has a picture. Two marks would reverse all that follows in a line, ours included.
_PICTURES = str.maketrans(
    {
        **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
        0x7F: "\u2421",
        **dict.fromkeys([*range(0x80, 0xA0), 0x202D, 0x202E], "\ufffd"),
    }
)
# Marks of reading direction, which reach beyond the text in a terminal, and what ends its line.
_TURNING = str.maketrans(dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], ""))
_ENDS = str.maketrans({"\n": "\u240a", "\t": "\u2409", "\u2028": "\ufffd", "\u2029": "\ufffd"})
_EIGHTHS = " ▏▎▍▌▋▊▉"

# The theme is the notebook's where it says one, else the system's; `light-dark()` follows
# `color-scheme`. The class is tripled because notebooks style tables with up to two classes.
_THEME = """
color-scheme:light dark;
--ink:light-dark(#1c2024,#e6e8eb);--soft:light-dark(#60646c,#a0a6ad);
--line:light-dark(#e0e2e6,#363a40);--paper:light-dark(#fff,#17191c);
--warm:light-dark(#f5b53d,#b97a0e);--cool:light-dark(#1f5fd0,#8ab8ff);
--bar:light-dark(#5b8def,#4a7ddb);
background:var(--paper);color:var(--ink);border:1px solid var(--line);border-radius:8px;
padding:14px 16px;margin:4px 0;max-width:980px;box-sizing:border-box;overflow-wrap:anywhere;
font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
text-align:start;container-type:inline-size;
[data-jp-theme-light="true"] &,.vscode-light &,[data-theme="light"] &{color-scheme:light}
[data-jp-theme-light="false"] &,.vscode-dark &,[data-theme="dark"] &,html[theme="dark"] &{
color-scheme:dark}
& *{box-sizing:border-box}
& p{margin:0 0 8px;text-align:start}
& small{color:var(--soft);font-size:12px}& .soft{color:var(--soft)}
& table{border-collapse:collapse;border-spacing:0;width:100%;margin:0;font-size:13px;
table-layout:auto;border:0;color:inherit}& thead{border:0}
& tr,& tr:nth-child(odd),& tr:nth-child(even){background:none}
& th,& td{text-align:start;vertical-align:middle;padding:3px 10px 3px 0;border:0;max-width:none;
line-height:1.4;white-space:normal}
& th{font-weight:400;font-size:12px;color:var(--soft);overflow-wrap:normal}
& td{box-shadow:inset 0 1px var(--line)}
& .number{text-align:end;font-variant-numeric:tabular-nums;white-space:nowrap}
& .track{display:block;height:6px;border-radius:3px;background:var(--line);min-width:40px}
& .track i{display:block;height:100%;border-radius:3px;background:var(--bar)}
"""


class Html(str):
    """Markup. Any other string is text, and is escaped when it becomes part of markup."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | bool) -> Html:
    """One element.

    Args:
        tag: Its name.
        children: Markup, or text to be escaped.
        attributes: Escaped as well; an underscore at the end of a name is dropped, a value of True
            stands for an attribute without value, and False for none.
    """
    head = tag
    for name, value in attributes.items():
        if value is False:
            continue
        head += f" {name.rstrip('_')}"
        if value is not True:
            head += f'="{html.escape(visible(str(value)))}"'
    if tag in ("br", "col", "img", "input"):
        return Html(f"<{head}>")
    return Html(f"<{head}>{markup(*children)}</{tag}>")


def markup(*children: str) -> Html:
    """Join markup and text, escaping the text."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(visible(child)) for child in children
        )
    )


def panel(*children: str, css: str = "") -> Html:
    """A block for a notebook that looks the same wherever it is shown.

    Its class is a digest of its style sheet, so that outputs saved by different versions of this
    package do not restyle each other. Nothing in it has an id: any number of them, even of the
    same content, can be on one page.

    Args:
        children: Its content.
        css: Rules besides the theme's, nested: `&` is the block.
    """
    sheet = " ".join((_THEME + css).split("\n"))
    name = f"colbert-{hashlib.sha256(sheet.encode()).hexdigest()[:8]}"
    style = Html(f"<style>{'.' + '.'.join([name] * 3)}{{{sheet}}}</style>")
    return element("div", style, *children, class_=name)


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, marked: int | None = None
) -> Html:
    """A table of text whose first column names the rows, and the others are numbers.

    Args:
        heads: What stands above each column.
        rows: Their cells.
        marked: The row that has the class `marked`.
    """

    def cells(tag: str, row: Sequence[str], kind: str | bool = False) -> Html:
        return element(
            "tr",
            *(
                element(tag, one_line(cell), class_="number" if place else "name")
                for place, cell in enumerate(row)
            ),
            class_=kind,
        )

    body = [cells("td", row, number == marked and "marked") for number, row in enumerate(rows)]
    head = element("thead", cells("th", heads))
    return element("div", element("table", head, element("tbody", *body)), class_="scroll")


def visible(text: str) -> str:
    """The text with pictures for control characters; line ends and tabs stay."""
    return text.replace("\r\n", "\n").translate(_PICTURES)


def percent(share: float) -> str:
    """Such as "12.3 %"."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def decimal(value: float, digits: int) -> str:
    """A number of fixed precision, or a dash for what is not a number."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def plain(text: str) -> str:
    """The text with a picture for all that a terminal would obey, line ends and tabs too."""
    return visible(text.translate(_TURNING)).translate(_ENDS)


def one_line(text: str) -> str:
    """The same for prose, whose line ends and repeated white space mean no more than a space."""
    return plain(" ".join(text.translate(_TURNING).split()))


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(_columns(character) for character in text)


def fitted(text: str, width: int) -> str:
    """Exactly `width` columns of a terminal: cut with an ellipsis, or filled with spaces."""
    if columns(text) > width:
        room, end = width - 1, 0
        for end, character in enumerate(text):  # noqa: B007
            room -= _columns(character)
            if room < 0:
                break
        text = text[:end] + "…"
    return text + " " * (width - columns(text))


def bar(part: float, width: int) -> str:
    """A bar of block characters; `part` is between 0 and 1, and what is not a number is empty."""
    eighths = round(8 * width * min(max(part, 0.0), 1.0)) if math.isfinite(part) else 0
    drawn = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return drawn + " " * (width - len(drawn))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
