"""What every request passes on its way in and out, whatever it asks for."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from colbert_rag.server.errors import ApiError, as_api_error
from colbert_rag.server.limits import Limits
from colbert_rag.server.metrics import Metrics
from colbert_rag.server.schedule import AbandonedError, stopping

logger = logging.getLogger(__name__)

OPEN = ("/", "/page.js", "/page.css", "/health", "/ready")
"""Paths that need no key: they hold nothing of anybody's."""

HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[0-9a-z._-]+?)\.?)(?::[0-9]*)?")
"""The header Host: a name, whose last dot does not count, or an address, and perhaps a port."""

SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Checks keys, bounds what is read and held, counts, and answers what nobody else caught."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        keys: Sequence[str] = (),
        hosts: Sequence[str] = (),
        access_log: bool = False,
    ) -> None:
        """Stand before an application.

        Args:
            app: The application.
            limits: Of bodies.
            metrics: Gets the counts.
            keys: Any of which opens the server; with none, it is open.
            hosts: Names that clients may know the server by; with none, any.
            access_log: Log a line for each request: its route, never what was sent.
        """
        self._app, self._limits, self._metrics = app, limits, metrics
        self._keys = [key.encode() for key in keys]
        self._hosts, self._access_log = hosts, access_log
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *SAFE_HEADERS]}
            await send(message)

        try:
            await self._guarded(scope, receive, sending)
        except AbandonedError:
            self._metrics.abandoned.inc()
        except asyncio.CancelledError:  # it stops without waiting for what runs
            if not status:
                await stopping().response()(scope, receive, sending)
        except Exception as error:
            failure = as_api_error(error)
            if not status:
                await failure.response()(scope, receive, sending)
        finally:
            self._count(scope, status, time.perf_counter() - begun)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN and not self._admits(headers):
            raise ApiError(401, "the API key is missing or wrong: send Authorization: Bearer KEY")
        if not self._is_meant(headers):
            raise ApiError(
                403,
                "the header Host names another machine: without a key, this server is for programs "
                "on its own machine, which call it localhost",
                code="wrong_host",
            )
        size = self._size(headers)
        if size > self._limits.body:
            raise self._too_large()
        if self._held + size > self._limits.bodies:
            raise ApiError(
                429,
                f"the server holds {self._held >> 20} MiB of requests already; try again",
                code="bodies_full",
                retry_after=1,
            )
        self._held += size
        try:
            await self._app(scope, self._bounded(receive), send)
        finally:
            self._held -= size

    def _admits(self, headers: Headers) -> bool:
        """Whether the key is one of ours; each is compared, in a time that tells nothing."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = ""
        found = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        return any(found) or not self._keys

    def _is_meant(self, headers: Headers) -> bool:
        """Whether the client knows this server by a name that it has."""
        if not self._hosts:
            return True
        # Not what `urlsplit` makes of it, which sees localhost in `evil@localhost`, too.
        named = HOST.fullmatch(headers.get("host", "").lower())
        return named is not None and (named["name"] or named["address"]) in self._hosts

    def _size(self, headers: Headers) -> int:
        """Bytes that a body may take: what its sender says, else all that is allowed."""
        said = headers.get("content-length", "")
        if said.isdecimal() and len(said) < 19:
            return int(said)
        return self._limits.body if "transfer-encoding" in headers else 0

    def _too_large(self) -> HTTPException:
        # No `ApiError`: of what is raised while it reads a body, FastAPI lets nothing else through.
        return HTTPException(
            413,
            f"the body is larger than {self._limits.body >> 20} MiB: send fewer or shorter texts "
            "(--max-body-mib)",
        )

    def _bounded(self, receive: Receive) -> Receive:
        """The same messages, as long as a body is neither too long nor too slow."""
        deadline = time.monotonic() + self._limits.body_seconds
        complete, size = False, 0

        async def receiving() -> Message:
            nonlocal complete, size
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(max(deadline - time.monotonic(), 0.0)):
                    message = await receive()
            except TimeoutError as error:
                seconds = f"{self._limits.body_seconds:g}"
                raise HTTPException(
                    408, f"the body did not come within {seconds} seconds"
                ) from error
            complete = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self._limits.body:
                raise self._too_large()
            return message

        return receiving

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # The template of the path, since a path may hold the id of somebody's document.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status or "none").inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._access_log:
            logger.info("%s %s %s %.3f s", scope["method"], route, status or "hung up", seconds)
