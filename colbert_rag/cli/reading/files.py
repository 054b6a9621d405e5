"""Files, folders and standard input, and which format each is in."""

from __future__ import annotations

import csv
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from colbert_rag.cli.nearby import no_such
from colbert_rag.cli.reading.document import Reader, ReadingOptions, SourceDocument
from colbert_rag.cli.reading.folder import files_in
from colbert_rag.cli.reading.prose import read_markdown, read_text
from colbert_rag.cli.reading.records import (
    TEXT_FIELDS,
    delimiter_of,
    find_field,
    first_line,
    read_csv,
    read_json,
    read_jsonl,
)
from colbert_rag.decoding import decoded
from colbert_rag.errors import ReadingError

STDIN = "-"
"""The path that stands for standard input."""

SUFFIXES: dict[str, str | None] = {
    ".csv": "csv",
    ".json": None,  # one list, or JSON Lines by another name
    ".jsonl": "jsonl",
    ".markdown": "markdown",
    ".md": "markdown",
    ".ndjson": "jsonl",
    ".tsv": "csv",
    ".txt": "text",
}
"""What is read in a folder, and as which format; None is told from the first line. A file that is
named itself may end in anything: its format is then told so, too."""

READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "text": read_text,
    "markdown": read_markdown,
}
"""To add a format, add its reader here and its suffixes to `SUFFIXES`."""


LONGEST_HEADER = 10_000
"""Characters of a first line that may name the columns of a CSV file."""

LARGEST = 64 * 2**20
"""Bytes of one document, or of a JSON list: more is a stream without an end."""

LINE = 64
"""Bytes that a line takes at least, in Python: so a document has a million lines at most."""


def read_documents(
    paths: Sequence[str], options: ReadingOptions, *, stdin: BinaryIO
) -> Iterator[SourceDocument]:
    """The documents of files, folders and standard input, in the order given.

    A folder is read with all its sub-folders in alphabetical order: its regular files, but not
    hidden ones, nor, unless `options.follow_links`, links that lead out of it, nor, with
    `options.pass_over`, those that cannot be read to their end. A file that grows is read as far
    as it went when it was opened.

    Args:
        paths: Names of files and folders; `STDIN` for standard input.
        options: How to read them.
        stdin: Standard input, as bytes.

    Raises:
        FileNotFoundError: a path does not exist; before anything is read.
        ReadingError: a file is not what its format says, while it is read.
        OSError: a file cannot be read.
    """
    for path in paths:
        if path != STDIN and not Path(path).exists():
            raise no_such(path, folders=True)
    return _documents(paths, options, stdin)


def _documents(
    paths: Sequence[str], options: ReadingOptions, stdin: BinaryIO
) -> Iterator[SourceDocument]:
    for path in paths:
        if path == STDIN:
            yield from _read("stdin", stdin, "", options)
            continue
        empty = True
        spared = options.pass_over and Path(path).is_dir()
        for file in _files(Path(path), options):
            empty = False
            if not (spared and _is_flawed(file, options)):
                yield from _read_file(file, options)
        if empty:
            raise ReadingError(
                f"{path} holds nothing to read: expected files that end in {', '.join(SUFFIXES)}"
            )


def _files(path: Path, options: ReadingOptions) -> Iterator[Path]:
    return files_in(path, SUFFIXES, options) if path.is_dir() else iter([path])


def _read_file(file: Path, options: ReadingOptions) -> Iterator[SourceDocument]:
    with file.open("rb") as stream:
        yield from _read(str(file), stream, file.suffix.lower(), options)


def _is_flawed(file: Path, options: ReadingOptions) -> bool:
    """Whether a file of a folder cannot be read to its end; says why."""
    try:
        for _ in _read_file(file, options):
            pass
    except ReadingError as error:
        options.skipped(f"left out, {error}")
        return True
    except OSError as error:
        options.skipped(f"left out, {file}: {error.strerror or error}")
        return True
    return False


def _read(
    source: str, stream: BinaryIO, suffix: str, options: ReadingOptions
) -> Iterator[SourceDocument]:
    given = _Lines(source, stream)
    lines: Iterator[str] = given
    form = options.format or SUFFIXES.get(suffix)
    if form is None:
        form, lines = _guess(lines, suffix, options)
    for document in READERS[form](source, lines, options):
        try:
            document.content.encode()
        except UnicodeEncodeError as error:
            raise ReadingError(
                f"{document.location}: the text holds a lone surrogate, which is not valid Unicode"
            ) from error
        yield document
        given.held = 0


class _Lines:
    """The lines of a file, decoded one by one so that an error can name its line.

    Attributes:
        held: Bytes that were read since the last document: it is what a reader holds.
    """

    def __init__(self, source: str, stream: BinaryIO) -> None:
        self.held = 0
        self._source = source
        self._stream = stream
        self._number = 0
        # The results of a run may be written to a file that it reads.
        self._left = _size(stream) or sys.maxsize

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(min(LARGEST + 1 - self.held, self._left))
        if not line:
            raise StopIteration
        self._number += 1
        self._left -= len(line)
        self.held += max(len(line), LINE)
        if self.held > LARGEST:
            raise ReadingError(
                f"{self._source}:{self._number}: one document, or one list of them, goes on beyond "
                f"{LARGEST >> 20} MiB or {LARGEST // LINE:,} lines. Expected blank lines between "
                "paragraphs, or one record on each line"
            )
        return decoded(line, self._source, self._number)


def _size(stream: BinaryIO) -> int:
    """The bytes of a regular file; 0 where nobody knows, as for a pipe or standard input."""
    try:
        found = os.fstat(stream.fileno())
    except OSError:  # not a file at all
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _guess(lines: Iterator[str], suffix: str, options: ReadingOptions) -> tuple[str, Iterator[str]]:
    """The format of what no suffix describes, by its first line that is not blank."""
    first, lines = first_line(lines)
    if suffix == ".json":  # never prose: a list may be empty, or hold what is no document
        # A brace alone begins an object that goes over several lines, which is told so as a whole.
        return "json" if first.startswith("[") or first == "{" else "jsonl", lines
    if first.startswith("{"):
        return "jsonl", lines
    if first == "[" or first.startswith(("[{", '["')):
        return "json", lines
    # Cut, because a file without line ends may be all one line, and csv limits a cell's length.
    columns = next(csv.reader([first[:LONGEST_HEADER]], delimiter=delimiter_of(first)), [])
    named = options.text_field in columns or find_field(columns, TEXT_FIELDS) is not None
    return "csv" if named and len(columns) > 1 else "text", lines
