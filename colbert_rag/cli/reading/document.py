"""What is read from a file, and what a caller may decide about reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document, and where it was read.

    Attributes:
        source: The file, as the caller named it; "stdin" for standard input.
        line: The line it starts on, counted from 1.
        text: The text.
        title: What it is called: a field of the record, or a Markdown section's headings.
        id: The record's id, or None.
        metadata: All other fields of the record.
    """

    source: str
    line: int
    text: str
    title: str = ""
    id: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """Title and text with a space between, as the BEIR benchmarks join them."""
        return f"{self.title} {self.text}" if self.title else self.text

    @property
    def location(self) -> str:
        """File and line."""
        return f"{self.source}:{self.line}"

    def origin(self) -> dict[str, object]:
        """Where it was read and what it is called, for JSON."""
        return {
            "source": self.source,
            "line": self.line,
            "id": self.id,
            "title": self.title or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingOptions:
    """What a caller decides about reading; the defaults suit most files.

    Attributes:
        format: The format of every file; None goes by suffix, else by the first line.
        split: What is one document in text and Markdown; None means paragraphs of plain text and
            sections of Markdown.
        text_field: Field of a record that is its text; None takes the first of the usual names.
        id_field: Field that is its id; None takes a usual name, if there is one.
        title_field: Field that is its title; None takes "title", if there is one, and "" none.
        follow_links: Read what links in a folder lead to, also outside of it.
        pass_over: Leave out what is not what its name says among the files of a folder; such a file
            is then read twice, the first time to see whether it can be.
        skipped: Told of each file in a folder that is left out.
    """

    format: str | None = None
    split: str | None = None
    text_field: str | None = None
    id_field: str | None = None
    title_field: str | None = None
    follow_links: bool = False
    pass_over: bool = False
    skipped: Callable[[str], object] = str


Reader = Callable[[str, Iterator[str], ReadingOptions], Iterator[SourceDocument]]
"""Reads one format: the name of the file, its lines and the options -> its documents."""
