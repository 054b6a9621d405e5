"""`colbert-rag explain`: which words made the score of a document."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, cast

from colbert_rag.cli.destination import check_page, spoken, write_page
from colbert_rag.cli.options import (
    WHOLE,
    UsageError,
    add_long_documents,
    add_model,
    add_recipe,
    checked_query,
    parse_positive,
)
from colbert_rag.cli.output import note, say, say_json, width, write
from colbert_rag.cli.rerank import best_documents, read_batches
from colbert_rag.cli.servers import ModelThere, chosen_model
from colbert_rag.cli.sources import FORMS, add_reading
from colbert_rag.cli.web_page import web_page
from colbert_rag.display import Html, element, one_line

if TYPE_CHECKING:
    from colbert_rag.explanation import Explanation

DESCRIPTION = f"""\
Say why a document answers a query: which of its words each word of the query
matched, how well, and what that adds to the score. It is the best document of
the files, or the one at --rank.

A FILE is one of these, told by its suffix, else by its first line:
{FORMS}
A folder is read with its sub-folders. Without FILE, or for -, standard input
is read. The model may be behind colbert-rag serve, as for colbert-rag rerank."""

EPILOG = """\
examples:
  colbert-rag explain "how do refunds work" handbook/
  colbert-rag explain "red planet" facts.jsonl --rank 2
  colbert-rag explain "red planet" facts.jsonl --html why.html
  colbert-rag explain "red planet" facts.jsonl -m http://127.0.0.1:8000
  echo "We ship to Europe." | colbert-rag explain "delivery" --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] QUERY [FILE ...]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--rank", type=parse_positive, default=1, metavar="N", help="explain the N-th best (1)"
    )
    add_long_documents(results)
    form = results.add_mutually_exclusive_group()
    form.add_argument(
        "--html", metavar="FILE", help="write a web page instead (- for standard output)"
    )
    form.add_argument("--json", action="store_true", help="write one JSON object instead")
    add_reading(parser)
    add_model(parser)
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rank, and explain one result."""
    query = checked_query(arguments.query)
    rank = arguments.rank
    if arguments.html is not None:
        check_page("--html", arguments.html)
    model = chosen_model(arguments)
    if arguments.html and isinstance(model, ModelThere):
        raise UsageError(
            f"--html is for a model that is opened here: the page at {model.name} explains results"
        )
    batches = read_batches(arguments)
    with model.opened(WHOLE) as colbert:
        found, seen = best_documents(colbert, query, batches, top_k=rank)
    if len(found) < rank:
        raise UsageError(f"--rank is {rank}, and there are only {seen:,} documents")
    result = found[-1]
    explanation = colbert.explain(query, result.document.content)
    heading = one_line(f"{result.name}, number {rank} of {seen:,}")
    if arguments.json:
        say_json({"rank": rank, **result.document.origin(), **explanation.to_dict()})
    elif isinstance(model, ModelThere):
        for line in (heading, *repr(explanation).splitlines()):
            say(line)
    elif arguments.html:
        write_page(arguments.html, page(heading, cast("Explanation", explanation)))
        note(f"{spoken(arguments.html)} explains {heading}")
    else:
        here = cast("Explanation", explanation)
        text = here.to_text(width=width(), document=True, styled=_styled())
        # Not `say`, which would show the codes of colours instead of obeying them.
        write(f"{heading}\n{text}\n")
    return 0


def page(heading: str, explanation: Explanation) -> str:
    """A web page that needs nothing else."""
    title = f"{explanation.query} - {heading}"
    return web_page(title, element("h1", heading), Html(f"\n{explanation.to_html()}"))


def _styled() -> bool:
    """Whether colours help: a terminal shows them, and nobody asked for none (no-color.org)."""
    shows = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    # The old console of Windows would print the codes.
    capable = os.name != "nt" or "WT_SESSION" in os.environ
    return shows and capable and not os.environ.get("NO_COLOR")
