"""`colbert-rag serve` under bodies and clients that nobody means well by: whole requests, over
sockets. What is right is what the model of this process says."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from colbert_rag import ColBERT, LocalIndex
from colbert_rag.index import Document
from colbert_rag.server.app import Served, make_app
from colbert_rag.server.bodies import Documents
from colbert_rag.server.indexed import Indexed
from colbert_rag.server.limits import Limits
from colbert_rag.server.service import Service
from tests.helpers.abuse import head
from tests.helpers.serving import LIMIT, Running, serving

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a word")
JSON = {"Content-Type": "application/json"}
WINDY = [f"{number} " + "the red planet has wind and storms " * 40 for number in range(400)]
"""Documents that take a CPU many seconds."""


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hostile")
    options = ("-m", tiny_checkpoint, "--index", folder / "facts.sqlite")
    with serving(folder, *options, "--max-documents", 100_000) as running:
        yield running
        assert running.stop() == 0
        assert "Error at" not in running.log.read_text()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Running]:
    """Real weights, which take their time, and room for one request and one that waits."""
    options = ("-m", "offline-minilm", "--cache-mib", 0, "--max-running", 1, "--max-waiting", 1)
    with serving(tmp_path, *options) as running:
        yield running


def results(answer: httpx.Response) -> list[tuple[int, float]]:
    assert answer.status_code == 200, answer.text
    return [(found["index"], found["relevance_score"]) for found in answer.json()["results"]]


def right(model: ColBERT, query: str, texts: list[str]) -> list[tuple[int, object]]:
    return [
        (place.index, pytest.approx(place.mean, abs=1e-4)) for place in model.rank(query, texts)
    ]


NESTED = b"[" * 200_000 + b"]" * 200_000
REFUSED = {
    "nested documents": ("/rerank", b'{"query": "q", "documents": [' + NESTED + b"]}"),
    "nested and unknown": ("/rerank", b'{"query": "q", "documents": ["a"], "x": ' + NESTED + b"}"),
    "a nested filter": (
        "/v1/search",
        b'{"query": "q", "filter": ' + b'{"$not": ' * 700 + b'{"a": 1}' + b"}" * 700 + b"}",
    ),
    "nested metadata": (
        "/v1/documents",
        b'{"documents": [{"text": "a", "metadata": {"a": ' + b"[" * 700 + b"]" * 700 + b"}}]}",
    ),
    "not a number": ("/rerank", b'{"query": "q", "documents": ["a"], "top_n": NaN}'),
    "infinite": ("/rerank", b'{"query": "q", "documents": ["a"], "top_n": Infinity}'),
    "too large for a float": ("/rerank", b'{"query": "q", "documents": ["a"], "top_n": 1e999}'),
    "too many digits": (
        "/rerank",
        b'{"query": "q", "documents": [], "top_n": ' + b"9" * 9999 + b"}",
    ),
    "metadata that is no number": (
        "/v1/documents",
        b'{"documents": [{"text": "a", "metadata": {"a": NaN}}]}',
    ),
    "a filter by no number": ("/v1/search", b'{"query": "q", "filter": {"a": Infinity}}'),
    "half a character to store": ("/v1/documents", b'{"documents": ["a \\ud800"]}'),
    "less than nothing": ("/rerank", b'{"query": "q", "documents": ["a"], "top_n": -1}'),
    "one and a half": ("/rerank", b'{"query": "q", "documents": ["a"], "top_n": 1.5}'),
    "a word for a number": ("/rerank", b'{"query": "q", "documents": ["a"], "top_n": "all"}'),
}


@pytest.mark.parametrize("what", REFUSED)
def test_json_that_is_no_request_is_refused_with_a_reason(what: str, client: httpx.Client) -> None:
    path, body = REFUSED[what]

    answer = client.post(path, content=body, headers=JSON)

    assert answer.status_code == 400, answer.text
    assert 0 < len(answer.json()["message"]) < 300


TEXTS = ["Saturn has rings.", "Mars is red.", "Venus is hot."]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ('"top_n": 0', 3),
        ('"top_n": "2"', 2),
        ('"top_n": 2.0', 2),
        (f'"top_n": {10**30}', 3),
        ('"temperature": NaN', 3),
        ('"top_n": 1, "top_n": 2', 2),  # the last one counts, as everywhere in Python
    ],
)
def test_json_that_is_odd_but_clear_is_answered(
    fields: str, count: int, client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    body = f'{{"query": "red", "documents": {json.dumps(TEXTS)}, {fields}}}'

    answer = client.post("/rerank", content=body.encode(), headers=JSON)

    assert results(answer) == right(tiny_colbert, "red", TEXTS)[:count]


@pytest.mark.parametrize("text", ["\ud800 red", "\udfff", "a\0b", "\x1b[2J", "\u202ered"])
def test_any_string_is_a_text(text: str, client: httpx.Client, tiny_colbert: ColBERT) -> None:
    for query, texts in ((text, TEXTS), ("red", [*TEXTS, text])):
        body = json.dumps({"query": query, "documents": texts}).encode()

        answer = client.post("/rerank", content=body, headers=JSON)

        assert results(answer) == right(tiny_colbert, query, texts)


def test_many_queries_are_answered_each_for_itself(
    client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    queries = [f"moon {number} {'ice ' * (number % 7)}" for number in range(100)]

    answer = client.post("/rerank", json={"queries": queries, "documents": TEXTS})

    found = [
        [(it["index"], it["relevance_score"]) for it in one["results"]]
        for one in answer.json()["data"]
    ]
    assert found == [right(tiny_colbert, query, TEXTS) for query in queries]


def test_a_hundred_thousand_tiny_documents(client: httpx.Client, tiny_colbert: ColBERT) -> None:
    words = [f"moon {number}" for number in range(40)]
    texts = words * 2500
    body = {"query": "moon 3", "documents": texts, "return_documents": False}

    found = results(client.post("/rerank", json=body))

    scores = {words[place.index]: place.mean for place in tiny_colbert.rank("moon 3", words)}
    assert sorted(index for index, _ in found) == list(range(100_000))
    assert found == sorted(found, key=lambda one: (-one[1], one[0]))
    assert {texts[index]: pytest.approx(score, abs=1e-4) for index, score in found} == scores


def test_one_document_more_than_may_be_is_refused(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": "q", "documents": ["a"] * 100_001})

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_many_texts"


@pytest.mark.parametrize("piece", ["w", "word ", "漢", "a\u0301", "🪐"])
def test_a_document_of_the_largest_size_is_ranked(
    piece: str, client: httpx.Client, tiny_colbert: ColBERT
) -> None:
    longest = (piece * 200_000)[:200_000]

    found = results(client.post("/rerank", json={"query": "red", "documents": [longest, "red"]}))

    assert found == right(tiny_colbert, "red", [longest, "red"])


def test_an_answer_is_not_many_times_its_body(client: httpx.Client, tiny_colbert: ColBERT) -> None:
    """A text comes back for each query: 3 MiB for 100 would be 300."""
    texts = [f"{number} {'x' * 99_990}" for number in range(30)]
    body = {"queries": [f"red {number}" for number in range(100)], "documents": texts}

    refused = client.post("/rerank", json=body)

    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "answer_too_large"
    assert refused.json()["error"]["param"] == "return_documents"
    for enough in ({"return_documents": False}, {"top_n": 1}):
        found = client.post("/rerank", json=body | enough).json()["data"]
        assert len(found) == 100
        assert found[7]["results"][0]["index"] == tiny_colbert.rank("red 7", texts)[0].index


async def test_reading_documents_holds_nobody_up(
    tiny_colbert: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata of 16 MiB can take many seconds to be read."""
    done, read = threading.Event(), Indexed.read

    def read_late(self: Indexed, body: Documents) -> list[Document]:
        assert done.wait(LIMIT)
        return read(self, body)

    monkeypatch.setattr(Indexed, "read", read_late)
    service = Service(colbert=tiny_colbert, names=("tiny",), limits=Limits())
    with LocalIndex(":memory:", tiny_colbert) as index:
        app = make_app(Served(service, Indexed(service=service, index=index)))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"documents": ["Mars is red."]}
            adding = asyncio.create_task(client.post("/v1/documents", json=body))
            await asyncio.sleep(0.1)
            assert (await client.get("/health")).status_code == 200
            assert not adding.done()
            done.set()
            assert (await adding).json()["added"] == 1


def test_a_body_that_trickles_is_answered_and_cut_off(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, "-m", tiny_checkpoint, limits="body_seconds: float = 0.5") as running:
        url = httpx.URL(running.url)
        begun = time.monotonic()
        with socket.create_connection((url.host, url.port), LIMIT) as slow:
            slow.sendall(head(10_000))
            slow.settimeout(0.1)
            said = b""
            while b"\r\n\r\n" not in said:
                assert time.monotonic() - begun < LIMIT
                try:
                    slow.sendall(b" ")
                    said += slow.recv(2**16)
                except TimeoutError:
                    continue
            assert said.startswith(b"HTTP/1.1 408 ")
            # Not left open, where the rest of the body might trickle for ever.
            _until(lambda: _is_closed(slow))
        assert running.metric("colbert_rag_running") == 0


@pytest.mark.slow
def test_of_a_flood_some_are_answered_rightly_and_the_rest_told_when_to_come(
    narrow: Running,
) -> None:
    model = ColBERT.from_pretrained("offline-minilm", device="cpu", dtype="float32")
    clients = 24

    def ask(number: int) -> httpx.Response:
        with narrow.client() as client:
            texts = WINDY[number * 10 : number * 10 + 10]
            return client.post("/rerank", json={"query": "storms", "documents": texts})

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(clients)))

    assert {answer.status_code for answer in answers} == {200, 429}
    for number, answer in enumerate(answers):
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "queue_full"
        else:
            texts = WINDY[number * 10 : number * 10 + 10]
            assert results(answer) == right(model, "storms", texts)


@pytest.mark.slow
def test_nothing_is_computed_for_who_hangs_up_while_waiting(narrow: Running) -> None:
    body = json.dumps({"query": "storms", "documents": WINDY}).encode()
    url = httpx.URL(narrow.url)
    with socket.create_connection((url.host, url.port)) as first:
        first.sendall(head(len(body)) + body)
        _until(lambda: narrow.metric("colbert_rag_running") == 1)
        with socket.create_connection((url.host, url.port)) as second:
            second.sendall(head(len(body)) + body)
            _until(lambda: narrow.metric("colbert_rag_waiting") == 1)
        _until(lambda: narrow.metric("colbert_rag_waiting") == 0)
        # It left while the first one ran, and so had not begun.
        assert narrow.metric("colbert_rag_running") == 1
        assert narrow.metric("colbert_rag_abandoned_total") == 1


@needs_signals
@pytest.mark.slow
def test_a_stop_answers_what_runs_and_refuses_what_waits(narrow: Running) -> None:
    def ask() -> httpx.Response:
        with narrow.client() as client:
            return client.post("/rerank", json={"query": "storms", "documents": WINDY[:60]})

    with ThreadPoolExecutor(2) as pool:
        runs = pool.submit(ask)
        _until(lambda: narrow.metric("colbert_rag_running") == 1)
        waits = pool.submit(ask)
        _until(lambda: narrow.metric("colbert_rag_waiting") == 1)
        narrow.process.terminate()

        refused = waits.result(LIMIT)
        assert refused.status_code == 503
        assert "the server is stopping" in refused.json()["message"]
        assert len(results(runs.result(LIMIT))) == 60
    assert narrow.process.wait(LIMIT) == 0


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it, of which sending tells; receiving may still read."""
    try:
        connection.sendall(b" ")
    except ConnectionError:
        return True
    return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
