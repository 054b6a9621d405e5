"""A server from its first word to its last: where it listens, what it says, how it stops."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from prometheus_client import disable_created_metrics

from colbert_rag.server.app import Served, make_app

HEADER_BYTES = 64 * 1024
"""Bytes of the line and the headers of a request."""

IDLE_SECONDS = 75
"""How long a connection may be idle: longer than clients keep one, since who sends a request at the
moment at which the other side hangs up gets an error that is nobody's fault."""


class _Server(uvicorn.Server):
    """uvicorn's, which says when it listens, and tells our queue when it is to stop."""

    def __init__(
        self, config: uvicorn.Config, served: Served, listens: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._served, self._listens = served, listens
        self.failure: OSError | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another server, which bound it before, listens by now
            # Not raised here: what runs the application would be cut off, and write a traceback.
            self.failure = error
            self.should_exit = True
            await self.lifespan.shutdown()
        else:
            self._listens()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._served.scheduler.stop()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves all of this to the end of the loop, and its traceback
            left = list(self.server_state.tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self.lifespan.shutdown()


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address, which answers nobody yet.

    It is taken before a model is loaded, so that an address that is in use shows at once.

    Raises:
        OSError: the address is in use, is none of this machine's, or is no address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OSError(
            f"--host is {host!r}, which names no address here ({error}); expected one of this "
            "machine, such as 127.0.0.1"
        ) from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(_cannot(error, host, port)) from error
    return listener


def _cannot(error: OSError, host: str, port: int) -> str:
    advice = ", use another --port" if error.errno == errno.EADDRINUSE else ""
    # Of an event loop, `strerror` is a sentence around it.
    reason = os.strerror(error.errno) if error.errno else error
    return f"cannot listen at {host}:{port}: {reason}{advice}"


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine finds it."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


LOCAL = ("localhost", "127.0.0.1", "::1")
"""How programs on this machine call it, beside the address at which it listens."""


def known_as(listener: socket.socket) -> tuple[str, ...]:
    """The names that clients may call it without a key; none where any will do.

    A page of another site can have its own name lead to this machine, and would then be taken for
    ours by the browser; but it cannot change that name, which comes as Host.
    """
    return (*LOCAL, str(listener.getsockname()[0])) if is_loopback(listener) else ()


def serve(
    served: Served,
    listener: socket.socket,
    *,
    keys: tuple[str, ...] = (),
    access_log: bool = False,
    listens: Callable[[], object] = lambda: None,
) -> None:
    """Serve until a signal says to stop; then finish what runs, and refuse the rest.

    Args:
        served: What answers.
        listener: Where.
        keys: Any of which opens it.
        access_log: Log a line for each request.
        listens: Called once clients can connect.

    Raises:
        OSError: another server that started at the same moment listens there.
    """
    limits = served.service.limits
    config = uvicorn.Config(
        make_app(
            served,
            keys=keys,
            hosts=() if keys else known_as(listener),
            access_log=access_log,
        ),
        log_config=None,
        log_level="warning",
        access_log=False,  # it writes whole paths, which hold ids of documents
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=limits.connections,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=max(int(limits.stop_seconds), 1),
        h11_max_incomplete_event_size=HEADER_BYTES,
    )

    def ended(number: int, frame: FrameType | None) -> None:
        """Do nothing: uvicorn raises its signal again when all is done, and we end by ourselves."""

    disable_created_metrics()  # type: ignore[no-untyped-call]  # of each count
    before = signal.signal(signal.SIGTERM, ended)
    server = _Server(config, served, listens)
    host, port = listener.getsockname()[:2]
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    if server.failure is not None:
        raise OSError(_cannot(server.failure, host, port)) from server.failure
