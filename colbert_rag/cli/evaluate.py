"""`colbert-rag evaluate`: measure on judged queries whether reranking helps."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_rag.cli.destination import (
    check_folder,
    check_page,
    is_stdout,
    report_beside,
    write_page,
)
from colbert_rag.cli.indexes import add_server, known_info, own_settings, where
from colbert_rag.cli.nearby import no_such
from colbert_rag.cli.options import (
    UsageError,
    add_long_documents,
    add_model,
    add_recipe,
    open_model,
    parse_count,
    parse_input,
    parse_positive,
    settings_of,
)
from colbert_rag.cli.output import note, say, say_json, shows_progress, width
from colbert_rag.cli.web_page import web_page
from colbert_rag.display import Html
from colbert_rag.settings import OFFLINE_CHECKPOINT

if TYPE_CHECKING:
    from colbert_rag.evaluation import Evaluation, JudgedCollection, System

DEPTH = 100
MEASURES = "nDCG@10,MRR@10,Recall@100,MAP"

DESCRIPTION = """\
Measure systems side by side on queries whose answers are known: how good each
is, whether a difference is more than chance, and what it costs. The system
that is named first is what the others are compared with.

COLLECTION is a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv, as
BEIR has them. The parts can also be named one by one. With --qrels alone, runs
can be compared, and no text is needed.

Systems are runs in TREC's format, BM25, and indexes; each model that is named
reranks the best documents of each of them. Without a system, it is BM25."""

EPILOG = """\
examples:
  colbert-rag evaluate --demo
  colbert-rag evaluate scifact/ -m answerdotai/answerai-colbert-small-v1
  colbert-rag evaluate scifact/ --run mine.trec -m offline-minilm --sample 100
  colbert-rag evaluate --qrels qrels.tsv --run before.trec --run after.trec
  colbert-rag evaluate scifact/ --index scifact.sqlite --json | jq .comparisons"""


@dataclass(frozen=True, slots=True)
class _FirstStage:
    """A system that a model reranks, as it was named: `run`, `bm25` or `index`."""

    kind: str
    name: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] [COLLECTION]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("folder", metavar="COLLECTION", nargs="?", help="folder as BEIR has it")
    _add_parts(parser)
    _add_systems(parser)
    _add_output(parser)
    add_server(parser)
    add_model(
        parser,
        default=None,
        help="reranks each system; may be repeated, to compare checkpoints",
        several=True,
    )
    add_recipe(parser)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_argument_group("collection")
    parts.add_argument(
        "--corpus", metavar="FILE", type=parse_input, help="documents: JSON Lines with _id and text"
    )
    parts.add_argument(
        "--queries", metavar="FILE", type=parse_input, help="JSON Lines, or an id, a tab and a text"
    )
    parts.add_argument(
        "--qrels", metavar="FILE", type=parse_input, help="judgements: query, document, grade"
    )
    parts.add_argument(
        "--split", default="test", metavar="NAME", help="which file of qrels/ (default: test)"
    )
    parts.add_argument(
        "--demo", action="store_true", help="questions about Python's own documentation, offline"
    )
    parts.add_argument(
        "--sample", type=parse_positive, metavar="N", help="only so many queries, chosen at random"
    )


def _add_systems(parser: argparse.ArgumentParser) -> None:
    systems = parser.add_argument_group("systems")
    # In one list, since the one that is named first is what the others are compared with.
    parser.set_defaults(systems=[])
    systems.add_argument(
        "--run",
        metavar="FILE",
        action="append",
        dest="systems",
        type=lambda name: _FirstStage("run", parse_input(name)),
        help="a finished run, of six columns",
    )
    systems.add_argument(
        "--bm25",
        action="append_const",
        dest="systems",
        const=_FirstStage("bm25"),
        help="BM25 over the documents",
    )
    systems.add_argument(
        "--index",
        metavar="INDEX",
        action="append",
        dest="systems",
        type=partial(_FirstStage, "index"),
        help="file, or http://HOST:PORT/COLLECTION, whose ids are those of the documents",
    )
    systems.add_argument(
        "--depth",
        type=parse_positive,
        default=DEPTH,
        metavar="N",
        help="documents that a model reranks (100); a first stage finds 100 or more",
    )
    add_long_documents(systems)


def _add_output(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("results")
    results.add_argument(
        "--measures", default=MEASURES, metavar="LIST", help=f"the first decides ({MEASURES})"
    )
    results.add_argument(
        "--seed", type=parse_count, default=0, metavar="N", help="of sample and test (0)"
    )
    results.add_argument("--json", action="store_true", help="one JSON object, query by query")
    results.add_argument(
        "--html", metavar="FILE", help="write a web page, too (- for standard output)"
    )
    results.add_argument("--save-runs", metavar="FOLDER", help="write what each system found")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print tables."""
    _check(arguments)
    from colbert_rag.evaluation import evaluate

    with ExitStack() as opened:
        collection = _collection(arguments)
        # Named files are read now, before any model is loaded: a wrong name shows at once.
        systems = [*_systems(arguments, opened)]
        try:
            view = evaluate(
                collection,
                systems,
                measures=arguments.measures.split(","),
                seed=arguments.seed,
            )
        except ValueError as error:
            if type(error) is ValueError:  # a measure that is unknown
                raise UsageError(f"--measures: {error}") from error
            raise
    with ExitStack() as each:
        # What may have taken hours is given in every form that can be, whichever of them fails.
        for give in (_say, _save_runs, _write_page):
            each.callback(give, view, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything is read."""
    parts = [arguments.corpus, arguments.queries, arguments.qrels]
    given = [arguments.folder is not None, any(parts), arguments.demo]
    if sum(given) != 1:
        found = "nothing" if not any(given) else "more than one of them"
        raise UsageError(f"expected COLLECTION, or --qrels, or --demo, and found {found}")
    if any(parts) and arguments.qrels is None:
        raise UsageError("--corpus and --queries need the judgements, too: --qrels FILE")
    texts = not any(parts) or (arguments.corpus and arguments.queries)
    if not texts and not _runs(arguments):
        raise UsageError("without --corpus and --queries, only runs can be compared: --run FILE")
    for name in _runs(arguments):
        if not Path(name).exists() or Path(name).is_dir():  # a pipe is a file, too
            raise no_such(name)
    for name in filter(None, parts):
        if not Path(name).exists():
            raise no_such(name)
    _check_outputs(arguments)
    if arguments.demo and arguments.checkpoint is None:
        arguments.checkpoint = [OFFLINE_CHECKPOINT]


def _check_outputs(arguments: argparse.Namespace) -> None:
    page, runs = arguments.html, arguments.save_runs
    if page is not None:
        check_page("--html", page)
        if arguments.json and is_stdout(page):
            raise UsageError("--json and --html both have standard output: name a file for --html")
    if runs is not None:
        check_folder("--save-runs", runs)
        for name in _runs(arguments):
            numbered = Path(name).suffix == ".trec" and Path(name).stem.isdecimal()
            if numbered and Path(name).resolve().parent == Path(runs).resolve():
                raise UsageError(f"--save-runs {runs} may write over {name}: name another folder")


def _collection(arguments: argparse.Namespace) -> JudgedCollection:
    from colbert_rag.evaluation import (
        JudgedCollection,
        demo_collection,
        read_corpus,
        read_judgements,
        read_queries,
    )

    if arguments.demo:
        collection = demo_collection()
    elif arguments.folder is not None:
        collection = JudgedCollection.read(arguments.folder, split=arguments.split)
    else:
        collection = JudgedCollection.of(
            Path(arguments.qrels).name,
            read_judgements(arguments.qrels),
            read_queries(arguments.queries) if arguments.queries else None,
            read_corpus(arguments.corpus) if arguments.corpus else None,
        )
    if arguments.sample is not None:
        collection = collection.sample(arguments.sample, seed=arguments.seed)
    return collection


def _systems(arguments: argparse.Namespace, opened: ExitStack) -> Iterator[System]:
    """What is named, in that order, then each of it reranked by each model."""
    from colbert_rag.evaluation import reranked

    named = dict.fromkeys(arguments.systems or [_FirstStage("bm25")])
    bases = [_first_stage(arguments, stage, opened) for stage in named]
    yield from bases
    for checkpoint in dict.fromkeys(arguments.checkpoint or []):
        model = open_model(settings_of(_with(arguments, checkpoint)))
        for base in bases:
            yield reranked(base, model, depth=arguments.depth, show_progress=shows_progress())


def _first_stage(arguments: argparse.Namespace, stage: _FirstStage, opened: ExitStack) -> System:
    from colbert_rag.evaluation import bm25, run_file, searched

    # Recall@100 of a first stage is not to depend on how many of its documents are reranked.
    found = max(arguments.depth, DEPTH)
    if stage.kind == "run":
        return run_file(stage.name)
    if stage.kind == "bm25":
        return bm25(depth=found)
    place = where(arguments, stage.name)
    model = open_model(own_settings(arguments, known_info(place)))
    return searched(opened.enter_context(place.open(model, read_only=True)), depth=found)


def _runs(arguments: argparse.Namespace) -> list[str]:
    return [stage.name for stage in arguments.systems if stage.kind == "run"]


def _with(arguments: argparse.Namespace, checkpoint: str) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(arguments), "checkpoint": checkpoint})


def _write_page(view: Evaluation, arguments: argparse.Namespace) -> None:
    if arguments.html is None:
        return
    write_page(arguments.html, web_page(view.collection.name, Html(view.to_html())))
    if not is_stdout(arguments.html):
        note(f"{arguments.html} has these tables, and a figure")


def _save_runs(view: Evaluation, arguments: argparse.Namespace) -> None:
    from colbert_rag.evaluation import write_run

    if arguments.save_runs:
        folder = Path(arguments.save_runs)
        folder.mkdir(parents=True, exist_ok=True)
        for number, result in enumerate(view.results, start=1):
            write_run(folder / f"{number}.trec", result.scores, result.system)
        note(f"{folder} has what each system found, as 1.trec and so on")


def _say(view: Evaluation, arguments: argparse.Namespace) -> None:
    from colbert_rag.evaluation.text_view import to_text

    if arguments.json:
        say_json(view.to_dict())
        return
    with report_beside(arguments.html):
        for line in to_text(view, width()).splitlines():
            say(line)
    if not arguments.checkpoint and not _runs(arguments):
        note("note: -m CHECKPOINT reranks what was found, and compares")
