"""Files, folders and standard input, and which format each is in."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from colbert_rag.cli.reading.document import Reader, ReadingOptions, SourceDocument
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


def read_documents(
    paths: Sequence[str], options: ReadingOptions, *, stdin: BinaryIO
) -> Iterator[SourceDocument]:
    """The documents of files, folders and standard input, in the order given.

    A folder is read with all its sub-folders in alphabetical order: its regular files, but not
    hidden ones, nor, unless `options.follow_links`, links that lead out of it.

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
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", path)
    return _documents(paths, options, stdin)


def _documents(
    paths: Sequence[str], options: ReadingOptions, stdin: BinaryIO
) -> Iterator[SourceDocument]:
    for path in paths:
        if path == STDIN:
            yield from _read("stdin", stdin, "", options)
            continue
        for file in _files_in(Path(path), options) if Path(path).is_dir() else [Path(path)]:
            with file.open("rb") as stream:
                yield from _read(str(file), stream, file.suffix.lower(), options)


def _files_in(folder: Path, options: ReadingOptions) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    inside = folder.resolve()
    empty = True
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(root, name)
            if name.startswith(".") or file.suffix.lower() not in SUFFIXES:
                continue
            # Whoever filled the folder may not be who reads it: a pipe would hang, a device never
            # end, and a link could show what only the reader may see.
            if not file.is_file():
                options.skipped(f"{file} is left out: it is no regular file")
            elif not options.follow_links and not file.resolve().is_relative_to(inside):
                options.skipped(f"{file} is left out: it leads out of {folder}")
            else:
                empty = False
                yield file
    if empty:
        raise ReadingError(
            f"{folder} holds nothing to read: expected files that end in {', '.join(SUFFIXES)}"
        )


def _read(
    source: str, stream: BinaryIO, suffix: str, options: ReadingOptions
) -> Iterator[SourceDocument]:
    lines = _decoded(source, stream)
    form = options.format or SUFFIXES.get(suffix)
    if form is None:
        form, lines = _guess(lines, options)
    for document in READERS[form](source, lines, options):
        try:
            document.content.encode()
        except UnicodeEncodeError as error:
            raise ReadingError(
                f"{document.place}: the text holds a lone surrogate, which is not valid Unicode"
            ) from error
        yield document


def _decoded(source: str, stream: BinaryIO) -> Iterator[str]:
    """The lines of a file, decoded one by one so that an error can name its line."""
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            utf16 = line[:2] in (b"\xff\xfe", b"\xfe\xff")
            raise ReadingError(
                f"{source}:{number}: not UTF-8 at byte {error.start + 1} of the line. Convert it "
                f"first, as with: iconv -f {'UTF-16' if utf16 else 'LATIN1'} -t UTF-8"
            ) from error
        if "\0" in text:
            raise ReadingError(f"{source}:{number}: not a text file: it holds a zero byte")
        yield text


def _guess(lines: Iterator[str], options: ReadingOptions) -> tuple[str, Iterator[str]]:
    """The format of what no suffix describes, by its first line that is not blank."""
    first, lines = first_line(lines)
    if first.startswith("{"):
        return "jsonl", lines
    if first == "[" or first.startswith(("[{", '["')):
        return "json", lines
    # Cut, because a file without line ends may be all one line, and csv limits a cell's length.
    columns = next(csv.reader([first[:LONGEST_HEADER]], delimiter=delimiter_of(first)), [])
    named = options.text_field in columns or find_field(columns, TEXT_FIELDS) is not None
    return "csv" if named and len(columns) > 1 else "text", lines
