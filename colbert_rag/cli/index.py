"""`colbert-rag index`: encode documents once, and keep their vectors for searches."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from colbert_rag.cli.indexes import File, Where, add_server, is_index, known_info, where
from colbert_rag.cli.options import (
    UsageError,
    add_model,
    add_recipe,
    counted_truncation,
    open_model,
    parse_number,
    settings_of,
)
from colbert_rag.cli.output import note, say, shows_progress, size
from colbert_rag.cli.reading import STDIN, SourceDocument
from colbert_rag.cli.sources import FORMS, add_reading, hint_at_lines, places, read
from colbert_rag.errors import ColBERTRagError, IndexStorageError, ReadingError
from colbert_rag.settings import DEFAULT_CHECKPOINT, OFFLINE_CHECKPOINT
from colbert_rag.wording import counted

if TYPE_CHECKING:
    from colbert_rag.codings import VectorCoding
    from colbert_rag.index import Changes, Document, Index
    from colbert_rag.index.documents import Json

DESCRIPTION = f"""\
Encode documents, and keep their token vectors for `colbert-rag search`: in one
file, or in a collection on a Qdrant server. What is there already is not
encoded again, so that a run that was interrupted is simply repeated.

A FILE is one of these, told by its suffix, else by its first line:
{FORMS}
A folder is read with its sub-folders. Without FILE, or for -, standard input
is read. A FILE that is an index itself is copied with the vectors it has.

A record keeps its id, and replaces an earlier one with the same id; any other
document is known by its text. Other fields of a record can be searched with
--filter, as can source, line and title. What vanishes from a file stays in
the index, unless --prune is given."""

EPILOG = """\
examples:
  colbert-rag index handbook/ faq.md --to handbook.sqlite
  colbert-rag index facts.jsonl --to facts.sqlite -m offline-minilm
  colbert-rag index facts.jsonl --to http://localhost:6333/facts
  colbert-rag index facts.sqlite --to http://localhost:6333 --collection facts
  colbert-rag index --convert int8 --to facts.sqlite"""

VECTORS = ("float16", "int8", "int4")
"""The names of `colbert_rag.codings`, which would import torch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] [FILE ...] --to INDEX"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--to",
        metavar="INDEX",
        required=True,
        help="file, or http://HOST:PORT/COLLECTION; made where there is none",
    )
    parser.add_argument(
        "--token-pooling",
        type=parse_number,
        metavar="N",
        help="merge token vectors to 1/N of their number, such as 2; of a new index",
    )
    parser.add_argument(
        "--vectors",
        choices=VECTORS,
        help=f"how a new file stores vectors (default: {VECTORS[0]})",
    )
    parser.add_argument(
        "--convert",
        choices=VECTORS,
        metavar="VECTORS",
        help="encode nothing, and store the vectors of INDEX in another of these ways",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove what the index has from these files and folders and they no longer hold",
    )
    add_server(parser)
    add_reading(parser)
    add_model(
        parser,
        default=None,
        help=f"hub id, folder, or {OFFLINE_CHECKPOINT} (default: that of the index; "
        f"of a new one {DEFAULT_CHECKPOINT})",
    )
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Fill the index, and say what changed."""
    pooling = arguments.token_pooling
    if pooling is not None and pooling < 1:
        raise UsageError(f"--token-pooling is {pooling:g}, expected at least 1")
    if arguments.prune and STDIN in (arguments.files or [STDIN]):
        raise UsageError("--prune is for files and folders that are named")
    target = where(arguments, arguments.to)
    if arguments.convert is not None:
        _convert(arguments, target)
        return 0
    stored = [path for path in arguments.files if path != STDIN and is_index(path)]
    if stored:
        _copy(arguments, stored, target)
        return 0
    documents = read(arguments)
    # The first ones are read before the model is loaded: a wrong file name shows at once.
    first = list(islice(documents, 2))
    if not first and arguments.prune:
        raise ReadingError(
            f"no documents found in {', '.join(arguments.files)}, so that --prune would remove all "
            "that is from there. Nothing was removed; to make a new index, remove this one"
        )
    if not first:
        note(f"no documents found in {places(arguments)}")
        return 0
    hint_at_lines(first)
    _encode(arguments, chain(first, documents), target)
    return 0


def _encode(
    arguments: argparse.Namespace, documents: Iterable[SourceDocument], target: Where
) -> None:
    settings = settings_of(arguments, target.info())
    colbert = open_model(replace(settings, document_cache=None))
    given = _Given(documents, prune=arguments.prune)
    with target.open(
        colbert, token_pooling=arguments.token_pooling, vectors=arguments.vectors
    ) as index:
        start = time.perf_counter()
        with _resumable(index, target), counted_truncation(colbert):
            if arguments.prune:
                gone = _sources(index, arguments.files)
                changes = index.sync(given, sources=gone, show_progress=shows_progress())
            else:
                changes = index.add(given, show_progress=shows_progress())
        given.report()
        _say_changes(changes, time.perf_counter() - start, pruned=arguments.prune)
        _say_holdings(index, target)


def _sources(index: Index, paths: Iterable[str]) -> set[str]:
    """The files that the index has documents from, as far as they are named or in named folders."""
    named = [Path(path) for path in paths]
    sources = (document.metadata.get("source") for document in index)
    return {
        source
        for source in sources
        if isinstance(source, str) and any(Path(source).is_relative_to(path) for path in named)
    }


def _copy(arguments: argparse.Namespace, paths: list[str], target: Where) -> None:
    from colbert_rag.index import copy_index

    if len(paths) < len(arguments.files):
        raise UsageError(
            f"{paths[0]} is an index, which is copied, and other files hold documents, which are "
            "encoded: give them to one call each"
        )
    if arguments.checkpoint is not None or arguments.token_pooling is not None or arguments.prune:
        raise UsageError(
            "an index is copied as it is, with the vectors it has: --model, --token-pooling and "
            "--prune are for documents"
        )
    for path in paths:
        if isinstance(target, File) and _same(path, target.name):
            raise UsageError(f"{path} would be copied to itself")
        with (
            File(path).open(read_only=True) as source,
            target.open(like=source.info, vectors=_copied(arguments, source, target)) as index,
            _resumable(index, target),
        ):
            start = time.perf_counter()
            changes = copy_index(source, index, show_progress=shows_progress())
            _say_changes(changes, time.perf_counter() - start)
            _say_holdings(index, target)


def _copied(arguments: argparse.Namespace, source: Index, target: Where) -> VectorCoding | None:
    """How a copy stores vectors: as was asked for, or a new file as its source does."""
    from colbert_rag.index import LocalIndex

    chosen: VectorCoding | None = arguments.vectors
    new = isinstance(target, File) and target.info() is None
    return source.vectors if chosen is None and new and isinstance(source, LocalIndex) else chosen


def _convert(arguments: argparse.Namespace, target: Where) -> None:
    """Store the vectors of an index in another way, and give back the space that is saved."""
    from colbert_rag.index import LocalIndex

    if arguments.files or arguments.vectors is not None:
        raise UsageError(
            "--convert changes the index of --to as it is, and takes no FILE and no --vectors"
        )
    if not isinstance(target, File):
        raise UsageError("--convert is for files: a server stores float16")
    known_info(target)
    with LocalIndex(target.name) as index:
        before, start = index.stats().bytes or 0, time.perf_counter()
        index.convert(arguments.convert, show_progress=shows_progress())
        index.compact()
        seconds, after = time.perf_counter() - start, index.stats().bytes or 0
        say(
            f"{target.name} stores vectors as {index.vectors}: {size(before)} before, "
            f"{size(after)} now, in {seconds:.1f} s"
        )


def _same(path: str, other: str) -> bool:
    return Path(other).exists() and Path(path).samefile(other)


@contextmanager
def _resumable(index: Index, target: Where) -> Iterator[None]:
    """Where the work ends early, say what is kept and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, ReadingError) as error:
        cause = "" if isinstance(error, KeyboardInterrupt) else " once the file is mended"
        note(
            f"{target.name} keeps {counted(index.count(), 'document')}; the same command goes on "
            f"from there{cause}"
        )
        raise
    except ValueError as error:
        if isinstance(error, ColBERTRagError):
            raise
        # One document that cannot be stored, such as one too long for a server.
        raise IndexStorageError(f"{target.name}: {error}") from error


def _say_changes(changes: Changes, seconds: float, *, pruned: bool = False) -> None:
    removed = f", {changes.removed:,} removed" if pruned else ""
    say(
        f"{changes.added:,} added, {changes.updated:,} updated, {changes.unchanged:,} unchanged"
        f"{removed} in {seconds:.1f} s"
    )


def _say_holdings(index: Index, target: Where) -> None:
    say(f"{target.name} holds {counted(index.count(), 'document')} by {index.info.checkpoint}")


class _Given:
    """What is read, as documents of an index; takes note of those that are the same one."""

    def __init__(self, documents: Iterable[SourceDocument], *, prune: bool) -> None:
        self._documents = documents
        self._prune = prune
        self._replaced: list[str] = []
        self._repeated: list[str] = []

    def __iter__(self) -> Iterator[Document]:
        """Each document once; of those with one id all, since the last shall stay."""
        from colbert_rag.index.documents import text_digest

        seen: set[bytes] = set()
        for read_one in self._documents:
            if self._prune and "source" in read_one.metadata:
                raise ReadingError(
                    f"{read_one.location}: the record has a field 'source' of its own, which hides "
                    "the file it is from, and --prune goes by files. Rename the field"
                )
            content = read_one.content
            name = read_one.id or text_digest(content).hex()
            key = text_digest(name)
            if key not in seen:
                seen.add(key)
            elif read_one.id:
                self._replaced.append(f"{read_one.id} at {read_one.location}")
            else:
                self._repeated.append(read_one.location)
                continue
            yield _document(read_one, name)

    def report(self) -> None:
        """Say what a user may not expect."""
        if self._replaced:
            note(
                f"note: {len(self._replaced):,} ids came again, and the last document of each was "
                f"kept, such as {self._replaced[0]}. --id-field '' knows documents by their texts"
            )
        if self._repeated:
            note(
                f"note: {len(self._repeated):,} texts came again and were left out, such as "
                f"{self._repeated[0]}"
            )


def _document(read_one: SourceDocument, name: str) -> Document:
    """The document with where it was read, unless its own fields say something else there.

    Raises:
        ReadingError: it cannot be stored, such as a number that is not finite.
    """
    from colbert_rag.index.documents import Document, as_document

    metadata = {"source": read_one.source, "line": read_one.line}
    title = {"title": read_one.title} if read_one.title else {}
    fields = cast("dict[str, Json]", {**metadata, **title, **read_one.metadata})
    try:
        return as_document(Document(name, read_one.content, fields))
    except (TypeError, ValueError) as error:
        raise ReadingError(f"{read_one.location}: {error}") from error
