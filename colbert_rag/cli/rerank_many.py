"""`colbert-rag rerank --queries`: rankings for many queries, in a file that can be gone on with."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from colbert_rag.cli.options import (
    FORMS,
    WHOLE,
    add_long_documents,
    add_model,
    add_reading,
    add_recipe,
    counted_truncation,
    open_model,
    parse_count,
    read,
    settings_of,
)
from colbert_rag.cli.output import note, say, shows_progress
from colbert_rag.cli.reading import SourceDocument, corpus_of, read_queries, read_run
from colbert_rag.cli.runs import Found, RunFile
from colbert_rag.errors import ReadingError
from colbert_rag.inputs import has_words

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT
    from colbert_rag.ranking import Ranked, Ranking

    Ready = Callable[[int, Ranking], object]

DEPTH = 100

DESCRIPTION = f"""\
Rank documents for each of many queries, by late interaction, and write the
rankings to a file. Each distinct document is encoded once. The file grows query
by query: a run that was interrupted is simply repeated, and goes on from there.

Queries are JSON Lines with an id and a text, lines of an id, a tab and a text,
or a folder with queries.jsonl and corpus.jsonl, as BEIR has them. Ranked is
what a run of another system found for a query (--run), or all documents.

A FILE with documents is one of these, told by its suffix or its first line:
{FORMS}
Without FILE, documents are those of the folder, or of standard input."""

EPILOG = """\
examples:
  colbert-rag rerank --queries scifact/ --run bm25.trec --to reranked.trec
  colbert-rag rerank --queries questions.tsv handbook.jsonl --to answers.jsonl
  colbert-rag rerank --queries q.jsonl --run bm25.trec c.jsonl --to r.trec -k 10"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] --queries FILE [FILE ...] --to FILE"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--queries", metavar="FILE", required=True, help="what to look for")
    parser.add_argument(
        "--run",
        metavar="RUN",
        help="what another system found, in TREC's six columns (default: all documents)",
    )
    parser.add_argument(
        "--to",
        metavar="FILE",
        required=True,
        help="where rankings go: JSON Lines if it ends in .jsonl, else a TREC run",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--depth",
        type=parse_count,
        default=DEPTH,
        metavar="N",
        help=f"how many of a query's documents in RUN are ranked; 0 for all ({DEPTH})",
    )
    results.add_argument(
        "-k",
        "--top-k",
        type=parse_count,
        default=DEPTH,
        metavar="N",
        help=f"how many are written for each query; 0 for all ({DEPTH})",
    )
    results.add_argument(
        "--score",
        choices=("mean", "sum"),
        default="mean",
        help="mean similarity of the query's tokens, -1 to 1, or ColBERT's sum (default: mean)",
    )
    add_long_documents(results)
    add_reading(parser)
    add_model(parser)
    add_recipe(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is ranked.

    Attributes:
        queries: Text by id; those that have candidates.
        documents: Text by id; those that are candidates.
        candidates: Ids of documents by the id of the query; the same list for all, or own ones.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    candidates: Mapping[str, Sequence[str]]

    def digest(self, *choices: object) -> str:
        """Equal for equal jobs with equal choices."""
        found = hashlib.sha256(json.dumps(choices, default=str).encode())
        shared: dict[int, bytes] = {}
        for name, text in self.queries.items():
            own = self.candidates[name]
            if id(own) not in shared:
                shared[id(own)] = _digest(own)
            found.update(_digest((name, text)) + shared[id(own)])
        for pair in self.documents.items():
            found.update(_digest(pair))
        return found.hexdigest()[:12]


def run(arguments: argparse.Namespace) -> int:
    """Rank for all queries, and write each ranking as soon as it is there."""
    settings = settings_of(arguments)
    job = read_job(arguments)
    top_k = arguments.top_k or None
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
            except KeyboardInterrupt:
                note(
                    f"{arguments.to} has {len(finished):,} of {len(job.queries):,} queries; the "
                    "same command goes on from there"
                )
                raise
    say(
        f"{len(left):,} queries and {len(job.documents):,} documents by {settings.checkpoint}: "
        f"loaded in {loaded - start:.1f} s, ranked in {time.perf_counter() - loaded:.1f} s"
    )
    say(f"{arguments.to} holds {len(finished):,} queries, as {tag}")
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


def read_job(arguments: argparse.Namespace) -> Job:
    """Queries, candidates and documents; all are read before a model is loaded.

    Raises:
        FileNotFoundError: a file does not exist.
        ReadingError: a file is not what it should be, or they do not belong together.
        UsageError: there is nothing to read documents from.
    """
    queries = read_queries(arguments.queries)
    run = None if arguments.run is None else read_run(arguments.run, arguments.depth)
    corpus = None if arguments.files else corpus_of(arguments.queries)
    if corpus is not None:
        arguments.files = [corpus]
    if run is None:
        documents = _by_id(read(arguments))
        everything = list(documents)
        return Job(
            queries=queries, documents=documents, candidates=dict.fromkeys(queries, everything)
        )
    asked = {name: text for name, text in queries.items() if name in run}
    if not asked:
        raise ReadingError(
            f"{arguments.run} has no query of {arguments.queries}: it has {_some(run)}, and the "
            f"queries are {_some(queries)}. Do they belong together?"
        )
    if missing := len(queries) - len(asked):
        note(f"note: {arguments.run} has nothing for {missing:,} of {len(queries):,} queries")
    if unknown := [name for name in run if name not in queries]:
        note(f"note: {arguments.run} has {len(unknown):,} queries that are not asked")
    wanted = dict.fromkeys(document for name in asked for document in run[name])
    documents = _by_id(read(arguments), wanted)
    if lost := [name for name in wanted if name not in documents]:
        raise ReadingError(
            f"{arguments.run} has {len(lost):,} documents that are not in "
            f"{', '.join(arguments.files) or 'standard input'}: {_some(lost)}. Are these the files "
            "it was made of? --id-field names the field with their ids"
        )
    return Job(queries=asked, documents=documents, candidates={name: run[name] for name in asked})


def _by_id(
    documents: Iterable[SourceDocument], wanted: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Text by id: of all documents, or of those that are wanted.

    Raises:
        ReadingError: an id stands there twice, or there is no document at all.
    """
    found: dict[str, str] = {}
    seen = 0
    for document in documents:
        seen += 1
        name = document.location if document.id is None else document.id
        if wanted is not None and name not in wanted:
            continue
        if found.setdefault(name, document.content) != document.content:
            raise ReadingError(
                f"{document.location}: the id {name!r} is that of another document further up: "
                "make ids unique, or name the field with --id-field"
            )
    if not seen:
        raise ReadingError("no documents found: name files with documents, or pipe them in")
    return found


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value).encode()).digest()


def _name(checkpoint: str) -> str:
    """A checkpoint's own name, without its owner or folder, as one word."""
    return re.sub(r"[^\w.-]+", "-", checkpoint.rstrip("/\\").replace("\\", "/").rpartition("/")[2])


def _some(names: Iterable[str]) -> str:
    """The first of many names, for a message."""
    first = [repr(name) for name in islice(names, 4)]
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
