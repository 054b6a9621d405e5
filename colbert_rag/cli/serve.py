"""`colbert-rag serve`: one model, and perhaps an index, for every program that speaks HTTP."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from colbert_rag.cli.indexes import add_server, known_info, where
from colbert_rag.cli.options import (
    UsageError,
    add_long_documents,
    add_model,
    add_recipe,
    open_model,
    parse_count,
    parse_number,
    parse_positive,
    settings_of,
)
from colbert_rag.cli.output import note, say
from colbert_rag.cli.servers import KEYS

if TYPE_CHECKING:
    from colbert_rag.server.limits import Limits

MIB = 2**20
PORT, LAST_PORT = 8000, 65535

LIMITS = {
    "running": "requests computed at the same time (8)",
    "waiting": "requests that wait; more are refused (128)",
    "body_mib": "MiB of a request (16)",
    "documents": "documents of a request (1000)",
    "queries": "queries of a request (100)",
    "characters": "characters of a text (200000)",
}
"""Options of what is refused, without `--max-`, and what each says; `Limits` has the defaults."""

DESCRIPTION = """\
Serve a model over HTTP, to any number of programs at once: one process, one
model, one cache. Clients of Cohere, Jina and vLLM work unchanged; so do
ColBERTRerank(model="http://HOST:PORT") and a browser, at the same address.

With --index, documents can be searched, added and removed, too. The index says
which model it needs."""

EPILOG = f"""\
Only this machine can reach the server, unless --host says otherwise. Keys of
clients are in the environment variable {KEYS}, which, unlike
--api-key, no other user of this machine can see.

examples:
  colbert-rag serve
  colbert-rag serve -m offline-minilm --port 8080
  colbert-rag serve --index handbook.sqlite --read-only
  {KEYS}=... colbert-rag serve --host 0.0.0.0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    group = parser.add_argument_group("listening")
    group.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    group.add_argument(
        "--port", type=parse_count, default=PORT, metavar="N", help=f"0 for a free one ({PORT})"
    )
    group.add_argument("--api-key", metavar="KEY", help=f"what clients must send; also {KEYS}")
    group.add_argument(
        "--name",
        action="append",
        metavar="NAME",
        help="what clients may call the model; can be repeated (default: the checkpoint)",
    )
    group.add_argument(
        "--access-log", action="store_true", help="log each request, but nothing that it holds"
    )
    _add_index(parser)
    _add_limits(parser)
    add_model(parser, default=None, help="hub id, folder, or offline-minilm")
    add_recipe(parser)


def _add_index(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("index")
    group.add_argument("--index", metavar="INDEX", help="file, or http://HOST:PORT/COLLECTION")
    group.add_argument("--read-only", action="store_true", help="only search it")
    add_server(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Declare what is refused; defaults are those of `Limits`."""
    group = parser.add_argument_group("limits")
    add_long_documents(group)
    group.add_argument(
        "--cache-mib", type=parse_count, metavar="N", help="MiB of documents' vectors kept (256)"
    )
    for name, text in LIMITS.items():
        option = f"--max-{name.replace('_', '-')}"
        # Nobody needs to wait; without the others, nothing at all would be accepted.
        kind = parse_count if name == "waiting" else parse_positive
        group.add_argument(option, type=kind, metavar="N", help=text)
    group.add_argument(
        "--timeout", type=parse_number, metavar="SECONDS", help="for one request (60)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal says to stop."""
    from colbert_rag.server.app import Served
    from colbert_rag.server.indexed import Indexed
    from colbert_rag.server.running import is_loopback, listen, serve, url_of
    from colbert_rag.server.service import Service

    if arguments.port > LAST_PORT:
        raise UsageError(f"--port is {arguments.port}, expected {LAST_PORT} at most")
    if not all(name.strip() for name in arguments.name or ()):
        raise UsageError("--name is empty, expected what clients call the model")
    keys, limits = _keys(arguments), _limits(arguments)
    place = None if arguments.index is None else where(arguments, arguments.index)
    if place is None and arguments.read_only:
        raise UsageError("--read-only is about an index, and there is none: name it by --index")
    with listen(arguments.host, arguments.port) as listener, ExitStack() as held:
        info = None
        if place is not None:
            info = known_info(place) if arguments.read_only else place.info()
        settings = settings_of(arguments, info)
        if arguments.cache_mib is not None:
            settings = replace(settings, document_cache=arguments.cache_mib * MIB)
        colbert = open_model(settings)
        colbert.rank("warm up", ["so that the first request need not wait for it"])
        names = tuple(arguments.name or [settings.checkpoint])
        service = Service(colbert=colbert, names=names, limits=limits)
        indexed = None
        if place is not None:
            index = held.enter_context(place.open(colbert, read_only=arguments.read_only))
            if info is None:
                note(f"note: there was no index at {place.name}; it is made now, and empty")
            indexed = Indexed(service=service, index=index, read_only=arguments.read_only)
        if not is_loopback(listener) and not keys:
            note(
                f"warning: anybody who reaches {arguments.host} can use this server: set {KEYS}, "
                "or leave --host out"
            )
        if arguments.access_log:
            _log_requests()
        url = url_of(listener)
        serve(
            Served(service, indexed),
            listener,
            keys=keys,
            access_log=arguments.access_log,
            listens=lambda: _say_where(url, keys),
        )
    note("stopped")
    return 0


def _log_requests() -> None:
    """Show what the server logs of each request, with the time."""
    log = logging.getLogger("colbert_rag.server.guard")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _say_where(url: str, keys: tuple[str, ...]) -> None:
    """Where it listens, and a command that shows that it works, without showing a key."""
    body = {"query": "red planet", "documents": ["Mars is red.", "Saturn has rings."]}
    first, comma, _ = os.environ.get(KEYS, "").partition(",")
    # Where the variable does not begin with a key, the user has to say it.
    shown = "KEY" if not first.strip() else f"${{{KEYS}%%,*}}" if comma else f"${KEYS}"
    key = f' -H "Authorization: Bearer {shown}"' if keys else ""
    serving = f"Serving at {url}"
    try:
        say(serving)
        say(
            f"Try: curl {url}/rerank{key} -H 'Content-Type: application/json' "
            f"-d '{json.dumps(body)}'"
        )
        sys.stdout.flush()
    except OSError:  # nobody reads it any more, or the disk is full: it serves all the same
        note(serving)


def _limits(arguments: argparse.Namespace) -> Limits:
    """What is refused: what was given, and the defaults of the rest.

    Raises:
        UsageError: no request would have any time.
    """
    from colbert_rag.server.limits import Limits

    given = {name: getattr(arguments, f"max_{name}") for name in LIMITS}
    given = {name: number for name, number in given.items() if number is not None}
    if "body_mib" in given:
        given["body"] = given.pop("body_mib") * MIB
        given["bodies"] = max(Limits.bodies, 4 * given["body"])
    limits = Limits(**given)
    if arguments.timeout is None:
        return limits
    if arguments.timeout <= 0:
        raise UsageError(f"--timeout is {arguments.timeout:g}, expected more than 0 seconds")
    return replace(limits, seconds=arguments.timeout)


def _keys(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Keys of clients, of which there may be several while one takes the place of another.

    Raises:
        UsageError: one holds what no header can.
    """
    given = arguments.api_key, *os.environ.get(KEYS, "").split(",")
    keys = tuple(key.strip() for key in given if key and key.strip())
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise UsageError("an API key holds characters that no key has, expected printable ASCII")
    return keys
