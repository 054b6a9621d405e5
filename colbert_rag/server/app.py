"""The application: which path is answered by what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.convertors import StringConvertor, register_url_convertor

from colbert_rag import __version__
from colbert_rag.remote import wire
from colbert_rag.server.bodies import Deletion, Documents, Pooling, Rerank, Score, Search
from colbert_rag.server.errors import add_handlers
from colbert_rag.server.guard import Guard
from colbert_rag.server.indexed import Indexed
from colbert_rag.server.limits import Limits
from colbert_rag.server.metrics import Metrics
from colbert_rag.server.page import add_page
from colbert_rag.server.schedule import Scheduler
from colbert_rag.server.service import Service


class _Id(StringConvertor):
    """All that is left of a path: starlette's own `path` ends at a newline, which an id may hold.

    Greedy, so that a last newline is part of the id and not what `$` leaves out.
    """

    regex = r"[\s\S]*"


register_url_convertor("id", _Id())


class Served:
    """A service, and who decides when it computes.

    Attributes:
        service: What answers.
        indexed: What answers from an index, if there is one.
        scheduler: When.
        metrics: What is counted.
    """

    def __init__(self, service: Service, indexed: Indexed | None = None) -> None:
        """Join them; nothing runs yet."""
        self.service, self.indexed = service, indexed
        self.scheduler = Scheduler(service.limits, batch_tokens=service.batch_tokens)
        self.metrics = Metrics(service.colbert, self.scheduler)

    async def answer(
        self,
        request: Request,
        work: Callable[[], Mapping[str, Any]],
        *,
        texts: Sequence[str] = (),
        writes: bool = False,
    ) -> Response:
        """Compute an answer when there is room, and not for a client that is gone.

        Args:
            request: The request, whose body has been read.
            work: What to compute.
            texts: What it may have to encode.
            writes: Whether it changes the index.
        """
        self.metrics.documents.inc(len(texts))

        async def hung_up() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        body = await self.scheduler.run(
            lambda: as_json(work()),
            tokens=self.service.tokens(texts),
            hung_up=hung_up,
            writes=writes,
        )
        return Response(body, media_type="application/json")


def as_json(value: Mapping[str, Any]) -> bytes:
    """JSON, made in the thread that computed: vectors can be many megabytes."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a character that a client sent, escaped as it came
        return json.dumps(value, allow_nan=False).encode()


def make_app(
    served: Served,
    *,
    keys: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    access_log: bool = False,
) -> FastAPI:
    """The application.

    Args:
        served: What answers.
        keys: As of `Guard`.
        hosts: As of `Guard`.
        access_log: As of `Guard`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        served.scheduler.close()

    limits: Limits = served.service.limits
    app = FastAPI(
        title="colbert-rag",
        version=__version__,
        lifespan=lifespan,
        # Its pages load scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        Guard,
        limits=limits,
        metrics=served.metrics,
        keys=keys,
        hosts=hosts,
        access_log=access_log,
    )
    add_handlers(app)
    _add_state(app, served)
    _add_model(app, served)
    add_page(app, index=served.indexed is not None, locked=bool(keys))
    if served.indexed is not None:
        _add_index(app, served, served.indexed)
    return app


def _add_state(app: FastAPI, served: Served) -> None:
    @app.head(wire.HEALTH, include_in_schema=False)
    @app.get(wire.HEALTH)
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.head(wire.READY, include_in_schema=False)
    @app.get(wire.READY)
    async def ready() -> JSONResponse:
        """Whether it takes requests: not while it stops."""
        stopping = served.scheduler.stopping
        return JSONResponse(
            {"status": "stopping" if stopping else "ready"}, 503 if stopping else 200
        )

    @app.get(wire.METRICS)
    async def metrics() -> Response:
        """Counts, for Prometheus."""
        return Response(served.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get(wire.MODELS)
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return served.service.models()


def _add_model(app: FastAPI, served: Served) -> None:
    service = served.service

    async def rerank(body: Rerank, request: Request) -> Response:
        """Order documents by how well they answer a query."""
        texts = service.check_rerank(body)
        return await served.answer(request, lambda: service.rerank(body), texts=texts)

    async def score(body: Score, request: Request) -> Response:
        """Score pairs of a query and a document."""
        texts = service.check_score(body)
        return await served.answer(request, lambda: service.score(body), texts=texts)

    async def pooling(body: Pooling, request: Request) -> Response:
        """Give the token vectors of texts."""
        texts = service.check_pooling(body)
        return await served.answer(request, lambda: service.pooling(body), texts=texts)

    async def rerank_with_texts(body: Rerank, request: Request) -> Response:
        """Order documents by how well they answer a query, and give their texts back."""
        if body.return_documents is None:
            body.return_documents = True
        return await rerank(body, request)

    # Clients of Jina and vLLM read the texts without having asked for them, and those of Cohere's
    # second interface have no place for them.
    for path in wire.RERANK:
        app.post(path)(rerank if path == "/v2/rerank" else rerank_with_texts)
    for path in ("/score", wire.SCORE):
        app.post(path)(score)
    app.post(wire.POOLING)(pooling)


def _add_index(app: FastAPI, served: Served, indexed: Indexed) -> None:
    @app.post(wire.SEARCH)
    async def search(body: Search, request: Request) -> Response:
        """Find the documents that answer a query best."""
        queries = indexed.check_search(body)
        return await served.answer(request, lambda: indexed.search(body), texts=queries)

    @app.post(wire.DOCUMENTS)
    async def add(body: Documents, request: Request) -> Response:
        """Store documents, in place of those of the same ids."""
        # In a thread: metadata of megabytes take seconds, in which nobody else would be answered.
        documents = await run_in_threadpool(indexed.read, body)
        texts = [document.text for document in documents]
        return await served.answer(
            request, lambda: indexed.add(documents), texts=texts, writes=True
        )

    @app.delete(wire.DOCUMENTS)
    async def delete(body: Deletion, request: Request) -> Response:
        """Remove documents."""
        indexed.check_delete(body)
        return await served.answer(request, lambda: indexed.delete(body), writes=True)

    @app.get(f"{wire.DOCUMENTS}/{{name:id}}")
    async def get(name: str, request: Request) -> Response:
        """Give one document."""
        return await served.answer(request, lambda: indexed.get(name))

    @app.get(wire.INDEX)
    async def describe(request: Request) -> Response:
        """Say which model made the index, and how much it holds."""
        return await served.answer(request, indexed.describe)
