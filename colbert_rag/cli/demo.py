"""`colbert-rag demo`: what late interaction adds to a keyword search, shown on real text."""

from __future__ import annotations

import argparse
import platform
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

from colbert_rag.cli.options import UsageError, add_model, checked_query, open_model, settings_of
from colbert_rag.cli.output import say, shortened, shows_progress, width
from colbert_rag.display import one_line
from colbert_rag.errors import MissingExtraError
from colbert_rag.settings import OFFLINE_CHECKPOINT

if TYPE_CHECKING:
    from colbert_rag.adapter import Reranking
    from colbert_rag.colbert import ColBERT
    from colbert_rag.evaluation.docstrings import Docstring

SHOWN = 3
"""Passages shown on each side."""

QUESTIONS = (
    "How do I run another program and get its output?",
    "How do I delete a folder and everything inside it?",
    "put text into lines that are not too wide",
    "How do I ask for a password without showing it?",
)
"""Asked in other words than the documentation's, which is where keywords fail."""

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
    questions = QUESTIONS if arguments.query is None else [checked_query(arguments.query)]
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit is {arguments.limit}, expected at least 1")
    settings = settings_of(arguments)
    # Opened first: whatever could be missing, such as the extra `offline`, shows at once.
    loading = time.perf_counter()
    colbert = open_model(settings)

    from colbert_rag.evaluation.docstrings import keyword_search, standard_library

    reading = time.perf_counter()
    passages = standard_library(limit=arguments.limit, show_progress=shows_progress())
    with keyword_search(passages) as search:
        _say_paragraph(
            f"{len(passages):,} passages from the documentation inside Python "
            f"{platform.python_version()}, read and indexed in {time.perf_counter() - reading:.1f} "
            f"s. Model {settings.checkpoint} on {colbert.device}, imported and loaded in "
            f"{reading - loading:.1f} s."
        )
        comparisons = []
        for question in questions:
            comparisons.append(compare(question, search, colbert))
            _say_comparison(comparisons[-1], len(passages))
    if answered := [comparison for comparison in comparisons if comparison.found]:
        _say_frameworks(colbert, answered[-1])
    say()
    _say_hints(settings.checkpoint)
    return 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question, answered twice: by keywords, and by late interaction over what these found."""

    query: str
    found: list[Docstring]
    best: list[Docstring]
    search_seconds: float
    rank_seconds: float


def compare(query: str, search: Callable[[str], list[Docstring]], colbert: ColBERT) -> Comparison:
    """Search by keywords, and rerank what they found."""
    start = time.perf_counter()
    found = search(query)
    searched = time.perf_counter()
    texts = [passage.content for passage in found]
    best = [
        found[place.index] for place in colbert.rank(query, texts, show_progress=shows_progress())
    ]
    return Comparison(query, found, best, searched - start, time.perf_counter() - searched)


Prepared: TypeAlias = "tuple[Reranking, Callable[[], list[str]]]"
"""A framework's component, and what answers by it: names of passages, best first."""


def _prepare_langchain(comparison: Comparison, **fields: object) -> Prepared:
    from colbert_rag.langchain import ColBERTRerank

    reranker = ColBERTRerank.model_validate(fields)
    from langchain_core.documents import Document  # after ours, which says what is missing

    documents = [Document(each.content, id=each.name) for each in comparison.found]
    return reranker, lambda: [
        str(document.id) for document in reranker.compress_documents(documents, comparison.query)
    ]


def _prepare_llama_index(comparison: Comparison, **fields: object) -> Prepared:
    from colbert_rag.llama_index import ColBERTRerank

    reranker = ColBERTRerank.model_validate(fields)
    from llama_index.core.schema import NodeWithScore, TextNode  # after ours, as above

    texts = [TextNode(text=each.content, id_=each.name) for each in comparison.found]
    nodes = [NodeWithScore(node=node) for node in texts]
    return reranker, lambda: [
        best.node.node_id for best in reranker.postprocess_nodes(nodes, query_str=comparison.query)
    ]


FRAMEWORKS: dict[str, Callable[..., Prepared]] = {
    "LangChain": _prepare_langchain,
    "LlamaIndex": _prepare_llama_index,
}
"""What makes a framework's reranker, of the fields given, ready for the passages of a comparison;
where it is not installed, it raises `MissingExtraError`."""


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
    found = [passage.name for passage in comparison.found]
    _say_columns(
        [
            "KEYWORDS (BM25)",
            f"best {len(found)} of {passages:,}: {comparison.search_seconds:.2f} s",
        ],
        [
            "LATE INTERACTION (in brackets: before)",
            f"over those {len(found)}: {comparison.rank_seconds:.1f} s",
        ],
        column,
    )
    both = zip(comparison.found[:SHOWN], comparison.best[:SHOWN], strict=True)
    for rank, (old, new) in enumerate(both, start=1):
        say()
        before = found.index(new.name) + 1
        _say_columns(
            _entry(old, f"{rank}", column), _entry(new, f"{rank} ({before})", column), column
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


def _say_frameworks(colbert: ColBERT, comparison: Comparison) -> None:
    say()
    say("-" * width())
    say("The last question again, through the components of both frameworks")
    say()
    named = colbert.settings
    agree = False
    for name, prepare in FRAMEWORKS.items():
        try:
            reranker, answer = prepare(
                comparison,
                model=named.checkpoint,
                device=named.device,
                dtype=named.dtype,
                top_n=SHOWN,
            )
        except MissingExtraError as error:
            say(f"  {name:<11} left out: {error}")
            continue
        start = time.perf_counter()
        same = answer() == [passage.name for passage in comparison.best[:SHOWN]]
        seconds = time.perf_counter() - start
        shares = reranker.ranker is colbert
        order = "same order" if same else "ANOTHER ORDER"
        instance = "same model in memory" if shares else "A MODEL OF ITS OWN"
        say(f"  {name:<11} ColBERTRerank: {order}, {instance}, {seconds:.2f} s")
        agree |= same and shares
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
    named = f" --model {checkpoint}" if checkpoint == OFFLINE_CHECKPOINT else ""
    say(f"Other programs, and a browser: colbert-rag serve{named}")
