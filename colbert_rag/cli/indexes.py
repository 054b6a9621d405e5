"""Where an index is: in a file, or in a collection on a Qdrant server."""

from __future__ import annotations

import argparse
import errno
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from colbert_rag.cli.destination import STDOUT, is_stdout
from colbert_rag.cli.nearby import nearby
from colbert_rag.cli.options import UsageError, settings_of
from colbert_rag.cli.servers import KEYS, key_in, note_unencrypted

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from colbert_rag.codings import VectorCoding
    from colbert_rag.colbert import ColBERT
    from colbert_rag.index import Index, IndexInfo
    from colbert_rag.settings import Settings

PLACES = "file, http://HOST:PORT of a server, or http://HOST:PORT/COLLECTION of Qdrant"
"""Where an index may be that is searched or described, for a help text."""

API_KEY = "QDRANT_API_KEY"
"""The environment variable that holds the key of a server unless another one is named."""

SECONDS = 60
"""How long a server may take for one request; a write waits until it is on disk."""

SQLITE = b"SQLite format 3\0"
"""How the file of an index begins."""

MEMORY = ":memory:"

RUNNING = ("device", "dtype", "batch_tokens", "cache_folder", "local_files_only", "allow_pickle")
"""Options of a model that change none of its vectors."""


class Where(Protocol):
    """The place of an index, whether there is one yet or not."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def info(self) -> IndexInfo | None:
        """Which model made the index; None where there is none yet."""
        ...

    def open(
        self,
        colbert: ColBERT | None = None,
        *,
        like: IndexInfo | None = None,
        token_pooling: float | None = None,
        vectors: VectorCoding | None = None,
        read_only: bool = False,
    ) -> AbstractContextManager[Index]:
        """Open it, or make it, as the classes of `colbert_rag.index` do."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A `LocalIndex`."""

    name: str

    def info(self) -> IndexInfo | None:
        """Which model made the index; None where there is no file, or one without an index yet."""
        from colbert_rag.index import LocalIndex

        try:
            with LocalIndex(self.name, read_only=True) as index:
                return index.info
        except FileNotFoundError:
            return None

    @contextmanager
    def open(
        self,
        colbert: ColBERT | None = None,
        *,
        like: IndexInfo | None = None,
        token_pooling: float | None = None,
        vectors: VectorCoding | None = None,
        read_only: bool = False,
    ) -> Iterator[Index]:
        """Open the file, or make it."""
        from colbert_rag.index import LocalIndex

        with LocalIndex(
            self.name,
            colbert,
            like=like,
            token_pooling=token_pooling,
            vectors=vectors,
            read_only=read_only,
        ) as index:
            yield index


@dataclass(frozen=True, slots=True)
class Server:
    """A `QdrantIndex`."""

    url: str
    collection: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The URL of the collection."""
        return f"{self.url}/{self.collection}"

    def info(self) -> IndexInfo | None:
        """Which model made the collection; None where there is none."""
        with self._client() as client:
            if not client.collection_exists(self.collection):
                return None
            from colbert_rag.index import QdrantIndex

            return QdrantIndex(client, self.collection).info

    @contextmanager
    def open(
        self,
        colbert: ColBERT | None = None,
        *,
        like: IndexInfo | None = None,
        token_pooling: float | None = None,
        vectors: VectorCoding | None = None,
        read_only: bool = False,
    ) -> Iterator[Index]:
        """Open the collection, or make it; whether it may be written to is for the key to say.

        Raises:
            UsageError: `vectors` is given, and a server has no choice of them.
        """
        if vectors is not None:
            raise UsageError("--vectors is for files: a server stores float16")
        from colbert_rag.index import QdrantIndex

        with self._client() as client:
            yield QdrantIndex(
                client, self.collection, colbert, like=like, token_pooling=token_pooling
            )

    @contextmanager
    def _client(self) -> Iterator[QdrantClient]:
        """A connection whose errors are ours."""
        from colbert_rag.index.qdrant.translation import translated

        client = connect(self.url, self.api_key)
        try:
            yield translated(client)
        finally:
            client.close()


def connect(url: str, api_key: str | None) -> QdrantClient:
    """A client for a server; nothing is sent yet."""
    from qdrant_client import QdrantClient

    with warnings.catch_warnings():
        # Said in our words, below.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        client = QdrantClient(url=url, api_key=api_key, timeout=SECONDS, check_compatibility=False)
    note_unencrypted(url, api_key)
    return client


def add_server(parser: argparse.ArgumentParser) -> None:
    """Declare how an index on a server is reached."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--collection", metavar="NAME", help="of Qdrant, instead of as the last part of the URL"
    )
    group.add_argument(
        "--api-key-env",
        metavar="VAR",
        help=f"environment variable that holds the API key (default: {API_KEY}, or "
        f"{KEYS} for colbert-rag serve)",
    )


def where(arguments: argparse.Namespace, named: str) -> Where:
    """The place that is named: a URL is a server, anything else a file.

    Raises:
        UsageError: it is neither, or options for a server go with a file.
    """
    if "://" in named:
        return _server(arguments, named)
    if arguments.collection is not None or arguments.api_key_env is not None:
        raise UsageError(
            f"--collection and --api-key-env are for a Qdrant server, and {named!r} is a file: "
            "a server is named by its URL, such as http://localhost:6333"
        )
    if named in ("", MEMORY, STDOUT):
        raise UsageError(f"the index is {named!r}, expected a file or the URL of a server")
    if is_stdout(named):  # what is said would be written over the index
        raise UsageError(f"{named} is standard output, expected the file of an index")
    if Path(named).exists() and not Path(named).is_file():  # a pipe would be waited for
        kind = "a folder" if Path(named).is_dir() else "no regular file"
        raise UsageError(f"{named} is {kind}, expected the file of an index")
    return File(named)


def known_info(place: Where) -> IndexInfo:
    """Which model made an index that must be there.

    Raises:
        FileNotFoundError: it is not.
    """
    info = place.info()
    if info is None:
        near = nearby(place.name, is_index) if isinstance(place, File) else ""
        meant = f"did you mean {near!r}? Or make one" if near else "make one"
        advice = f"{meant} with: colbert-rag index FILE --to {place.name}"
        raise FileNotFoundError(errno.ENOENT, f"there is no index here; {advice}", place.name)
    return info


def own_settings(arguments: argparse.Namespace, info: IndexInfo) -> Settings:
    """The model that made an index, where options say how another one reads that ranks as well.

    Raises:
        UsageError: an option is out of range.
    """
    running = {name: getattr(arguments, name) for name in RUNNING}
    return settings_of(argparse.Namespace(checkpoint=None, **running), info)


def is_index(path: str | Path) -> bool:
    """Whether a path is the file of an index rather than of documents."""
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(SQLITE)) == SQLITE


def _server(arguments: argparse.Namespace, url: str) -> Server:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"the URL of the index is not valid: {error}") from error
    # Not shown: what stands there is likely to be a secret.
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            "the URL of the index holds a password or parameters, which end up in logs: give the "
            f"API key in the environment variable {API_KEY}"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{url!r} is no server: expected http://HOST:PORT/COLLECTION")
    base, collection = url.rstrip("/"), arguments.collection
    if collection is None and parts.path.strip("/"):
        base, _, last = base.rpartition("/")
        collection = unquote(last)
    if not collection:
        raise UsageError(
            f"{url} names no collection: add it, as in {base}/NAME, or --collection. The index of "
            "colbert-rag serve is for search and info"
        )
    return Server(base, collection, _api_key(arguments.api_key_env))


def _api_key(variable: str | None) -> str | None:
    key = key_in(variable, API_KEY)
    # A client's own error would show the key.
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(f"the API key in {variable or API_KEY} holds characters that no key has")
    return key or None
