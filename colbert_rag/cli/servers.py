"""A model or an index behind `colbert-rag serve`, named by its address.

Nothing here, nor what it brings, imports torch: who asks a server need not wait for that.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from colbert_rag.cli.options import UsageError, counted_truncation, open_model, settings_of
from colbert_rag.cli.output import note
from colbert_rag.cli.spelling import SPELLINGS
from colbert_rag.errors import ServerAnswerError
from colbert_rag.inputs import is_address
from colbert_rag.settings import Settings

if TYPE_CHECKING:
    from colbert_rag.colbert import ColBERT
    from colbert_rag.remote import RemoteColBERT, RemoteIndex

KEYS = "COLBERT_RAG_API_KEY"
"""The environment variable with the key to send; `colbert-rag serve` reads those of its clients
from it, with commas between them."""

SECONDS = 300
"""How long a request may take: longer than a server lets it, which then is asked for less."""

LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ModelHere:
    """A checkpoint that is opened in this process."""

    settings: Settings

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.settings.checkpoint

    @contextmanager
    def opened(self, advice: str) -> Iterator[ColBERT]:
        """Open it; afterwards, say how many texts were cut, and `advice` about them."""
        colbert = open_model(self.settings)
        with counted_truncation(colbert, advice):
            yield colbert


@dataclass(frozen=True, slots=True)
class ModelThere:
    """A model behind a server, which logs there what it cuts."""

    remote: RemoteColBERT

    @property
    def name(self) -> str:
        """The address."""
        return self.remote.address

    @contextmanager
    def opened(self, advice: str) -> Iterator[RemoteColBERT]:
        """The model; nothing is asked yet."""
        yield self.remote


def chosen_model(arguments: argparse.Namespace, *, remember: bool = True) -> ModelHere | ModelThere:
    """The model of `--model`: a checkpoint, or one behind a server.

    Args:
        arguments: As parsed.
        remember: Whether a model that is opened here keeps the vectors of documents.

    Raises:
        MissingExtraError: a server cannot be asked without the extra `remote`.
        UsageError: an option is out of range, or is for the server to decide.
    """
    if not is_address(arguments.checkpoint):
        settings = settings_of(arguments)
        return ModelHere(settings if remember else replace(settings, document_cache=None))
    refuse_options(arguments, "--model is the address of a server")
    from colbert_rag.remote import RemoteColBERT

    try:
        remote = RemoteColBERT(arguments.checkpoint, timeout=SECONDS)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error
    note_unencrypted(remote.address, os.environ.get(KEYS))
    return ModelThere(remote)


def refuse_options(arguments: argparse.Namespace, why: str) -> None:
    """Refuse options of a model that is not opened here.

    Raises:
        UsageError: one is given.
    """
    for option in fields(Settings):
        given = getattr(arguments, option.name, option.default)
        if option.name != "checkpoint" and given != option.default:
            raise UsageError(
                f"{SPELLINGS[option.name]} is for a model that is opened here, and {why}, which "
                "decides that: leave it out, and start the server with it"
            )


def is_served(arguments: argparse.Namespace, named: str) -> bool:
    """Whether an index is that of `colbert-rag serve`: a URL that names no collection of Qdrant."""
    if not is_address(named) or arguments.collection is not None:
        return False
    _, _, path = named.partition("://")[2].partition("/")
    return not path.strip("/")


def served(arguments: argparse.Namespace, named: str) -> AbstractContextManager[RemoteIndex]:
    """The index behind a server; nothing is asked yet.

    Raises:
        MissingExtraError: a server cannot be asked without the extra `remote`.
        UsageError: it is no address, or an option is for the server to decide.
    """
    if getattr(arguments, "checkpoint", None) is not None:
        raise UsageError(f"{named} has a model of its own: leave out --model")
    refuse_options(arguments, f"{named} has its own")
    from colbert_rag.remote import RemoteIndex

    key = key_in(arguments.api_key_env, KEYS)
    try:
        own = key if arguments.api_key_env else None  # the client looks for the other by itself
        index = RemoteIndex(named, api_key=own, timeout=SECONDS)
    except ValueError as error:
        raise UsageError(f"INDEX: {error}") from error
    note_unencrypted(index.name, key)
    return _asked(index)


@contextmanager
def _asked(index: RemoteIndex) -> Iterator[RemoteIndex]:
    try:
        yield index
    except ServerAnswerError as error:  # as of Qdrant, where the collection was forgotten
        raise ServerAnswerError(
            f"{error}. A collection of Qdrant is named as in {index.name}/NAME"
        ) from error


def key_in(variable: str | None, default: str) -> str | None:
    """The key in the environment variable of `--api-key-env`, or else in a default one.

    Raises:
        UsageError: a variable is named, and holds none.
    """
    key = os.environ.get(variable or default)
    if variable is not None and not key:
        raise UsageError(f"the environment variable {variable} of --api-key-env is not set")
    return key


def note_unencrypted(url: str, key: str | None) -> None:
    """Say so where a key travels so that others can read it."""
    to = urlsplit(url)
    if key and to.scheme == "http" and to.hostname not in LOCAL:
        note(f"note: the API key is sent to {to.hostname} unencrypted; https:// would protect it")
