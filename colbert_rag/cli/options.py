"""Options that several commands share, spelled as they are in Python."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_rag.cli.output import note, shows_progress
from colbert_rag.cli.reading import STDIN
from colbert_rag.cli.spelling import in_options
from colbert_rag.inputs import is_address
from colbert_rag.settings import (
    DEFAULT_CHECKPOINT,
    DTYPES,
    LONG_DOCUMENTS,
    OFFLINE_CHECKPOINT,
    Settings,
)

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT
    from colbert_rag.index import IndexInfo

WHOLE = "; --long-documents windows scores them whole"
"""Advice about documents that were cut, where they need not be."""

LARGEST_COUNT = 10**18 - 1
"""What a count may be: a machine word holds it, as sizes are."""

STDIN_FILE = "/dev/stdin"
"""What Unix calls standard input."""


class UsageError(Exception):
    """Arguments that cannot be right, found only after they were parsed."""


@contextmanager
def counted_truncation(colbert: ColBERT, advice: str = "") -> Iterator[None]:
    """Around the work of a run: afterwards, say how many texts were longer than the model reads.

    Args:
        colbert: What encodes the texts.
        advice: What to say about documents that were cut.
    """
    log = logging.getLogger("colbert_rag.text_encoder")
    before = colbert.truncation_info()
    log.addFilter(_nothing)  # the library's own warning counts the first call alone
    try:
        yield
    finally:
        log.removeFilter(_nothing)
    after, rules = colbert.truncation_info(), colbert.tokenizer.rules
    if after.queries_cut > before.queries_cut:
        note(f"note: a query is longer than {rules('query').length:,} tokens and was cut there")
    if cut := after.documents_cut - before.documents_cut:
        note(
            f"note: {cut:,} of {after.documents - before.documents:,} documents are longer than "
            f"{rules('document').length:,} tokens and were cut there{advice}"
        )


def _nothing(record: logging.LogRecord) -> bool:
    return False


def add_model(
    parser: argparse.ArgumentParser,
    *,
    default: str | None = DEFAULT_CHECKPOINT,
    help: str | None = None,
    several: bool = False,
) -> None:
    """Declare which model, and where it runs; without a default, the model is that of an index.

    Args:
        parser: Gets the options.
        default: The checkpoint without one that is named.
        help: What to say about the checkpoint.
        several: Whether the option can be repeated; the checkpoints are then a list.
    """
    help = help or f"hub id, folder, or {OFFLINE_CHECKPOINT} (default: {default})"
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        dest="checkpoint",
        metavar="CHECKPOINT",
        default=default,
        help=help,
        action="append" if several else "store",
    )
    group.add_argument("--device", help="such as cpu, cuda:1 or mps (default: the fastest)")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="float type; float32 is exact (default: the device's fastest)",
    )
    group.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens per forward pass; bounds memory"
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare how a checkpoint is found and read; what is left out follows the checkpoint."""
    group = add_finding(parser)
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    group.add_argument(
        "--raw",
        "--raw-token-embeddings",
        dest="raw_token_embeddings",
        action="store_true",
        help="use a plain encoder's own token vectors, without a projection",
    )
    group.add_argument("--query-length", type=int, metavar="N", help="tokens of a query at most")
    group.add_argument(
        "--document-length", type=int, metavar="N", help="tokens of a document at most"
    )
    group.add_argument("--query-marker", metavar="TOKEN", help="vocabulary entry; '' for none")
    group.add_argument("--document-marker", metavar="TOKEN", help="vocabulary entry; '' for none")
    group.add_argument(
        "--query-expansion",
        action=argparse.BooleanOptionalAction,
        help="fill queries up with the mask token, or do not",
    )
    group.add_argument("--language", metavar="NAME", help="adapter of an XMOD model, as in en_XX")


def add_finding(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Declare how a checkpoint is found; an index says how it is read."""
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--cache-folder", metavar="FOLDER", help="where downloads are kept")
    group.add_argument("--local-files-only", action="store_true", help="never use the network")
    group.add_argument(
        "--allow-pickle", action="store_true", help="read pytorch_model.bin, as plain tensors only"
    )
    return group


def add_long_documents(group: argparse._ArgumentGroup) -> None:
    """Declare what becomes of documents that are longer than the model reads."""
    group.add_argument(
        "--long-documents",
        choices=LONG_DOCUMENTS,
        default="truncate",
        help="cut a document at the document length, or score its best window (default: truncate)",
    )


def add_results(group: argparse._ArgumentGroup) -> None:
    """Declare how many results there are, their scale of scores, and their form."""
    group.add_argument(
        "-k", "--top-k", type=parse_count, default=10, metavar="N", help="how many; 0 for all (10)"
    )
    group.add_argument(
        "--score",
        choices=("mean", "sum"),
        default="mean",
        help="mean similarity of the query's tokens, -1 to 1, or ColBERT's sum (default: mean)",
    )
    group.add_argument("--json", action="store_true", help="one JSON object a line, whole texts")


def parse_count(text: str, least: int = 0) -> int:
    """A number that counts something, for argparse."""
    digits = text.lstrip("0") or text[-1:]
    # By their number, because int() itself refuses thousands of digits.
    if text.isdecimal() and len(digits) > len(str(LARGEST_COUNT)):
        raise argparse.ArgumentTypeError(
            f"{_shortened(text)} is too large, expected a whole number of {least} to "
            f"{LARGEST_COUNT:,}"
        )
    if not text.isdecimal() or int(digits) < least:
        raise argparse.ArgumentTypeError(
            f"{_shortened(text)} is not a whole number of {least} or more"
        )
    return int(digits)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def parse_positive(text: str) -> int:
    """`parse_count` where zero means nothing."""
    return parse_count(text, least=1)


def parse_input(name: str) -> str:
    """The name of a file that is read, for argparse: `-` is standard input, where it has a name."""
    return STDIN_FILE if name == "-" and Path(STDIN_FILE).exists() else name


def parse_number(text: str) -> float:
    """A number to compare with, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{_shortened(text)} is not a finite number")
    return number


def checked_query(query: str) -> str:
    """The query, which must be text.

    Raises:
        UsageError: it is blank, not valid Unicode, or meant for standard input.
    """
    if not query.strip():
        raise UsageError("QUERY is empty, expected some text to look for")
    if query == STDIN:
        raise UsageError(
            "QUERY is -, expected some text to look for: queries are read from standard input by "
            "colbert-rag rerank --queries - FILE --to -, and by colbert-rag search - INDEX"
        )
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise UsageError("QUERY is not valid in the terminal's encoding") from error
    return query


def settings_of(arguments: argparse.Namespace, info: IndexInfo | None = None) -> Settings:
    """The model that the arguments describe; what they leave out follows an index.

    Args:
        arguments: As parsed.
        info: Of the index that the model is for, if there is one.

    Raises:
        UsageError: an option is out of range.
    """
    given = vars(arguments)
    chosen = {name: given[name] for name in (f.name for f in fields(Settings)) if name in given}
    if info is not None:
        defaults = {option.name: option.default for option in fields(Settings)}
        defaults["checkpoint"] = None
        named = {name: value for name, value in chosen.items() if value != defaults[name]}
        chosen = {"checkpoint": info.checkpoint, **_recipe(info), **named}
    elif is_address(chosen["checkpoint"]):
        raise UsageError(
            "--model is the address of a server, which rerank and explain take: this needs a "
            "checkpoint, to be opened here"
        )
    elif chosen["checkpoint"] is None:
        chosen["checkpoint"] = DEFAULT_CHECKPOINT
    try:
        return Settings.normalised(**chosen)
    except (TypeError, ValueError) as error:
        raise UsageError(in_options(str(error))) from error


def _recipe(info: IndexInfo) -> dict[str, object]:
    """Only what a recipe consists of: an index may come from somebody else."""
    from colbert_rag.index.info import RECIPE_OPTIONS

    return {name: info.recipe[name] for name in RECIPE_OPTIONS if name in info.recipe}


def open_model(settings: Settings) -> ColBERT:
    """Load the process's one instance of a model.

    Raises:
        UsageError: the device is not there.
        CheckpointError: the checkpoint cannot be opened.
    """
    if shows_progress():
        note(f"Loading {settings.checkpoint} ...")
    # Imported here because torch takes a second to import, and `--help` needs none of it.
    from colbert_rag.colbert import shared
    from colbert_rag.device import resolved

    try:
        complete = resolved(settings)
    except ValueError as error:
        raise UsageError(in_options(str(error))) from error
    return shared(complete)
