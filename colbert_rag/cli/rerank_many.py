"""`colbert-rag rerank --queries`: rankings for many queries, in a file that can be gone on with."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colbert_rag.cli.candidates import (
    Job,
    add_candidates,
    checked_depth,
    ranking_settings,
    read_job,
)
from colbert_rag.cli.destination import check_destination, report_beside, spoken
from colbert_rag.cli.indexes import add_server
from colbert_rag.cli.options import (
    WHOLE,
    add_long_documents,
    add_model,
    add_recipe,
    counted_truncation,
    open_model,
    parse_count,
    parse_input,
)
from colbert_rag.cli.output import note, say, shows_progress
from colbert_rag.cli.runs import Found, RunFile
from colbert_rag.cli.sources import FORMS, add_reading
from colbert_rag.inputs import has_words
from colbert_rag.settings import DEFAULT_CHECKPOINT, OFFLINE_CHECKPOINT
from colbert_rag.wording import counted

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT
    from colbert_rag.ranking import Ranked, Ranking

    Ready = Callable[[int, Ranking], object]

TOP_K = 100

MODEL = (
    f"hub id, folder, or {OFFLINE_CHECKPOINT} (default: that of INDEX, else {DEFAULT_CHECKPOINT})"
)

DESCRIPTION = f"""\
Rank documents for each of many queries, by late interaction, and write the
rankings to a file. Each distinct document is encoded once. The file grows query
by query: a run that was interrupted is simply repeated, and goes on from there.

Queries are JSON Lines with an id and a text, lines of an id, a tab and a text,
or a folder with queries.jsonl and corpus.jsonl, as BEIR has them. What is
ranked for a query are all documents, or the best that BM25 finds among them
(--bm25), or a run of another system (--run), or an index by its own model
(--index), which brings its texts along; its model ranks unless -m names one.

A FILE with documents is one of these, told by its suffix or its first line:
{FORMS}
Without FILE, documents are those of the folder, or of standard input."""

EPILOG = """\
examples:
  colbert-rag rerank --queries scifact/ --run bm25.trec --to reranked.trec
  colbert-rag rerank --queries scifact/ --bm25 --depth 50 --to reranked.trec
  colbert-rag rerank --queries questions.tsv handbook.jsonl --to answers.jsonl
  colbert-rag rerank --queries q.tsv --index handbook.sqlite --to r.trec -m big/
  colbert-rag rerank --queries q.jsonl --run bm25.trec c.jsonl --to r.trec -k 10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] --queries FILE [FILE ...] --to FILE"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--queries", metavar="FILE", required=True, type=parse_input, help="what to look for"
    )
    parser.add_argument(
        "--to",
        metavar="FILE",
        required=True,
        help="where rankings go: JSON Lines if it ends in .jsonl, else a TREC run (- for standard "
        "output)",
    )
    add_candidates(parser)
    results = parser.add_argument_group("results")
    results.add_argument(
        "-k",
        "--top-k",
        type=parse_count,
        default=TOP_K,
        metavar="N",
        help=f"how many are written for each query; 0 for all ({TOP_K})",
    )
    results.add_argument(
        "--score",
        choices=("mean", "sum"),
        default="mean",
        help="mean similarity of the query's tokens, -1 to 1, or ColBERT's sum (default: mean)",
    )
    add_long_documents(results)
    add_reading(parser)
    add_server(parser)
    add_model(parser, default=None, help=MODEL)
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rank for all queries, and write each ranking as soon as it is there."""
    check_destination("--to", arguments.to)
    depth = checked_depth(arguments)
    settings = ranking_settings(arguments)
    job = read_job(arguments, depth)
    top_k, to = arguments.top_k or None, spoken(arguments.to)
    # Each document is encoded once in a run, so there is nothing to remember.
    start = time.perf_counter()
    colbert = open_model(replace(settings, document_cache=None))
    loaded = time.perf_counter()
    choices = (colbert.fingerprint, colbert.dtype, settings.long_documents, arguments.score, top_k)
    tag = f"{_name(settings.checkpoint)}-{job.digest(*choices)}"
    file = RunFile(arguments.to, tag, job.queries)
    for ids in (job.queries, job.documents):
        file.check_ids(ids)
    expected = {
        name: len(own) if top_k is None else min(len(own), top_k)
        for name, own in job.candidates.items()
    }
    mean = arguments.score == "mean"
    with file.resumed(expected) as (finished, write):
        left = [name for name in job.queries if name not in finished]
        if finished:
            note(f"note: {arguments.to} has {len(finished):,} of {len(job.queries):,} queries")

        def ready(place: int, ranking: Ranking) -> None:
            name = left[place]
            write(name, _found(ranking, job.candidates[name], mean=mean))
            finished.add(name)

        with counted_truncation(colbert, WHOLE):
            try:
                _rank(colbert, job, left, top_k=top_k, ready=ready)
            except (KeyboardInterrupt, OSError):
                if file.resumable:
                    note(
                        f"{arguments.to} has {len(finished):,} of {len(job.queries):,} queries; "
                        "the same command goes on from there"
                    )
                raise
    with report_beside(arguments.to):
        say(
            f"{counted(len(left), 'query', 'queries')} and "
            f"{counted(len(job.documents), 'document')} by {settings.checkpoint}: "
            f"loaded in {loaded - start:.1f} s, ranked in {time.perf_counter() - loaded:.1f} s"
        )
        say(f"{to} holds {counted(len(finished), 'query', 'queries')}, as {tag}")
    return 0


def _rank(
    colbert: ColBERT, job: Job, names: Sequence[str], *, top_k: int | None, ready: Ready
) -> None:
    texts: dict[int, list[str]] = {}
    lists = []
    for name in names:
        own = job.candidates[name]
        if id(own) not in texts:
            texts[id(own)] = [job.documents[document] for document in own]
        lists.append(texts[id(own)])
    colbert.rank_many(
        [job.queries[name] for name in names],
        lists,
        top_k=top_k,
        ready=ready,
        show_progress=shows_progress(),
    )


def _found(ranking: Ranking, candidates: Sequence[str], *, mean: bool) -> list[Found]:
    """The places by their documents' ids, with scores that never rise.

    A text without words, or without a number as score, comes last whatever its score is, and who
    sorts a run by scores must find it there.
    """
    lowest = -1.0 if mean else -float(ranking.query_rows)

    def score(place: Ranked) -> float:
        value = place.mean if mean else place.score
        return value if math.isfinite(value) and has_words(place.text) else lowest

    return [Found(candidates[place.index], score(place), place.span) for place in ranking]


def _name(checkpoint: str) -> str:
    """A checkpoint's own name, without its owner or folder, as one word."""
    return re.sub(r"[^\w.-]+", "-", checkpoint.rstrip("/\\").replace("\\", "/").rpartition("/")[2])
