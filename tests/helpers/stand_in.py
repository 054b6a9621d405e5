"""A server that does what a test says: answers of any kind, slow ones, none at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Answer:
    """What to send back; `wire` is called instead, to write to the connection what it likes."""

    body: object = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wire: Callable[[Any], object] | None = None


@dataclass
class StandIn:
    """A server, and what it was asked.

    Attributes:
        url: Where.
        asked: Every request.
        connections: How many connections were opened.
    """

    url: str
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


@contextmanager
def standing_in(answer: Callable[[Asked], Answer]) -> Iterator[StandIn]:
    """A server on a free port of this machine that answers as it is told to."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            server.connections += 1

        def do(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size) or b"null")
            asked = Asked(self.command, self.path, dict(self.headers), body)
            server.asked.append(asked)
            found = answer(asked)
            if found.wire is not None:
                self.close_connection = True
                found.wire(self.wfile)
                return
            data = found.body if isinstance(found.body, bytes) else json.dumps(found.body).encode()
            self.send_response(found.status)
            for name, value in {"Content-Type": "application/json", **found.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hung up is what some tests are about

    http = Server(("127.0.0.1", 0), Handler)
    server = StandIn(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def refused(status: int, message: str, *, code: str = "", **headers: str) -> Answer:
    """An error as a server of ours gives it."""
    error = {"message": message, "type": "server_error", "code": code, "param": None}
    body = {"error": error, "message": message, "detail": message}
    return Answer(body, status, {name.replace("_", "-"): value for name, value in headers.items()})
