"""`colbert-rag tune`: makes an index quick to search, and measures what that costs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colbert_rag.cli.indexes import add_server, known_info, where
from colbert_rag.cli.options import (
    UsageError,
    add_finding,
    add_model,
    open_model,
    parse_input,
    parse_number,
    parse_positive,
    settings_of,
)
from colbert_rag.cli.output import say, say_json, shows_progress

if TYPE_CHECKING:
    from colbert_rag.index.base import Index
    from colbert_rag.index.recall import Recall

DESCRIPTION = """\
Make the level of a file, or the codes of a collection in Qdrant, by which large
ones are searched without reading all of it, or bring them up to date. Then
compare what such searches find with exact ones, for every effort, and record
the smallest effort that finds enough: searches use it from then on.

Without queries of your own, pieces of stored passages are searched for, which
are a little easier to find, and no model is loaded."""

EPILOG = """\
examples:
  colbert-rag tune handbook.sqlite
  colbert-rag tune handbook.sqlite --queries questions.tsv --recall 0.98
  colbert-rag tune handbook.sqlite --json | jq .chosen"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] INDEX"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "index", metavar="INDEX", help="file of an index, or URL of a Qdrant server"
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--k", type=parse_positive, default=10, metavar="N", help="how many of the best count (10)"
    )
    measuring.add_argument(
        "--recall",
        type=parse_number,
        default=0.99,
        metavar="PART",
        help="part of the exact best that is to be found, 0 to 1 (0.99)",
    )
    measuring.add_argument(
        "--queries",
        metavar="FILE",
        type=parse_input,
        help="JSON Lines, or lines of an id, a tab and a text",
    )
    measuring.add_argument(
        "--sample", type=parse_positive, default=100, metavar="N", help="how many to ask (100)"
    )
    measuring.add_argument("--json", action="store_true", help="one JSON object")
    add_model(parser, default=None, help="where the model of the index is, if it has moved")
    add_server(parser)
    add_finding(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tune, and print what was measured."""
    if not 0 <= arguments.recall <= 1:
        raise UsageError(f"--recall is {arguments.recall}, expected a part from 0 to 1")
    place = where(arguments, arguments.index)
    info = known_info(place)
    queries: Sequence[str] | None = None
    colbert = None
    if arguments.queries is not None:
        from colbert_rag.evaluation.files import read_queries

        queries = list(read_queries(arguments.queries).values())
        colbert = open_model(replace(settings_of(arguments, info), document_cache=None))
    with place.open(colbert) as index:
        if index.count() == 0:
            raise UsageError(f"{place.name} holds no document, so there is nothing to measure")
        if index.stats().tokens == 0:
            raise UsageError(f"no text of {place.name} has words, so there is nothing to measure")
        index.optimize(show_progress=shows_progress())
        measured = _measured(index, queries, arguments)
    if arguments.json:
        say_json(measured.to_dict())
    else:
        for line in str(measured).splitlines():
            say(line)
    return 0


def _measured(index: Index, queries: Sequence[str] | None, arguments: argparse.Namespace) -> Recall:
    try:
        return index.recall(queries, arguments.k, sample=arguments.sample, wanted=arguments.recall)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise UsageError(str(error)) from error
