"""Connections that are kept open: one client for each server, in each process and event loop."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from colbert_rag.errors import MissingExtraError
from colbert_rag.forks import renewed_after_fork
from colbert_rag.registry import Registry
from colbert_rag.remote.address import is_loopback

if TYPE_CHECKING:
    import httpx2

_KEPT_OPEN = 4.0
"""Seconds that an idle connection is kept: less than uvicorn's 5, or a request may be sent into one
that the server is just closing."""


def http() -> ModuleType:
    """The HTTP library, which only those who ask a server need.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import httpx2
    except ImportError as error:
        raise MissingExtraError("httpx2", extra="remote") from error
    return httpx2


_CLIENTS: Registry[str, httpx2.Client] = Registry()


@atexit.register
def _close_all() -> None:
    """Close what the process kept open, or Python warns of each socket as it ends.

    Of the registry and not of each client: a forked child holds none of its parent's. Whoever asks
    later still, in an exit handler of its own, gets a new one.
    """
    for client in _CLIENTS.clear():
        client.close()


def client_of(origin: str) -> httpx2.Client:
    """The process's one client of a server; any number of threads may use it."""
    return _CLIENTS.get(origin, lambda: http().Client(**_options(origin)))


def async_client_of(origin: str) -> httpx2.AsyncClient:
    """The running event loop's one client of a server."""
    return _LOOPS.client_of(origin)


_Held: TypeAlias = "tuple[httpx2.AsyncClient, AsyncGenerator[None, None]]"


class _Loops:
    """Clients by event loop: a connection belongs to the loop that opened it.

    Each is held by an asynchronous generator, which a loop closes before it ends: `asyncio.run`
    leaves no connection open.
    """

    def __init__(self) -> None:
        self.renew()
        renewed_after_fork(self)

    def renew(self) -> None:
        """Forget everything in a forked child, whose loops are others."""
        self._held: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Held]]
        self._held = weakref.WeakKeyDictionary()
        self._guard = threading.Lock()

    def client_of(self, origin: str) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._guard:
            if loop not in self._held:
                # A loop that ended without closing its generators is held by its own connections.
                for ended in [other for other in self._held if other.is_closed()]:
                    del self._held[ended]
            own = self._held.setdefault(loop, {})
            if origin not in own:
                client = http().AsyncClient(**_options(origin))
                own[origin] = client, _started(self._until_the_end(loop, origin, client))
            return own[origin][0]

    async def _until_the_end(
        self, loop: asyncio.AbstractEventLoop, origin: str, client: httpx2.AsyncClient
    ) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            with self._guard:
                own = self._held.get(loop, {})
                own.pop(origin, None)
                if not own:
                    self._held.pop(loop, None)
            await client.aclose()


_LOOPS = _Loops()


def _started(generator: AsyncGenerator[None, None]) -> AsyncGenerator[None, None]:
    """The generator at its `yield`; only one that has begun is closed by its loop."""
    with contextlib.suppress(StopIteration):
        generator.__anext__().send(None)
    return generator


def _options(origin: str) -> dict[str, Any]:
    library = http()
    return {
        # A proxy of the environment cannot reach this machine, and must not see its texts.
        "trust_env": not is_loopback(origin),
        # A redirect could lead texts and key to another server.
        "follow_redirects": False,
        "verify": _trusted(),
        "limits": library.Limits(
            max_connections=100, max_keepalive_connections=20, keepalive_expiry=_KEPT_OPEN
        ),
    }


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates to trust, read once: it takes longer than a request."""
    context: ssl.SSLContext = http().create_ssl_context()
    return context
