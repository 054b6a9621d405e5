"""Options that several commands share: which model, which files; spelled as they are in Python."""

from __future__ import annotations

import argparse
import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, BinaryIO

from colbert_rag.cli.output import note, shows_progress
from colbert_rag.cli.reading import (
    READERS,
    SPLITS,
    STDIN,
    ReadingOptions,
    SourceDocument,
    read_documents,
)
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

FORMS = """\
  .jsonl .ndjson   one JSON object on each line (or one JSON string)
  .json            the same, or one list of such objects
  .csv .tsv        rows under a line that names the columns
  .txt             a document is a paragraph, parted by blank lines
  .md .markdown    a document is a section, with its headings as title"""
"""What can be read, for the help of a command that reads."""


OPTIONS = {
    "allow_pickle": "--allow-pickle",
    "batch_tokens": "--batch-tokens",
    "cache_folder": "--cache-folder",
    "checkpoint": "--model",
    "device": "--device",
    "document_length": "--document-length",
    "document_marker": "--document-marker",
    "dtype": "--dtype",
    "language": "--language",
    "local_files_only": "--local-files-only",
    "long_documents": "--long-documents",
    "query_expansion": "--query-expansion",
    "query_length": "--query-length",
    "query_marker": "--query-marker",
    "raw_token_embeddings": "--raw",
    "revision": "--revision",
}
"""What a setting of a model is called here; the others have no option."""

_SETTING = re.compile(
    rf"(?<!the )\b(?P<name>{'|'.join(OPTIONS)})"
    r"(?: is (?P<found>)|=(?:(?P<yes>True)|(?P<no>False)|'(?P<value>[^']*)')?)"
)


class UsageError(Exception):
    """Arguments that cannot be right, found only after they were parsed."""


def in_options(message: str) -> str:
    """A message of the library in the words of the command line: `--raw` for `...=True`."""

    def spelled(match: re.Match[str]) -> str:
        option = OPTIONS[match["name"]]
        if match["found"] is not None:
            return f"{option} is "
        if match["no"]:
            return f"--no-{option.removeprefix('--')}"
        return f"{option} {match['value']}" if match["value"] else option

    return _SETTING.sub(spelled, message)


@contextmanager
def counted_truncation(colbert: ColBERT) -> Iterator[None]:
    """Around the work of a run: afterwards, say how many documents were longer than is read."""
    log = logging.getLogger("colbert_rag.text_encoder")
    before = colbert.truncation_info()
    log.addFilter(_nothing)  # which would report the first call alone
    try:
        yield
    finally:
        log.removeFilter(_nothing)
    after = colbert.truncation_info()
    if cut := after.documents_cut - before.documents_cut:
        note(
            f"note: {cut:,} of {after.documents - before.documents:,} documents are longer than "
            f"{colbert.checkpoint.recipe.document.length:,} tokens and were cut there"
        )


def _nothing(record: logging.LogRecord) -> bool:
    return False


def add_model(parser: argparse.ArgumentParser, *, default: str = DEFAULT_CHECKPOINT) -> None:
    """Declare which model, and where it runs."""
    _add_model(parser, default, f"hub id, folder, or {OFFLINE_CHECKPOINT} (default: {default})")


def add_followed_model(parser: argparse.ArgumentParser, help: str) -> None:
    """Declare which model, and where it runs, for a command that follows an index."""
    _add_model(parser, None, help)


def _add_model(parser: argparse.ArgumentParser, default: str | None, help: str) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", dest="checkpoint", metavar="CHECKPOINT", default=default, help=help
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
    _add_finding(group)
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


def add_finding(parser: argparse.ArgumentParser) -> None:
    """Declare how a checkpoint is found, where an index says how it is read."""
    _add_finding(parser.add_argument_group("checkpoint"))


def _add_finding(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cache-folder", metavar="FOLDER", help="where downloads are kept")
    group.add_argument("--local-files-only", action="store_true", help="never use the network")
    group.add_argument(
        "--allow-pickle", action="store_true", help="read pytorch_model.bin, as plain tensors only"
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare how files are read."""
    group = parser.add_argument_group("reading")
    group.add_argument("--format", choices=tuple(READERS), help="instead of going by the suffix")
    group.add_argument("--split", choices=SPLITS, help="what is one document in text and Markdown")
    group.add_argument(
        "--field", metavar="NAME", help="where records have their text (default: text, content...)"
    )
    group.add_argument(
        "--id-field",
        metavar="NAME",
        help="where they have an id (default: id, _id...); '' for none",
    )
    group.add_argument(
        "--title-field",
        metavar="NAME",
        help="where they have a title (default: title); '' for none",
    )
    group.add_argument(
        "--follow-links", action="store_true", help="read links that lead out of a folder, too"
    )


def add_long_documents(group: argparse._ArgumentGroup) -> None:
    """Declare what becomes of documents that are longer than the model reads."""
    group.add_argument(
        "--long-documents",
        choices=LONG_DOCUMENTS,
        default="truncate",
        help="cut a document at the document length, or score its best window (default: truncate)",
    )


def add_score(group: argparse._ArgumentGroup) -> None:
    """Declare the scale of scores."""
    group.add_argument(
        "--score",
        choices=("mean", "sum"),
        default="mean",
        help="mean similarity of the query's tokens, -1 to 1, or ColBERT's sum (default: mean)",
    )


def count_argument(text: str) -> int:
    """A number that counts something, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def checked_query(query: str) -> str:
    """The query, which must be text.

    Raises:
        UsageError: it is blank, or not valid Unicode.
    """
    if not query.strip():
        raise UsageError("QUERY is empty, expected some text to look for")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise UsageError("QUERY is not valid in the terminal's encoding") from error
    return query


def read(arguments: argparse.Namespace) -> Iterator[SourceDocument]:
    """The documents of the files that are named, or of standard input where none is.

    Raises:
        FileNotFoundError: a file does not exist; before anything is read.
        UsageError: there is nothing to read from.
    """
    paths = arguments.files or [STDIN]
    if STDIN in paths and sys.stdin is None:
        raise UsageError("there is no standard input here: name a FILE")
    if not arguments.files and sys.stdin.isatty():
        raise UsageError("no FILE is named, and nothing is piped in")
    options = ReadingOptions(
        format=arguments.format,
        split=arguments.split,
        text_field=arguments.field,
        id_field=arguments.id_field,
        title_field=arguments.title_field,
        follow_links=arguments.follow_links,
        skipped=lambda reason: note(f"note: {reason}"),
    )
    stdin: BinaryIO = sys.stdin.buffer if STDIN in paths else io.BytesIO()
    return read_documents(paths, options, stdin=stdin)


def hint_at_lines(documents: Sequence[SourceDocument]) -> None:
    """One paragraph of many lines is often a list that was meant line by line."""
    if len(documents) == 1 and "\n" in documents[0].text and not documents[0].title:
        note(
            f"note: {documents[0].source} is one document, since no blank line parts it; "
            "--split lines makes one of each line"
        )


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
        unsaid = {option.name: option.default for option in fields(Settings)} | {"checkpoint": None}
        said = {name: value for name, value in chosen.items() if value != unsaid[name]}
        chosen = {"checkpoint": info.checkpoint, **_recipe(info), **said}
    elif chosen["checkpoint"] is None:
        chosen["checkpoint"] = DEFAULT_CHECKPOINT
    try:
        return Settings.normalised(**chosen)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


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
        raise UsageError(str(error)) from error
    return shared(complete)
