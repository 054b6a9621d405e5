"""`colbert-rag rerank`: order the documents in files by how well they answer a query."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from colbert_rag.cli.options import (
    WHOLE,
    add_long_documents,
    add_model,
    add_recipe,
    add_results,
    checked_query,
    parse_number,
)
from colbert_rag.cli.output import Row, say, say_json, say_table, shows_progress
from colbert_rag.cli.reading import SourceDocument
from colbert_rag.cli.servers import chosen_model
from colbert_rag.cli.sources import FORMS, add_reading, hint_at_lines, places, read
from colbert_rag.errors import ReadingError

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT
    from colbert_rag.remote import RemoteColBERT

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
is read. A title is ranked in front of its text.

The model may be behind colbert-rag serve: its address is the model, and nothing
is loaded here. A key is in the environment variable COLBERT_RAG_API_KEY.

For many queries at once: colbert-rag rerank --queries FILE, which has options
of its own (colbert-rag rerank --help --queries)."""

EPILOG = """\
examples:
  colbert-rag rerank "how do refunds work" handbook/ faq.md
  colbert-rag rerank "red planet" facts.jsonl --top-k 3 --json | jq .text
  colbert-rag rerank "red planet" facts.csv --field body -m offline-minilm
  colbert-rag rerank "red planet" facts.jsonl -m http://127.0.0.1:8000
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
        return f"{self.document.location}{named}"

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
    results = parser.add_argument_group("results")
    add_results(results)
    results.add_argument(
        "--min-score",
        type=parse_number,
        default=-math.inf,
        metavar="X",
        help="leave out what scores below",
    )
    add_long_documents(results)
    add_reading(parser)
    add_model(parser)
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rerank, and print the best."""
    query = checked_query(arguments.query)
    # A document is scored once in a run, so there is nothing to remember.
    model = chosen_model(arguments, remember=False)
    batches = read_batches(arguments)
    start = time.perf_counter()
    with model.opened(WHOLE) as colbert:
        loaded = time.perf_counter()
        results, seen = best_documents(
            colbert,
            query,
            batches,
            top_k=arguments.top_k,
            mean=arguments.score == "mean",
            least=arguments.min_score,
        )
    if arguments.json:
        for rank, result in enumerate(results, start=1):
            say_json(_record(rank, result))
    else:
        ranked = time.perf_counter()
        say(
            f"{len(results)} of {seen:,} documents by {model.name}: "
            f"loaded in {loaded - start:.1f} s, ranked in {ranked - loaded:.1f} s"
        )
        say_table(
            Row(result.score, result.name, result.document.title, _opening(result))
            for result in results
        )
    return 0


def read_batches(arguments: argparse.Namespace) -> Iterator[list[SourceDocument]]:
    """The documents, as many at a time as are scored together.

    The first are read now, before any model is loaded: a wrong file name shows at once. A file of a
    folder that cannot be read does not cost the answer: it is left out, with a note.

    Raises:
        ReadingError: there are none.
    """
    batches = _batches(read(arguments, pass_over=True))
    first = next(batches, None)
    if first is None:
        raise ReadingError(f"no documents found in {places(arguments)}, so nothing can be ranked")
    hint_at_lines(first)
    return chain([first], batches)


def best_documents(
    colbert: ColBERT | RemoteColBERT,
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
    results: list[RankedDocument] = []
    seen = 0
    for batch in batches:
        texts = [document.content for document in batch]
        for ranked in colbert.rank(query, texts, show_progress=shows_progress()):
            score = ranked.mean if mean else ranked.score
            # "Not below" keeps a score that is not a number, which must not vanish unseen.
            if not score < least:
                document = batch[ranked.index]
                results.append(RankedDocument(score, seen + ranked.index, document, ranked.span))
        results = sorted(results, key=lambda result: result.order)[: top_k or None]
        seen += len(batch)
    return results, seen


def _batches(documents: Iterator[SourceDocument]) -> Iterator[list[SourceDocument]]:
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        yield batch


def _opening(result: RankedDocument) -> str:
    """What a table shows the beginning of: the text, or the window that was best."""
    start, stop = result.span or (0, None)
    return f"{'... ' if start else ''}{result.document.text[start:stop]}"


def _record(rank: int, result: RankedDocument) -> dict[str, object]:
    return {
        "rank": rank,
        "score": result.score,
        "index": result.index,
        **result.document.origin(),
        "text": result.document.text,
        "span": result.span,
        "metadata": result.document.metadata,
    }
