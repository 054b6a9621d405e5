"""`colbert-rag info`: what an index holds, and which model made it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from colbert_rag.cli.indexes import File, Where, add_server, known_info, where
from colbert_rag.cli.options import UsageError
from colbert_rag.cli.output import say_facts, say_json, size

if TYPE_CHECKING:
    from colbert_rag.index import IndexInfo, IndexStats

DESCRIPTION = """\
Describe an index: how much it holds, and which model made it. The model is not
loaded. What a server does not count, its tokens and bytes, is left out."""

EPILOG = """\
examples:
  colbert-rag info handbook.sqlite
  colbert-rag info handbook.sqlite --verify
  colbert-rag info http://localhost:6333/facts --json | jq .documents"""

BYTES_PER_VALUE = 2
"""Vectors are stored as float16."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] INDEX"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("index", metavar="INDEX", help="file, or http://HOST:PORT/COLLECTION")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--verify", action="store_true", help="read a whole file, and compare its checksums"
    )
    add_server(parser)


def run(arguments: argparse.Namespace) -> int:
    """Describe; a damaged file is an error."""
    place = where(arguments, arguments.index)
    if arguments.verify and not isinstance(place, File):
        raise UsageError("--verify is for files: a server looks after its own")
    info = known_info(place)
    with place.open(read_only=True) as index:
        if arguments.verify:
            index.verify()
        held = index.stats()
    if arguments.json:
        say_json(_record(place, info, held, verified=arguments.verify))
    else:
        say_facts(_facts(place, info, held, verified=arguments.verify))
    return 0


def _per_token(held: IndexStats) -> float | None:
    return held.bytes / held.tokens if held.bytes and held.tokens else None


def _record(
    place: Where, info: IndexInfo, held: IndexStats, *, verified: bool
) -> dict[str, object]:
    per_token = _per_token(held)
    return {
        "index": place.name,
        "kind": "file" if isinstance(place, File) else "qdrant",
        "documents": held.documents,
        "tokens": held.tokens,
        "bytes": held.bytes,
        "shared_bytes": held.shared_bytes,
        "level_bytes": held.level_bytes,
        "bytes_per_token": None if per_token is None else round(per_token, 1),
        **info.to_json(),
        "verified": True if verified else None,
    }


def _facts(
    place: Where, info: IndexInfo, held: IndexStats, *, verified: bool
) -> Iterator[tuple[str, str]]:
    yield "Index", place.name
    yield "Documents", f"{held.documents:,}"
    if held.tokens is not None and held.bytes is not None:
        each = f", {held.tokens / held.documents:,.1f} a document" if held.documents else ""
        yield "Tokens", f"{held.tokens:,}{each}"
        per_token = _per_token(held)
        vectors = BYTES_PER_VALUE * info.dim
        share = "" if per_token is None else f", {per_token:,.0f} bytes a token ({vectors} of them"
        yield "Size", f"{size(held.bytes)}{share and share + ' its vector)'}"
    if held.shared_bytes is not None:
        yield "Shared", f"{size(held.shared_bytes)} beside it, which processes that search map"
    if held.level_bytes is not None:
        yield "Level", f"{size(held.level_bytes)} beside it, by which large searches go"
    yield "Model", info.checkpoint
    recipe = ", ".join(f"{name} {value!r}" for name, value in info.recipe.items())
    yield "Recipe", recipe or "that of the checkpoint"
    yield "Token vector", f"{info.dim} wide, float16"
    pooling = info.token_pooling
    yield "Pooling", "none" if pooling is None else f"to 1/{pooling:g} of the vectors"
    yield "Fingerprint", info.fingerprint
    if verified:
        yield "Verified", "yes: everything in it is what was written"
