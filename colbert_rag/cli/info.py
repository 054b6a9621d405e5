"""`colbert-rag info`: what an index holds, and which model made it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colbert_rag.cli.indexes import PLACES, File, add_server, known_info, where
from colbert_rag.cli.options import UsageError
from colbert_rag.cli.output import say_facts, say_json, size
from colbert_rag.cli.servers import is_served, served

if TYPE_CHECKING:
    from colbert_rag.index import IndexInfo, IndexStats

DESCRIPTION = """\
Describe an index: how much it holds, and which model made it. The model is not
loaded. What a server does not count, its tokens and bytes, is left out."""

EPILOG = """\
examples:
  colbert-rag info handbook.sqlite
  colbert-rag info handbook.sqlite --verify
  colbert-rag info http://127.0.0.1:8000
  colbert-rag info http://localhost:6333/facts --json | jq .documents"""


@dataclass(frozen=True, slots=True)
class About:
    """What is said of an index.

    Attributes:
        name: What the user called it.
        kind: "file", "qdrant", or "server" for that of `colbert-rag serve`.
        info: Which model made it.
        held: How much it holds.
    """

    name: str
    kind: str
    info: IndexInfo
    held: IndexStats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] INDEX"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("index", metavar="INDEX", help=PLACES)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--verify", action="store_true", help="read a whole file, and compare its checksums"
    )
    add_server(parser)


def run(arguments: argparse.Namespace) -> int:
    """Describe; a damaged file is an error."""
    behind = is_served(arguments, arguments.index)
    place = None if behind else where(arguments, arguments.index)
    if arguments.verify and not isinstance(place, File):
        raise UsageError("--verify is for files: a server looks after its own")
    if place is None:
        with served(arguments, arguments.index) as remote:
            about = About(remote.name, "server", remote.info, remote.stats())
    else:
        kind = "file" if isinstance(place, File) else "qdrant"
        info = known_info(place)
        with place.open(read_only=True) as index:
            if arguments.verify:
                index.verify()
            about = About(place.name, kind, info, index.stats())
    if arguments.json:
        say_json(_record(about, verified=arguments.verify))
    else:
        say_facts(_facts(about, verified=arguments.verify))
    return 0


def _per_token(held: IndexStats) -> float | None:
    return held.bytes / held.tokens if held.bytes and held.tokens else None


def _record(about: About, *, verified: bool) -> dict[str, object]:
    held = about.held
    per_token = _per_token(held)
    return {
        "index": about.name,
        "kind": about.kind,
        "documents": held.documents,
        "tokens": held.tokens,
        "bytes": held.bytes,
        "shared_bytes": held.shared_bytes,
        "level_bytes": held.level_bytes,
        "vectors": held.vectors,
        "vector_bytes": held.vector_bytes,
        "bytes_per_token": None if per_token is None else round(per_token, 1),
        **about.info.to_json(),
        "verified": True if verified else None,
    }


def _facts(about: About, *, verified: bool) -> Iterator[tuple[str, str]]:
    info, held = about.info, about.held
    yield "Index", about.name
    yield "Documents", f"{held.documents:,}"
    if held.tokens is not None and held.bytes is not None:
        each = f", {held.tokens / held.documents:,.1f} a document" if held.documents else ""
        yield "Tokens", f"{held.tokens:,}{each}"
        per_token = _per_token(held)
        each = f"({held.vector_bytes} of them"
        share = "" if per_token is None else f", {per_token:,.0f} bytes a token {each}"
        yield "Size", f"{size(held.bytes)}{share and share + ' its vector)'}"
    if held.shared_bytes is not None:
        yield "Shared", f"{size(held.shared_bytes)} beside it, which processes that search map"
    if held.level_bytes is not None:
        yield "Level", f"{size(held.level_bytes)} beside it, by which large searches go"
    yield "Model", info.checkpoint
    recipe = ", ".join(f"{name} {value!r}" for name, value in info.recipe.items())
    yield "Recipe", recipe or "that of the checkpoint"
    yield "Token vector", f"{info.dim} wide, {held.vectors}"
    pooling = info.token_pooling
    yield "Pooling", "none" if pooling is None else f"to 1/{pooling:g} of the vectors"
    yield "Fingerprint", info.fingerprint
    if verified:
        yield "Verified", "yes: everything in it is what was written"
