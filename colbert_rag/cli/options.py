"""The options that say which model a command opens, and how; spelled as they are in Python."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from colbert_rag.cli.output import note, shows_progress
from colbert_rag.settings import DEFAULT_CHECKPOINT, DTYPES, OFFLINE_CHECKPOINT, Settings

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT


class UsageError(Exception):
    """Arguments that cannot be right, found only after they were parsed."""


def add_model(parser: argparse.ArgumentParser, *, default: str = DEFAULT_CHECKPOINT) -> None:
    """Declare which model, and where it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        dest="checkpoint",
        metavar="CHECKPOINT",
        default=default,
        help=f"hub id, folder, or {OFFLINE_CHECKPOINT} (default: {default})",
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
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    group.add_argument("--cache-folder", metavar="FOLDER", help="where downloads are kept")
    group.add_argument("--local-files-only", action="store_true", help="never use the network")
    group.add_argument(
        "--raw",
        "--raw-token-embeddings",
        dest="raw_token_embeddings",
        action="store_true",
        help="use a plain encoder's own token vectors, without a projection",
    )
    group.add_argument(
        "--allow-pickle", action="store_true", help="read pytorch_model.bin, as plain tensors only"
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


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The model that the arguments describe.

    Raises:
        UsageError: an option is out of range.
    """
    given = vars(arguments)
    chosen = {name: given[name] for name in (f.name for f in fields(Settings)) if name in given}
    try:
        return Settings.normalised(**chosen)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def open_model(settings: Settings) -> ColBERT:
    """Load the process's one instance of a model.

    Raises:
        UsageError: the device is not there.
        CheckpointError: the checkpoint cannot be opened.
    """
    if shows_progress():
        note(f"Loading {settings.checkpoint} ...")
    # Imported here because torch takes a second to import, and `--help` needs none of it.
    from colbert_rag.colbert import resolved, shared

    try:
        complete = resolved(settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return shared(complete)
