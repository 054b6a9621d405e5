"""`colbert-rag rerank`: order the documents in files by how well they answer a query."""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO

from colbert_rag.cli.options import UsageError, add_model, add_recipe, open_model, settings_of
from colbert_rag.cli.output import note, say, say_json, shortened, shows_progress, width
from colbert_rag.display import one_line
from colbert_rag.reading import (
    FORMATS,
    SPLITS,
    STDIN,
    ReadingOptions,
    SourceDocument,
    read_documents,
)

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT

WINDOW_DOCUMENTS = 2048
"""Documents held and scored at a time: under 500 MB of vectors, and long enough to sort by length
without much padding."""

SHOWN_LINES = 3
"""Lines of a document's text in the table."""

SHORTEST_TITLE = 12
"""Columns below which a title is left out of the table."""

DESCRIPTION = """\
Order the documents in files by how well they answer a query, by late
interaction: each token of the query looks for its best match among the tokens
of a document.

A FILE is one of these, told by its suffix, else by its first line:
  .jsonl .ndjson   one JSON object on each line (or one JSON string)
  .csv .tsv        rows under a line that names the columns
  .txt             a document is a paragraph, parted by blank lines
  .md .markdown    a document is a section, with its headings as title
A folder is read with its sub-folders. Without FILE, or for -, standard input
is read. A title is ranked in front of its text."""

EPILOG = """\
examples:
  colbert-rag rerank "how do refunds work" handbook/ faq.md
  colbert-rag rerank "red planet" facts.jsonl --top-k 3 --json | jq .text
  colbert-rag rerank "red planet" facts.csv --field body -m offline-minilm
  grep -ri refund notes | colbert-rag rerank "are refunds taxed" --split lines"""


@dataclass(frozen=True, slots=True)
class _Place:
    """A document with its score, and its number in the order of reading."""

    score: float
    index: int
    document: SourceDocument

    @property
    def order(self) -> tuple[bool, float, int]:
        """Best first, equal scores as they were read, what is not a number last."""
        return math.isnan(self.score), -self.score, self.index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] QUERY [FILE ...]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    parser.add_argument("files", metavar="FILE", nargs="*", default=[], help="files, folders, or -")
    results = parser.add_argument_group("results")
    results.add_argument(
        "-k", "--top-k", type=_count, default=10, metavar="N", help="how many; 0 for all (10)"
    )
    results.add_argument(
        "--score",
        choices=("mean", "sum"),
        default="mean",
        help="mean similarity of the query's tokens, -1 to 1, or ColBERT's sum (default: mean)",
    )
    results.add_argument(
        "--min-score",
        type=float,
        default=-math.inf,
        metavar="X",
        help="leave out what scores below",
    )
    results.add_argument("--json", action="store_true", help="one JSON object a line, whole texts")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--format", choices=tuple(FORMATS), help="instead of going by the suffix")
    reading.add_argument(
        "--split", choices=SPLITS, help="what is one document in text and Markdown"
    )
    reading.add_argument(
        "--field", metavar="NAME", help="where records have their text (default: text, content...)"
    )
    reading.add_argument(
        "--id-field", metavar="NAME", help="where they have an id (default: id, _id...)"
    )
    reading.add_argument(
        "--title-field",
        metavar="NAME",
        help="where they have a title (default: title); '' for none",
    )
    add_model(parser)
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rerank, and print the best."""
    query = _checked_query(arguments.query)
    settings = settings_of(arguments)
    windows = _windows(_documents(arguments))
    # The first documents are read before the model is loaded: a wrong file name shows at once.
    first = next(windows, None)
    if first is None:
        note("no documents found")
        return 0
    _hint_at_lines(first)
    # A document is scored once in a run, so there is nothing to remember.
    model = open_model(replace(settings, document_cache=None))
    start = time.perf_counter()
    places: list[_Place] = []
    seen = 0
    for window in chain([first], windows):
        scored = _scored(model, query, window, seen, mean=arguments.score == "mean")
        # "Not below" keeps a score that is not a number, which must not vanish unseen.
        kept = [at for at in scored if not at.score < arguments.min_score]
        places = sorted([*places, *kept], key=lambda at: at.order)[: arguments.top_k or None]
        seen += len(window)
    if arguments.json:
        _say_records(places)
    else:
        seconds = time.perf_counter() - start
        say(f"{len(places)} of {seen:,} documents by {settings.checkpoint} in {seconds:.1f} s")
        _say_table(places)
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def _checked_query(query: str) -> str:
    if not query.strip():
        raise UsageError("QUERY is empty, expected some text to look for")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise UsageError("QUERY is not valid in the terminal's encoding") from error
    return query


def _documents(arguments: argparse.Namespace) -> Iterator[SourceDocument]:
    paths = arguments.files or [STDIN]
    if STDIN in paths and sys.stdin is None:
        raise UsageError("there is no standard input here: name a FILE")
    if not arguments.files and sys.stdin.isatty():
        raise UsageError("no FILE is named, and nothing is piped in")
    options = ReadingOptions(
        format=arguments.format,
        split=arguments.split,
        text_field=arguments.field,
        id_field=arguments.id_field,
        title_field=arguments.title_field,
    )
    stdin: BinaryIO = sys.stdin.buffer if STDIN in paths else io.BytesIO()
    return read_documents(paths, options, stdin=stdin)


def _windows(documents: Iterator[SourceDocument]) -> Iterator[list[SourceDocument]]:
    while window := list(islice(documents, WINDOW_DOCUMENTS)):
        yield window


def _hint_at_lines(documents: Sequence[SourceDocument]) -> None:
    """One paragraph of many lines is often a list that was meant line by line."""
    if len(documents) == 1 and "\n" in documents[0].text and not documents[0].title:
        note(
            f"note: {documents[0].source} is one document, since no blank line parts it; "
            "--split lines makes one of each line"
        )


def _scored(
    model: ColBERT, query: str, window: Sequence[SourceDocument], start: int, *, mean: bool
) -> list[_Place]:
    ranking = model.rank(
        query, [document.content for document in window], show_progress=shows_progress()
    )
    rows = ranking.query_rows if mean else 1
    return [_Place(at.score / rows, start + at.index, window[at.index]) for at in ranking]


def _say_records(places: Iterable[_Place]) -> None:
    for rank, place in enumerate(places, start=1):
        document = place.document
        record: dict[str, object] = {
            "rank": rank,
            # JSON knows no NaN.
            "score": None if math.isnan(place.score) else place.score,
            "index": place.index,
            "source": document.source,
            "line": document.line,
            "id": document.id,
            "title": document.title or None,
            "text": document.text,
            "metadata": document.metadata,
        }
        say_json(record)


def _say_table(places: Sequence[_Place]) -> None:
    indent = " " * 15
    for rank, place in enumerate(places, start=1):
        document = place.document
        named = "" if document.id is None else f" ({document.id})"
        # A long path stays whole, so that it can be copied; a title gives way to it.
        heading = one_line(f"{document.place}{named}")
        room = width() - len(indent) - len(heading) - 2
        if document.title and room >= SHORTEST_TITLE:
            heading += f": {shortened(document.title, room)[0]}"
        say()
        say(f"{rank:>4}  {place.score:>7.4f}  {heading}")
        for line in shortened(document.text, width() - len(indent), lines=SHOWN_LINES):
            say(f"{indent}{line}")
