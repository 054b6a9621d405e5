"""`colbert-rag demo`: what late interaction adds to a keyword search, shown on real text."""

from __future__ import annotations

import argparse
import platform
import textwrap
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import zip_longest
from typing import TYPE_CHECKING

from colbert_rag.cli.options import UsageError, add_model, open_model, settings_of
from colbert_rag.cli.output import say, shortened, shows_progress, width
from colbert_rag.display import one_line
from colbert_rag.errors import MissingExtraError
from colbert_rag.settings import OFFLINE_CHECKPOINT

if TYPE_CHECKING:
    from colbert_rag.cli.docstrings import Comparison, Docstring
    from colbert_rag.colbert import ColBERT

SHOWN = 3
"""Passages shown on each side."""

DESCRIPTION = """\
Rerank real text, offline: the docstrings of this Python's standard library.
A keyword search finds candidates, late interaction puts them into a new order,
and the same loaded model then answers in LangChain and in LlamaIndex."""

EPILOG = """\
examples:
  colbert-rag demo
  colbert-rag demo "run something in the background"
  colbert-rag demo --model answerdotai/answerai-colbert-small-v1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] [QUERY]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("query", metavar="QUERY", nargs="?", help="your own question")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="take only the first N docstrings, to be quick"
    )
    add_model(parser, default=OFFLINE_CHECKPOINT)


def run(arguments: argparse.Namespace) -> int:
    """Show it."""
    query = arguments.query
    if query is not None and not query.strip():
        raise UsageError("QUERY is empty, expected some text to look for")
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit is {arguments.limit}, expected at least 1")
    settings = settings_of(arguments)
    # Opened first: whatever could be missing, such as the extra `offline`, shows at once.
    start = time.perf_counter()
    model = open_model(settings)
    loaded = time.perf_counter() - start

    from colbert_rag.cli.docstrings import QUESTIONS, KeywordSearch, compare, standard_library

    start = time.perf_counter()
    passages = standard_library(limit=arguments.limit, show_progress=shows_progress())
    with closing(KeywordSearch(passages)) as search:
        indexed = time.perf_counter() - start
        _say_paragraph(
            f"{len(passages):,} passages from the documentation inside Python "
            f"{platform.python_version()}, read and indexed in {indexed:.1f} s. Model "
            f"{settings.checkpoint} on {model.device}, imported and loaded in {loaded:.1f} s."
        )
        comparisons = []
        for question in QUESTIONS if query is None else [query]:
            comparison = compare(question, passages, search, model, show_progress=shows_progress())
            _say_comparison(comparison, len(passages))
            comparisons.append(comparison)
    answered = [comparison for comparison in comparisons if comparison.found]
    if answered:
        _say_frameworks(model, answered[-1])
    say()
    _say_hints(settings.checkpoint)
    return 0


def _say_paragraph(text: str) -> None:
    for line in textwrap.wrap(text, width(), break_on_hyphens=False):
        say(line)


def _say_comparison(comparison: Comparison, passages: int) -> None:
    say()
    say("-" * width())
    say(one_line(comparison.query))
    say()
    if not comparison.found:
        say("  No docstring shares a word with it, so there is nothing to rerank.")
        return
    column = (width() - 4) // 2
    found = {passage.name: place for place, passage in enumerate(comparison.found, start=1)}
    left = [
        "KEYWORDS (BM25)",
        f"best {len(comparison.found)} of {passages:,}: {comparison.search_seconds:.2f} s",
    ]
    right = [
        "LATE INTERACTION (in brackets: before)",
        f"over those {len(found)}: {comparison.rank_seconds:.1f} s",
    ]
    before, after = comparison.found[:SHOWN], comparison.best[:SHOWN]
    _say_columns(left, right, column)
    for rank, (old, new) in enumerate(zip_longest(before, after), start=1):
        say()
        _say_columns(
            _entry(old, f"{rank}", column),
            _entry(new, f"{rank} ({found[new.name]})", column),
            column,
        )


def _entry(passage: Docstring, place: str, column: int) -> list[str]:
    title = f"{place:<2} {passage.name}"
    if len(title) > column:
        title = f"{title[: column - 3]}..."
    text = shortened(passage.text, column - 3, lines=2)
    return [title, *(f"   {line}" for line in text)]


def _say_columns(left: Sequence[str], right: Sequence[str], column: int) -> None:
    for one, other in zip_longest(left, right, fillvalue=""):
        say(f"  {one:<{column}}  {other}".rstrip())


def _say_frameworks(model: ColBERT, comparison: Comparison) -> None:
    from colbert_rag.cli.docstrings import FRAMEWORKS

    say()
    say("-" * width())
    say("The last question again, through the components of both frameworks")
    say()
    expected = [passage.name for passage in comparison.best[:SHOWN]]
    agree = 0
    for name, answer_in in FRAMEWORKS.items():
        try:
            answer = answer_in(model, comparison, SHOWN)
        except MissingExtraError as error:
            say(f"  {name:<11} left out: {error}")
            continue
        order = "same order" if answer.best == expected else "ANOTHER ORDER"
        instance = "same model in memory" if answer.shares else "A MODEL OF ITS OWN"
        say(f"  {name:<11} ColBERTRerank: {order}, {instance}, {answer.seconds:.2f} s")
        agree += answer.best == expected and answer.shares
    if agree:
        say()
        _say_paragraph(
            "The weights were loaded once. Passages were encoded once, too: the model keeps their "
            "vectors, which do not depend on the question."
        )


def _say_hints(checkpoint: str) -> None:
    say("-" * width())
    if checkpoint == OFFLINE_CHECKPOINT:
        _say_paragraph(
            "This model is a small sentence encoder whose token vectors were never trained for "
            "late interaction: it comes with the package, and needs no download. A trained one "
            "ranks better: --model answerdotai/answerai-colbert-small-v1"
        )
    _say_paragraph('Your own question: colbert-rag demo "..."  Your own files: colbert-rag rerank')
