"""`colbert-rag rerank`: order the documents in files by how well they answer a query."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from colbert_rag.cli.options import (
    FORMS,
    add_long_documents,
    add_model,
    add_reading,
    add_recipe,
    add_score,
    checked_query,
    count_argument,
    counted_truncation,
    hint_at_lines,
    open_model,
    read,
    settings_of,
)
from colbert_rag.cli.output import Row, note, say, say_json, say_table, shows_progress
from colbert_rag.cli.reading import SourceDocument

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT

BATCH_DOCUMENTS = 2048
"""Documents held and scored at a time: under 500 MB of vectors, and long enough to sort by length
without much padding."""

DESCRIPTION = f"""\
Order the documents in files by how well they answer a query, by late
interaction: each token of the query looks for its best match among the tokens
of a document.

A FILE is one of these, told by its suffix, else by its first line:
{FORMS}
A folder is read with its sub-folders. Without FILE, or for -, standard input
is read. A title is ranked in front of its text."""

EPILOG = """\
examples:
  colbert-rag rerank "how do refunds work" handbook/ faq.md
  colbert-rag rerank "red planet" facts.jsonl --top-k 3 --json | jq .text
  colbert-rag rerank "red planet" facts.csv --field body -m offline-minilm
  grep -ri refund notes | colbert-rag rerank "are refunds taxed" --split lines"""


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document with its score, and its number in the order of reading.

    `window` is the part of its content that has this score, or None where all of it was read.
    """

    score: float
    index: int
    document: SourceDocument
    window: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Where it was read, and its id."""
        named = "" if self.document.id is None else f" ({self.document.id})"
        return f"{self.document.place}{named}"

    @property
    def span(self) -> tuple[int, int] | None:
        """Start and end, in characters of its text, of the part that has this score."""
        if self.window is None:
            return None
        # The title that a text is ranked with is no part of the text.
        before = len(self.document.content) - len(self.document.text)
        start, stop = (max(position - before, 0) for position in self.window)
        return start, stop

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
        "-k",
        "--top-k",
        type=count_argument,
        default=10,
        metavar="N",
        help="how many; 0 for all (10)",
    )
    add_score(results)
    results.add_argument(
        "--min-score",
        type=float,
        default=-math.inf,
        metavar="X",
        help="leave out what scores below",
    )
    results.add_argument("--json", action="store_true", help="one JSON object a line, whole texts")
    add_long_documents(results)
    add_reading(parser)
    add_model(parser)
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rerank, and print the best."""
    query = checked_query(arguments.query)
    settings = settings_of(arguments)
    batches = read_batches(arguments)
    if batches is None:
        return 0
    # A document is scored once in a run, so there is nothing to remember.
    colbert = open_model(replace(settings, document_cache=None))
    start = time.perf_counter()
    with counted_truncation(colbert):
        places, seen = best_documents(
            colbert,
            query,
            batches,
            top_k=arguments.top_k,
            mean=arguments.score == "mean",
            least=arguments.min_score,
        )
    if arguments.json:
        _say_records(places)
    else:
        seconds = time.perf_counter() - start
        say(f"{len(places)} of {seen:,} documents by {settings.checkpoint} in {seconds:.1f} s")
        say_table(
            Row(place.score, place.name, place.document.title, _shown(place)) for place in places
        )
    return 0


def read_batches(arguments: argparse.Namespace) -> Iterator[list[SourceDocument]] | None:
    """The documents, as many at a time as are scored together; None where there are none.

    The first are read now, before any model is loaded: a wrong file name shows at once.
    """
    batches = _batches(read(arguments))
    first = next(batches, None)
    if first is None:
        note("no documents found")
        return None
    hint_at_lines(first)
    return chain([first], batches)


def best_documents(
    colbert: ColBERT,
    query: str,
    batches: Iterable[Sequence[SourceDocument]],
    *,
    top_k: int,
    mean: bool = False,
    least: float = -math.inf,
) -> tuple[list[RankedDocument], int]:
    """The best documents, best first, and how many there were in all.

    Args:
        colbert: What scores them.
        query: The query.
        batches: The documents, held one batch at a time.
        top_k: How many to keep; 0 for all.
        mean: Whether scores are means instead of sums.
        least: Leave out what scores below.
    """
    places: list[RankedDocument] = []
    seen = 0
    for batch in batches:
        scored = _scored(colbert, query, batch, seen, mean=mean)
        # "Not below" keeps a score that is not a number, which must not vanish unseen.
        kept = [at for at in scored if not at.score < least]
        places = sorted([*places, *kept], key=lambda at: at.order)[: top_k or None]
        seen += len(batch)
    return places, seen


def _batches(documents: Iterator[SourceDocument]) -> Iterator[list[SourceDocument]]:
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        yield batch


def _scored(
    colbert: ColBERT, query: str, batch: Sequence[SourceDocument], start: int, *, mean: bool
) -> list[RankedDocument]:
    ranking = colbert.rank(
        query, [document.content for document in batch], show_progress=shows_progress()
    )
    return [
        RankedDocument(
            place.mean if mean else place.score, start + place.index, batch[place.index], place.span
        )
        for place in ranking
    ]


def _shown(place: RankedDocument) -> str:
    """What a table shows the beginning of: the text, or the window that was best."""
    start, stop = place.span or (0, None)
    return f"{'... ' if start else ''}{place.document.text[start:stop]}"


def _say_records(places: Iterable[RankedDocument]) -> None:
    for rank, place in enumerate(places, start=1):
        document = place.document
        record: dict[str, object] = {
            "rank": rank,
            "score": place.score,
            "index": place.index,
            "source": document.source,
            "line": document.line,
            "id": document.id,
            "title": document.title or None,
            "text": document.text,
            "span": place.span,
            "metadata": document.metadata,
        }
        say_json(record)
