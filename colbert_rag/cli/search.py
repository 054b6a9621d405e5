"""`colbert-rag search`: the documents of an index that answer a query best."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from colbert_rag.cli.indexes import PLACES, add_server, is_index, known_info, where
from colbert_rag.cli.options import (
    UsageError,
    add_finding,
    add_model,
    add_results,
    checked_query,
    counted_truncation,
    open_model,
    settings_of,
)
from colbert_rag.cli.output import Row, say, say_json, say_table
from colbert_rag.cli.reading import LARGEST, STDIN
from colbert_rag.cli.servers import is_served, served
from colbert_rag.decoding import likely_encoding
from colbert_rag.display import one_line
from colbert_rag.errors import InvalidFilterError

if TYPE_CHECKING:
    from colbert_rag.cli.indexes import Where
    from colbert_rag.index import Hit, Index
    from colbert_rag.remote import RemoteIndex

    Opened = tuple[float, str, Index | RemoteIndex]
    """When opening began, the name of the model, and the index."""

DESCRIPTION = """\
Find the documents of an index that answer a query best, by late interaction.
A large file is searched by way of what lies beside it, see colbert-rag tune.
The index says which model it needs; that of colbert-rag serve, named by its
address, has it, and nothing is loaded here. QUERY may be - to read queries from
standard input, one on each line.

A filter is JSON, and leaves documents out before they are scored:
  {"year": 2020}                          equal
  {"year": {"$gte": 2000, "$lt": 2010}}   a range of numbers, or of moments
  {"topic": {"$in": ["law", "tax"]}}      one of several; also $nin, $ne
  {"author.name": "Ada"}                  a key inside a mapping
  {"$or": [{...}, {...}]}                 also $and, $not"""

EPILOG = """\
examples:
  colbert-rag search "how do refunds work" handbook.sqlite
  colbert-rag search "red planet" facts.sqlite --filter '{"year": 2020}'
  colbert-rag search "red planet" http://127.0.0.1:8000
  colbert-rag search "red planet" http://localhost:6333/facts --json | jq .text
  cat questions.txt | colbert-rag search - facts.sqlite --top-k 1 --json"""

EFFORTS = range(1, 6)
"""What `--effort` takes; the index has the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] QUERY INDEX"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("query", metavar="QUERY", help="what to look for, or -")
    parser.add_argument("index", metavar="INDEX", help=PLACES)
    results = parser.add_argument_group("results")
    add_results(results)
    results.add_argument("--filter", metavar="JSON", help="which documents may be found")
    ways = results.add_mutually_exclusive_group()
    ways.add_argument("--exact", action="store_true", help="read all documents, however many")
    ways.add_argument(
        "--effort",
        type=int,
        choices=EFFORTS,
        metavar="N",
        help="how much of a large file to look at, 1 to 5 (default: what tune chose, else 3, "
        "or 4 from 33 million vectors on)",
    )
    add_server(parser)
    add_model(parser, default=None, help="where the model of the index is, if it has moved")
    add_finding(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search, and print the best."""
    _check_order(arguments)
    opening = _place(arguments)
    queries = _queries(arguments.query)
    passing = _filter(arguments.filter)
    with opening as (start, model, index):
        loaded = time.perf_counter()
        how = {"exact": arguments.exact or None, "effort": arguments.effort}
        answers = index.search_many(queries, arguments.top_k or index.count(), passing, **how)
        held = index.count()  # behind a search, a large index need not count
        searched = time.perf_counter()
    mean = arguments.score == "mean"
    if not arguments.json:
        found = max(map(len, answers))
        asked = "" if len(queries) == 1 else f" for each of {len(queries):,} queries"
        say(
            f"{found:,} of {held:,} documents{asked} by {model}: "
            f"loaded in {loaded - start:.1f} s, searched in {searched - loaded:.1f} s"
        )
    for query, hits in zip(queries, answers, strict=True):
        if arguments.json:
            _say_records(query, hits, mean=mean)
            continue
        if len(queries) > 1:
            say()
            say(f"Query: {one_line(query)}")
        say_table(_row(hit, mean=mean) for hit in hits)
    return 0


@contextmanager
def _here(arguments: argparse.Namespace, target: Where) -> Iterator[Opened]:
    """An index that is searched in this process, with the model that made it."""
    settings = settings_of(arguments, known_info(target))
    start = time.perf_counter()
    colbert = open_model(replace(settings, document_cache=None))
    with target.open(colbert, read_only=True) as index, counted_truncation(colbert):
        yield start, settings.checkpoint, index


@contextmanager
def _there(asked: AbstractContextManager[RemoteIndex]) -> Iterator[Opened]:
    """An index behind a server, which has its model."""
    start = time.perf_counter()
    with asked as index:
        yield start, index.info.checkpoint, index


def _place(arguments: argparse.Namespace) -> AbstractContextManager[Opened]:
    """The index that is named; nothing of it is read yet."""
    if is_served(arguments, arguments.index):
        return _there(served(arguments, arguments.index))
    return _here(arguments, where(arguments, arguments.index))


def _check_order(arguments: argparse.Namespace) -> None:
    """Refuse an index given as the query, and a query given as the index."""
    query, index = arguments.query, arguments.index
    if _names_index(query) and not _names_index(index):
        where(arguments, query)  # refuses a URL that holds a password before it is shown
        command = shlex.join(["colbert-rag", "search", index, query])
        raise UsageError(f"{query} is an index, and stands where the query belongs: {command}")


def _names_index(word: str) -> bool:
    try:
        return word.startswith(("http://", "https://")) or is_index(word)
    except (OSError, ValueError):  # such as a query that is too long for the name of a file
        return False


def _queries(named: str) -> list[str]:
    if named != STDIN:
        return [checked_query(named)]
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("QUERY is -, and nothing is piped in")
    given = sys.stdin.buffer.read(LARGEST + 1)
    if len(given) > LARGEST:
        raise UsageError(f"standard input goes on beyond {LARGEST >> 20} MiB, expected queries")
    try:
        lines = given.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 at byte {error.start + 1}. Convert it first, as with: "
            f"iconv -f {likely_encoding(given)} -t UTF-8"
        ) from error
    queries = [line.strip() for line in lines if line.strip()]
    if not queries:
        raise UsageError("QUERY is -, and standard input holds no query")
    return queries


def _filter(text: str | None) -> Mapping[str, object] | None:
    if text is None:
        return None
    from colbert_rag.index.filters import parse_filter

    example = """for example --filter '{"year": {"$gte": 2020}}'"""
    try:
        passing = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--filter is not JSON: {error.msg} at column {error.colno}; {example}"
        ) from error
    except (ValueError, RecursionError) as error:  # too many digits, or nested too deeply
        raise UsageError(f"--filter is not JSON: {error}; {example}") from error
    if not isinstance(passing, dict):
        raise UsageError(f"--filter is no JSON object; {example}")
    try:
        parse_filter(passing)
    except InvalidFilterError as error:
        raise UsageError(f"--filter: {error}") from error
    return passing


def _say_records(query: str, hits: Iterable[Hit], *, mean: bool) -> None:
    for rank, hit in enumerate(hits, start=1):
        record: dict[str, object] = {
            "query": query,
            "rank": rank,
            "score": hit.mean if mean else hit.score,
            "id": hit.id,
            "text": hit.text,
            "metadata": hit.metadata,
        }
        say_json(record)


def _row(hit: Hit, *, mean: bool) -> Row:
    """The hit as `rerank` would show it, had it read the document now."""
    title = hit.metadata.get("title")
    title = title if isinstance(title, str) else ""
    text = hit.text.removeprefix(f"{title} ") if title else hit.text
    return Row(hit.mean if mean else hit.score, _name(hit), title, text)


def _name(hit: Hit) -> str:
    from colbert_rag.index.documents import text_digest

    source, line = hit.metadata.get("source"), hit.metadata.get("line")
    if not isinstance(source, str) or not isinstance(line, int):
        return hit.id
    location = f"{source}:{line}"
    return location if hit.id == text_digest(hit.text).hex() else f"{location} ({hit.id})"
