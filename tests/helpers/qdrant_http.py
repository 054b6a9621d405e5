"""Qdrant's REST interface over qdrant-client's own in-memory form, and a record of what was asked.

It stands between `QdrantIndex` and a socket where no server can be had: requests are really written
as JSON, sent with the API key, and read back. What it answers is the vendor's emulation.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

API_KEY = "secret"


@dataclass
class Request:
    method: str
    path: str
    size: int
    body: dict[str, Any]


@dataclass
class Server:
    url: str
    requests: list[Request] = field(default_factory=list)

    def sent(self, method: str, path: str) -> list[Request]:
        """Requests whose path below the collection is `path`."""
        return [
            asked
            for asked in self.requests
            if asked.method == method and asked.path.split("/", 3)[3:] == ([path] if path else [])
        ]


@contextmanager
def serve() -> Iterator[Server]:
    """A server on a free port of this machine."""
    store = QdrantClient(":memory:")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size) or b"null") or {}
            path = self.path.split("?")[0]
            server.requests.append(Request(self.command, path, size, body))
            if self.headers.get("api-key") != API_KEY:
                self.answer(403, {"status": {"error": "forbidden"}})
                return
            with lock:
                result = _answer(store, self.command, path, body)
            self.answer(200, {"result": result, "status": "ok", "time": 0.0})

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do  # noqa: N815

        def answer(self, code: int, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
        store.close()


def _answer(store: QdrantClient, method: str, path: str, body: dict[str, Any]) -> object:
    name, action = re.fullmatch(r"/collections/([^/]+)/?(.*)", path).groups()
    match method, action:
        case "GET", "exists":
            return {"exists": store.collection_exists(name)}
        case "GET", "":
            return _json(store.get_collection(name))
        case "DELETE", "":
            return store.delete_collection(name)
        case "PUT", "":
            asked = models.CreateCollection.model_validate(body)
            return store.create_collection(
                name,
                vectors_config=asked.vectors,
                sparse_vectors_config=asked.sparse_vectors,
                metadata=asked.metadata,
            )
        case "PATCH", "":
            return store.update_collection(name, metadata=body["metadata"])
        case "PUT", "index":
            return _done()
        case "PUT", "points":
            return _json(store.upsert(name, models.PointsList.model_validate(body).points))
        case "POST", "points":
            return _json(
                store.retrieve(
                    name,
                    body["ids"],
                    with_payload=body["with_payload"],
                    with_vectors=body["with_vector"],
                )
            )
        case "POST", "points/delete":
            kind = models.FilterSelector if "filter" in body else models.PointIdsList
            return _json(store.delete(name, kind.model_validate(body)))
        case "POST", "points/batch":
            operations = models.UpdateOperations.model_validate(body).operations
            return _json(store.batch_update_points(name, operations))
        case "POST", "points/count":
            asked = models.CountRequest.model_validate(body)
            return _json(store.count(name, count_filter=asked.filter, exact=True))
        case "POST", "points/scroll":
            asked = models.ScrollRequest.model_validate(body)
            points, following = store.scroll(
                name,
                scroll_filter=asked.filter,
                limit=asked.limit,
                offset=asked.offset,
                with_payload=asked.with_payload,
                with_vectors=asked.with_vector,
            )
            return {"points": _json(points), "next_page_offset": following}
        case "POST", "points/query/batch":
            asked = models.QueryRequestBatch.model_validate(body)
            return _json(store.query_batch_points(name, asked.searches))
        case _:
            raise AssertionError(f"no answer to {method} {path}")


def _json(value: object) -> object:
    return TypeAdapter(Any).dump_python(value, mode="json")


def _done() -> dict[str, object]:
    return {"operation_id": 0, "status": "completed"}
