"""Prose: plain text by paragraphs, Markdown by sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice

from colbert_rag.cli.reading.document import ReadingOptions, SourceDocument

Lines = Iterator[tuple[int, str]]

SPLITS = ("paragraphs", "lines", "file")

FRONT_MATTER_LINES = 200
"""A Markdown file's opening `---` starts front matter only if another one follows this soon."""

HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
NOT_A_HEADING = re.compile(r"\s|[-*+>|#]|\d+[.)]\s")
"""How a line begins that may stand above a rule of dashes without being a heading."""


def read_text(
    source: str, lines: Iterator[str], options: ReadingOptions
) -> Iterator[SourceDocument]:
    """Paragraphs between blank lines, or single lines, or the whole file."""
    for number, text in _cut(enumerate(lines, start=1), options.split or "paragraphs"):
        yield SourceDocument(source, number, text)


def read_markdown(
    source: str, lines: Iterator[str], options: ReadingOptions
) -> Iterator[SourceDocument]:
    """Sections, whose title is the headings they stand under; or parts as of plain text.

    Paragraphs keep that title. A section without a text of its own is left out.
    """
    numbered = _without_front_matter(enumerate(lines, start=1))
    if options.split in ("lines", "file"):
        for number, text in _cut(numbered, options.split):
            yield SourceDocument(source, number, text)
        return
    for title, body in _sections(numbered):
        for number, text in _cut(iter(body), options.split or "file"):
            yield SourceDocument(source, number, text, title)


def _cut(lines: Lines, split: str) -> Lines:
    """Cut numbered lines into documents, each with the number of its first line."""
    block: list[str] = []
    start = 0
    for number, line in lines:
        blank = not line.strip()
        if block and (split == "lines" or (blank and split == "paragraphs")):
            yield start, _joined(block)
            block = []
        if blank and not block:
            continue
        if not block:
            start = number
        block.append(line.rstrip("\r\n"))
    if block:
        yield start, _joined(block)


def _joined(block: list[str]) -> str:
    return "\n".join(block).strip()


def _without_front_matter(lines: Lines) -> Lines:
    head = list(islice(lines, 1))
    if head and head[0][1].rstrip() == "---":
        for line in islice(lines, FRONT_MATTER_LINES):
            head.append(line)
            if line[1].rstrip() in ("---", "..."):
                return lines
    return chain(head, lines)


def _sections(lines: Lines) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Each section of Markdown: its headings from the top down, and its own lines."""
    headings: list[tuple[int, str]] = []
    body: list[tuple[int, str]] = []
    fence = ""
    for number, line in lines:
        mark = FENCE.fullmatch(line.rstrip("\r\n"))
        heading = None
        if fence:
            closes = mark is not None and mark[1].startswith(fence) and not mark[2].strip()
            fence = "" if closes else fence
        elif mark is not None:
            fence = mark[1]
        else:
            heading = _heading(line.rstrip("\r\n"), body)
        if heading is None:
            body.append((number, line))
            continue
        yield _path(headings), body
        headings = [*(above for above in headings if above[0] < heading[0]), heading]
        body = []
    yield _path(headings), body


def _path(headings: list[tuple[int, str]]) -> str:
    return " > ".join(text for _, text in headings if text)


def _heading(line: str, body: list[tuple[int, str]]) -> tuple[int, str] | None:
    """Level and text of the heading that a line is, or turns the line before it into."""
    if marked := HEADING.fullmatch(line):
        return len(marked[1]), marked[2] or ""
    above = [text.strip() for _, text in body[-2:]]
    # A lone line of text over a rule; below a whole paragraph, authors mean a rule.
    alone = bool(above and above[-1]) and not (len(above) > 1 and above[0])
    underlined = UNDERLINE.fullmatch(line) if alone else None
    if underlined is None or NOT_A_HEADING.match(body[-1][1]):
        return None
    body.pop()
    return 1 if underlined[1].startswith("=") else 2, above[-1]
