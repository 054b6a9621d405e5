"""Many clients at once: one server, four workers with a model each, and sentence-transformers."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from benchmarks import checkpoints, corpora
from benchmarks.machine import ROOT, installed
from benchmarks.report import Plan, Table
from colbert_rag import ColBERT

CLIENTS, DOCUMENTS, WORKERS = 32, 50, 4
ROUNDS = 2
"""Requests of each client, where documents come again."""

POOL = 400
"""Documents that the requests draw from, where they come again."""

SIZES = ((1, 1), (1, 2), (2, 1))
"""Processes, and threads of each, whose speed and memory are compared."""

LIMIT = 900.0
TOLERANCE = 1e-4
"""Of a mean similarity, between a server and the model in this process."""

ST = """
import sys, threading
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import MultiVectorEncoder

folder, port = sys.argv[1:]
model = MultiVectorEncoder(folder, device="cpu", local_files_only=True)
lock = threading.Lock()  # two calls at once would cut each other's texts
app = FastAPI()

class Rerank(BaseModel):
    query: str
    documents: list[str]

@app.get("/health")
def health():
    return {}

@app.post("/rerank")
def rerank(body: Rerank):
    with lock:
        query = model.encode_query([body.query], show_progress_bar=False)
        documents = model.encode_document(body.documents, show_progress_bar=False)
    scores = (model.similarity(query, documents)[0] / len(query[0])).tolist()
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return {"results": [{"index": i, "relevance_score": scores[i]} for i in order]}

uvicorn.run(app, port=int(port), log_level="error")
"""
"""What a user writes who has sentence-transformers and FastAPI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One way to serve.

    Attributes:
        name: What tables call it.
        package: What must be installed.
        processes: How many of them.
        ours: Whether they are our servers.
        threads: Of each process; 0 for what the machine gives it.
    """

    name: str
    package: str
    processes: int = 1
    ours: bool = True
    threads: int = 0


ONE = Kind(name="colbert_rag serve, one process", package="uvicorn")
FOUR = Kind(name=f"{WORKERS} workers, a model each", package="uvicorn", processes=WORKERS)
KINDS = (
    ONE,
    FOUR,
    Kind(name="sentence-transformers in FastAPI", package="sentence-transformers", ours=False),
)


@dataclass(slots=True)
class Load:
    """What came of many requests.

    Attributes:
        seconds: Of each.
        wall: Of all of them.
        errors: Those without an answer.
        wrong: Answers whose order or scores are not the model's.
        memory: Bytes of all processes, what they share counted once.
    """

    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0
    errors: int = 0
    wrong: int = 0
    memory: int = 0


Request = tuple[str, list[str]]


def run(plan: Plan) -> Iterator[Table]:
    """Documents that no two requests share, documents that come again, and short beside long."""
    folder = checkpoints.build(plan.checkpoint)
    tokenizer = checkpoints.open_tokenizer(folder)
    clients, size = plan.size(CLIENTS, 2), plan.size(DOCUMENTS, 3)
    questions = corpora.questions(clients)
    fresh = corpora.documents(clients * size, tokenizer)
    own = [[(questions[i], fresh[i * size : (i + 1) * size])] for i in range(clients)]
    draw = np.random.default_rng(0)
    pool = fresh[: plan.size(POOL, 4)]
    shared = [
        [
            (questions[(i + turn) % clients], draw.choice(pool, size, replace=False).tolist())
            for turn in range(plan.size(ROUNDS, 1))
        ]
        for i in range(clients)
    ]
    for title, requests in (
        (f"no document twice: {len(fresh):,}", own),
        (f"documents drawn from {len(pool)}", shared),
    ):
        count = sum(map(len, requests))
        table = Table(
            "serve",
            f"{clients} clients, {count} requests of 1 query x {size} documents, {title}: "
            f"{checkpoints.title(plan.checkpoint, folder)}",
            baseline=FOUR.name,
            drawn=False,
            notes=[
                "Clients are another process; each waits for its answer before it asks again. "
                "Memory is what all processes hold after the last answer, shared pages once. Each "
                "server is new: it has an empty cache, and has answered one request.",
            ],
        )
        kinds = [kind for kind in KINDS if kind.package not in plan.without]
        yield measure(table, folder, requests, kinds, turns=max(plan.repeats // 5, 1))

    yield sizing(folder, own[: plan.size(8, 2)])
    long = [f"{number} {text}" for number, text in enumerate(fresh * 2)][: plan.size(1000, 40)]
    yield beside(folder, long, asked=plan.size(20, 2))


def sizing(folder: Path, requests: list[list[Request]]) -> Table:
    """What more threads and more processes give, where documents are new and where they are known.

    Args:
        folder: The checkpoint.
        requests: Of each client.
    """
    count = sum(map(len, requests))
    table = Table(
        "serve",
        f"{len(requests)} clients, {count} requests of 1 query x {len(requests[0][0][1])} "
        "documents, first new, then known",
        drawn=False,
        notes=[
            "Known documents are those of the request before, in the server's cache; each client "
            "asks the same process again. Memory is as above, after both."
        ],
    )
    right = expected(folder, requests)
    for processes, threads in SIZES:
        kind = Kind(name="", package="uvicorn", processes=processes, threads=threads)
        with servers(kind, folder) as (urls, running):
            new, known = (asyncio.run(ask(urls, requests, right)) for _ in range(2))
            table.rows.append(
                {
                    "processes": processes,
                    "threads of each": threads,
                    "new, requests/s": len(new.seconds) / new.wall,
                    "new, p50 s": float(np.median(new.seconds)),
                    "known, requests/s": len(known.seconds) / known.wall,
                    "known, p50 s": float(np.median(known.seconds)),
                    "MiB": sum(map(held, running)) >> 20,
                    "errors": new.errors + known.errors,
                    "wrong": new.wrong + known.wrong,
                }
            )
    return table


def beside(folder: Path, long: list[str], *, asked: int) -> Table:
    """How long short requests take, alone and beside long ones.

    Args:
        folder: The checkpoint.
        long: Documents of a long request.
        asked: Short requests, one after another.
    """
    table = Table(
        "serve",
        f"{asked} requests of 1 query x 1 document, one after another, beside long ones of "
        f"{len(long):,}",
        drawn=False,
        notes=["No text comes twice. The long requests were running all the time."],
    )
    for count in (0, 1, 4):
        with servers(ONE, folder) as ((url,), _):
            seconds = asyncio.run(_short(url, long, count, asked))
        p50, p95 = np.percentile(seconds, [50, 95]).tolist()
        table.rows.append({"long requests": count, "p50 s": p50, "p95 s": p95})
    return table


async def _short(url: str, long: list[str], count: int, asked: int) -> list[float]:
    """Seconds of each short request; the long ones are given up at the end."""
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT, trust_env=False) as http:
        bodies = [
            {"query": "red planet", "documents": [f"{place} {text}" for text in long]}
            for place in range(count)
        ]
        running = [asyncio.ensure_future(http.post("/rerank", json=body)) for body in bodies]
        await asyncio.sleep(2 if running else 0)
        seconds = []
        for number in range(asked):
            begun = time.perf_counter()
            body = {"query": "red planet", "documents": [f"Mars is the red planet {number}."]}
            (await http.post("/rerank", json=body)).raise_for_status()
            seconds.append(time.perf_counter() - begun)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return seconds


def measure(
    table: Table,
    folder: Path,
    requests: list[list[Request]],
    kinds: Sequence[Kind] = KINDS,
    *,
    turns: int,
) -> Table:
    """Every kind of server in turn; the median run of each counts.

    Args:
        table: Gets a row for each kind.
        folder: The checkpoint.
        requests: Of each client.
        kinds: Which of them, if their packages are installed.
        turns: How often; the peer that takes longest, once.
    """
    right = expected(folder, requests)
    runs: dict[Kind, list[Load]] = {}
    kinds = [kind for kind in kinds if installed(kind.package) is not None]
    for turn in range(turns):
        for kind in kinds:
            if turn and not kind.ours:
                continue
            with servers(kind, folder) as (urls, processes):
                load = asyncio.run(ask(urls, requests, right))
                load.memory = sum(map(held, processes))
            runs.setdefault(kind, []).append(load)
    middle = {
        kind: sorted(loads, key=lambda it: it.wall)[len(loads) // 2] for kind, loads in runs.items()
    }
    four = middle[FOUR]
    for kind, load in middle.items():
        p50, p95 = np.percentile(load.seconds or [float("nan")], [50, 95]).tolist()
        table.rows.append(
            {
                "peer": kind.name,
                "seconds": load.wall,
                "requests/s": len(load.seconds) / load.wall,
                "ratio": four.wall / load.wall,
                "p50 s": p50,
                "p95 s": p95,
                "MiB": load.memory >> 20,
                "MiB / 4 workers": load.memory / max(four.memory, 1),
                "errors": sum(it.errors for it in runs[kind]),
                "wrong": sum(it.wrong for it in runs[kind]),
                "runs, s": ", ".join(f"{it.wall:.1f}" for it in runs[kind]),
            }
        )
    return table


def expected(folder: Path, requests: list[list[Request]]) -> list[list[dict[int, float]]]:
    """The mean similarity of every document, by a model that knows of no server."""
    model = ColBERT.from_pretrained(folder, device="cpu", dtype="float32")
    flat = list(itertools.chain.from_iterable(requests))
    rankings = iter(model.rank_many([query for query, _ in flat], [texts for _, texts in flat]))
    return [
        [{place.index: place.mean for place in next(rankings)} for _ in own] for own in requests
    ]


async def ask(
    urls: Sequence[str], requests: list[list[Request]], right: list[list[dict[int, float]]]
) -> Load:
    """All clients at once, each on a connection of its own."""
    load = Load()

    async def client(number: int) -> None:
        url = urls[number % len(urls)]
        async with httpx.AsyncClient(timeout=LIMIT, trust_env=False) as http:
            for (query, texts), scores in zip(requests[number], right[number], strict=True):
                begun = time.perf_counter()
                try:
                    answer = await http.post(
                        f"{url}/rerank", json={"query": query, "documents": texts}
                    )
                    results = answer.raise_for_status().json()["results"]
                except httpx.HTTPError:
                    load.errors += 1
                    continue
                load.seconds.append(time.perf_counter() - begun)
                found = {it["index"]: it["relevance_score"] for it in results}
                load.wrong += found.keys() != scores.keys() or any(
                    abs(found[index] - score) > TOLERANCE for index, score in scores.items()
                )

    begun = time.perf_counter()
    await asyncio.gather(*map(client, range(len(requests))))
    load.wall = time.perf_counter() - begun
    return load


@contextmanager
def servers(kind: Kind, folder: Path) -> Iterator[tuple[list[str], list[subprocess.Popen[bytes]]]]:
    """The processes of one kind, each ready and warm: where they are, and they themselves."""
    with ExitStack() as running:
        ports = [free_port() for _ in range(kind.processes)]
        processes = [running.enter_context(process(kind, folder, port)) for port in ports]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            wait_for(url)
            body = {"query": "warm", "documents": ["up"]}
            httpx.post(f"{url}/rerank", json=body, timeout=LIMIT, trust_env=False)
        yield urls, processes


@contextmanager
def process(kind: Kind, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """One server, ended afterwards."""
    ours = ["-m", "colbert_rag.cli", "serve", "-m", str(folder), "--dtype", "float32"]
    ours += ["--device", "cpu", "--port", str(port), "--timeout", str(LIMIT)]
    arguments = ours if kind.ours else ["-W", "ignore", "-c", ST, str(folder), str(port)]
    started = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(kind.threads)} if kind.threads else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(60)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            httpx.get(f"{url}/health", timeout=5, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def held(process: subprocess.Popen[bytes]) -> int:
    """Bytes of a process's memory; of pages that it shares, its part. 0 where there is no Linux."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():
        return 0
    return int(rollup.read_text().partition("\nPss:")[2].split()[0]) * 2**10


if __name__ == "__main__":
    from benchmarks.__main__ import start

    start("serve")
