"""Which files a command reads: the options that say so, and the documents in them."""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from colbert_rag.cli.options import UsageError
from colbert_rag.cli.output import note
from colbert_rag.cli.reading import (
    READERS,
    SPLITS,
    STDIN,
    ReadingOptions,
    SourceDocument,
    read_documents,
)

FORMS = """\
  .jsonl .ndjson   one JSON object on each line (or one JSON string)
  .json            the same, or one list of such objects
  .csv .tsv        rows under a line that names the columns
  .txt             a document is a paragraph, between blank lines
  .md .markdown    a document is a section, with its headings as title"""
"""What can be read, for the help of a command that reads."""


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare which files are read, and how."""
    parser.add_argument("files", metavar="FILE", nargs="*", default=[], help="files, folders, or -")
    group = parser.add_argument_group("reading")
    group.add_argument("--format", choices=tuple(READERS), help="instead of going by the suffix")
    group.add_argument("--split", choices=SPLITS, help="what is one document in text and Markdown")
    group.add_argument(
        "--field", metavar="NAME", help="where records have their text (default: text, content...)"
    )
    group.add_argument(
        "--id-field",
        metavar="NAME",
        help="where they have an id (default: id, _id...); '' for none",
    )
    group.add_argument(
        "--title-field",
        metavar="NAME",
        help="where they have a title (default: title); '' for none",
    )
    group.add_argument(
        "--follow-links", action="store_true", help="read links that lead out of a folder, too"
    )


def places(arguments: argparse.Namespace) -> str:
    """What is read, for a message."""
    return ", ".join("standard input" if name == STDIN else name for name in _paths(arguments))


def _paths(arguments: argparse.Namespace) -> list[str]:
    return arguments.files or [STDIN]


def read(arguments: argparse.Namespace, *, pass_over: bool = False) -> Iterator[SourceDocument]:
    """The documents of the files that are named, or of standard input where none is.

    Args:
        arguments: As parsed.
        pass_over: Leave out files of a folder that cannot be read, with a note.

    Raises:
        FileNotFoundError: a file does not exist; before anything is read.
        UsageError: there is nothing to read from.
    """
    paths = _paths(arguments)
    if STDIN in paths and sys.stdin is None:
        raise UsageError("there is no standard input here: name a FILE")
    hint = "" if arguments.files else _hint_at_query(getattr(arguments, "query", ""))
    if not arguments.files and sys.stdin.isatty():
        raise UsageError(f"no FILE is named, and nothing is piped in{hint}")
    if hint:
        note(f"note: standard input is read{hint}")
    options = ReadingOptions(
        format=arguments.format,
        split=arguments.split,
        text_field=arguments.field,
        id_field=arguments.id_field,
        title_field=arguments.title_field,
        follow_links=arguments.follow_links,
        pass_over=pass_over,
        skipped=lambda reason: note(f"note: {reason}"),
    )
    stdin: BinaryIO = sys.stdin.buffer if STDIN in paths else io.BytesIO()
    try:
        return read_documents(paths, options, stdin=stdin)
    except FileNotFoundError as error:
        raise _perhaps_query(error, arguments) from error


def _perhaps_query(error: FileNotFoundError, arguments: argparse.Namespace) -> FileNotFoundError:
    """The same error, with a hint where a query without quotes became the names of files."""
    words = list(takewhile(_is_word, arguments.files))
    if not words or not getattr(arguments, "query", ""):
        return error
    query = shlex.quote(" ".join([arguments.query, *words]))
    stop = "" if str(error.strerror).endswith("?") else "."
    hint = f"{error.strerror}{stop} If it is a word of the query, quote that: {query}"
    return FileNotFoundError(error.errno, hint, error.filename)


def _is_word(name: str) -> bool:
    return not set(name) & set("./\\") and not Path(name).exists()


def _hint_at_query(query: str) -> str:
    try:
        return f"; QUERY is {query!r}, which is a file" if Path(query).is_file() else ""
    except OSError:  # a query may be too long for the name of a file
        return ""


def hint_at_lines(documents: Sequence[SourceDocument]) -> None:
    """One paragraph of many lines is often a list that was meant line by line."""
    if len(documents) == 1 and "\n" in documents[0].text and not documents[0].title:
        note(
            f"note: {documents[0].source} is one document, since it holds no blank line; "
            "--split lines makes one of each line"
        )
