"""What is ranked for each of many queries: all documents, or what a first stage found."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from colbert_rag.cli.indexes import known_info, own_settings, where
from colbert_rag.cli.nearby import no_such
from colbert_rag.cli.options import (
    UsageError,
    counted_truncation,
    open_model,
    parse_count,
    parse_input,
    settings_of,
)
from colbert_rag.cli.output import note
from colbert_rag.cli.reading import SourceDocument
from colbert_rag.cli.sources import read
from colbert_rag.errors import ReadingError
from colbert_rag.settings import Settings

DEPTH = 100

FIRST_STAGES = ("--run", "--bm25", "--index")


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


def add_candidates(parser: argparse.ArgumentParser) -> None:
    """Declare what finds the documents that are ranked."""
    group = parser.add_argument_group("candidates (default: all documents)")
    group.add_argument(
        "--run",
        metavar="RUN",
        type=parse_input,
        help="what another system found, in TREC's six columns",
    )
    group.add_argument("--bm25", action="store_true", help="what BM25 finds among the documents")
    group.add_argument(
        "--index",
        metavar="INDEX",
        help="what an index finds: a file, or http://HOST:PORT/COLLECTION",
    )
    group.add_argument(
        "--depth",
        type=parse_count,
        metavar="N",
        help=f"how many of them are ranked for a query; 0 for all ({DEPTH})",
    )


def ranking_settings(arguments: argparse.Namespace) -> Settings:
    """The model that ranks: the one that is named, else that of an index, else the default one.

    A model that is named is another one than the index's, and so follows its own checkpoint. The
    index's own recipe holds for the index's own model alone.

    Raises:
        FileNotFoundError: there is no index.
        UsageError: an option is out of range.
    """
    if arguments.checkpoint is not None or arguments.index is None:
        return settings_of(arguments)
    return settings_of(arguments, known_info(where(arguments, arguments.index)))


def read_job(arguments: argparse.Namespace, depth: int | None) -> Job:
    """Queries, candidates and documents; all are read before the model that ranks is loaded.

    Args:
        arguments: As parsed.
        depth: How many candidates a query has at most; None for all.

    Raises:
        FileNotFoundError: a file does not exist.
        MissingExtraError: BM25 is asked for, and not installed.
        ReadingError: a file is not what it should be, or they do not belong together.
        UsageError: there is nothing to read documents from.
    """
    # Imported here because it brings numpy, and `--help` needs none of it.
    from colbert_rag.evaluation.files import CORPUS, read_queries

    if not Path(arguments.queries).exists():
        raise no_such(arguments.queries, folders=True)
    queries = read_queries(arguments.queries)
    if arguments.index is not None:
        return _from_index(arguments, queries, depth)
    folder = Path(arguments.queries)
    if not arguments.files and folder.is_dir():
        arguments.files = [str(folder / CORPUS)]
    if arguments.run is not None:
        return _from_run(arguments, queries, depth)
    documents = _by_id(read(arguments))
    if arguments.bm25:
        from colbert_rag.evaluation.keywords import bm25_scores

        found = bm25_scores(queries, documents, depth)
        return _job("BM25", queries, documents, {name: list(found[name]) for name in found})
    everything = list(documents)
    return Job(queries=queries, documents=documents, candidates=dict.fromkeys(queries, everything))


def checked_depth(arguments: argparse.Namespace) -> int | None:
    """How many candidates a query has at most; None for all.

    Raises:
        UsageError: options contradict each other.
    """
    given = [name for name in FIRST_STAGES if getattr(arguments, name[2:])]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} each say what is ranked: name one of them, and compare several "
            "with colbert-rag evaluate"
        )
    if not given and arguments.depth is not None:
        raise UsageError(
            f"--depth is for {', '.join(FIRST_STAGES)}, and without one of them all documents are "
            "ranked"
        )
    if arguments.index is not None and arguments.files:
        raise UsageError(
            f"an index has the texts of its documents: leave out {', '.join(arguments.files)}, or "
            "--index"
        )
    if arguments.index is None and (arguments.collection or arguments.api_key_env):
        raise UsageError("--collection and --api-key-env are for an index on a server: --index URL")
    return (DEPTH if arguments.depth is None else arguments.depth) or None


def _from_index(
    arguments: argparse.Namespace, queries: Mapping[str, str], depth: int | None
) -> Job:
    place = where(arguments, arguments.index)
    # As the model that ranks is opened, which is this very one unless another is named.
    model = open_model(replace(own_settings(arguments, known_info(place)), document_cache=None))
    with place.open(model, read_only=True) as index, counted_truncation(model):
        found = index.search_many(list(queries.values()), depth or index.count())
    hits = dict(zip(queries, found, strict=True))
    documents = {hit.id: hit.text for best in found for hit in best}
    return _job(
        place.name, queries, documents, {name: [hit.id for hit in hits[name]] for name in hits}
    )


def _from_run(arguments: argparse.Namespace, queries: Mapping[str, str], depth: int | None) -> Job:
    run = read_ranked(arguments.run, depth)
    if not any(name in run for name in queries):
        raise ReadingError(
            f"{arguments.run} has no query of {arguments.queries}: it has {_some(run)}, and the "
            f"queries are {_some(queries)}. Do they belong together?"
        )
    if unknown := [name for name in run if name not in queries]:
        note(f"note: {arguments.run} has {len(unknown):,} queries that are not asked")
    candidates = {name: run.get(name, []) for name in queries}
    wanted = dict.fromkeys(document for own in candidates.values() for document in own)
    documents = _by_id(read(arguments), wanted)
    if lost := [name for name in wanted if name not in documents]:
        raise ReadingError(
            f"{arguments.run} has {len(lost):,} documents that are not in "
            f"{', '.join(arguments.files) or 'standard input'}: {_some(lost)}. Are these the files "
            "it was made of? --id-field names the field with their ids"
        )
    return _job(arguments.run, queries, documents, candidates)


def _job(
    source: str,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    candidates: Mapping[str, Sequence[str]],
) -> Job:
    """What a first stage found; a query for which that is nothing is left out."""
    asked = {name: text for name, text in queries.items() if candidates[name]}
    if not asked:
        raise ReadingError(
            f"{source} found nothing for any of {len(queries):,} queries, such as "
            f"{next(iter(queries.values()))!r}, so that there is nothing to rank"
        )
    if missing := len(queries) - len(asked):
        note(f"note: {source} has nothing for {missing:,} of {len(queries):,} queries")
    wanted = dict.fromkeys(document for name in asked for document in candidates[name])
    return Job(
        queries=asked,
        documents={name: documents[name] for name in wanted},
        candidates={name: candidates[name] for name in asked},
    )


def read_ranked(path: str, depth: int | None) -> dict[str, list[str]]:
    """Ids of the documents that a system found for each query, best first as trec_eval orders them.

    Args:
        path: TREC's six columns.
        depth: How many of each query; None for all.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: a line is something else, or names a document twice.
    """
    from colbert_rag.evaluation.files import read_run
    from colbert_rag.evaluation.measures import in_order

    if not Path(path).exists():
        raise no_such(path)
    return {query: in_order(scores)[:depth] for query, scores in read_run(path).items()}


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


def _some(names: Iterable[str]) -> str:
    """The first of many names, for a message."""
    first = [repr(name) for name in islice(names, 4)]
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
