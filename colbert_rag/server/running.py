"""A server from its first word to its last: where it listens, what it says, how it stops."""

from __future__ import annotations

import errno
import ipaddress
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listens()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._served.scheduler.stop()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address, which answers nobody yet.

    It is taken before a model is loaded, so that an address that is in use shows at once.

    Raises:
        OSError: the address is in use, is none of this machine's, or is no address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        advice = ", use another --port" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}{advice}") from error
    return listener


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
"""How programs on this machine call it. A page of another site can have its own name lead here, and
would then be taken for ours by the browser; but it cannot change that name, which comes as Host."""


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
    """
    limits = served.service.limits
    config = uvicorn.Config(
        make_app(
            served,
            keys=keys,
            hosts=LOCAL if is_loopback(listener) and not keys else (),
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
    try:
        _Server(config, served, listens).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
