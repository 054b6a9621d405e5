"""`colbert-rag serve` with many clients, bad ones, and ones that leave; its start and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from colbert_rag import ColBERT
from colbert_rag.cli import main
from colbert_rag.remote import RemoteColBERT
from tests.helpers.abuse import KEY, KINDS, abuse, head
from tests.helpers.serving import LIMIT, Running, serving
from tests.test_cli import refused

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a word")
LONG = [f"{number} " + "the red planet has wind and storms " * 40 for number in range(1000)]
"""Documents that take a CPU half a minute."""


@pytest.fixture(scope="module")
def open_to_keys(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    env = {"COLBERT_RAG_API_KEY": f"an-older-key, {KEY}"}
    with serving(tmp_path_factory.mktemp("keys"), "-m", tiny_checkpoint, env=env) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Running]:
    """Real weights, which take their time, and no cache that would save it."""
    with serving(tmp_path, "-m", "offline-minilm", "--cache-mib", 0, "--access-log") as running:
        yield running


@needs_signals
def test_bad_clients_get_their_errors_and_good_ones_the_right_answers(
    open_to_keys: Running, tiny_colbert: ColBERT
) -> None:
    found = asyncio.run(abuse(open_to_keys, tiny_colbert, requests=150, clients=16, seed=1))

    assert found.wrong == []
    assert set(found.kinds) == {kind.__name__ for kind in KINDS}
    open_to_keys.settled(KEY)


def test_clients_of_one_moment_get_their_own_answers(
    open_to_keys: Running, tiny_colbert: ColBERT
) -> None:
    def ask(number: int) -> None:
        texts = [f"moon {number + place} {'ice ' * place}" for place in range(20)]
        query = f"moon {number}"
        with open_to_keys.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
            answer = client.post("/rerank", json={"query": query, "documents": texts})
        expected = [(place.index, place.mean) for place in tiny_colbert.rank(query, texts)]
        found = [(it["index"], it["relevance_score"]) for it in answer.json()["results"]]
        assert found == [(index, pytest.approx(mean, abs=1e-4)) for index, mean in expected]

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(ask, range(96)))


def test_a_key_opens_what_is_locked(open_to_keys: Running) -> None:
    body = {"query": "red", "documents": ["red"]}
    keys = {KEY: 200, "an-older-key": 200, "another": 401, KEY[:-1]: 401, "kéy": 401}
    with open_to_keys.client() as client:
        for key, status in keys.items():
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert client.post("/rerank", json=body, headers=headers).status_code == status
        refusal = client.post("/rerank", json=body)
        assert refusal.status_code == 401
        assert refusal.headers["www-authenticate"] == "Bearer"
        assert refusal.json()["error"]["code"] == "invalid_api_key"
        # Not even what there is, nor a count.
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
            assert client.get(path).status_code == 401
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200


@pytest.mark.slow
def test_a_client_that_hangs_up_is_not_computed_for(slow: Running) -> None:
    with slow.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/rerank", json={"query": "storms", "documents": LONG}, timeout=1.5)

    begun = time.monotonic()
    slow.settled()

    assert time.monotonic() - begun < 5
    assert slow.metric("colbert_rag_abandoned_total") == 1
    # Texts are counted where a call has encoded all of its own.
    assert slow.metric("colbert_rag_encoded_documents_total") < 100
    assert "POST /rerank hung up" in slow.log.read_text()


@pytest.mark.slow
def test_a_long_request_does_not_hold_up_short_ones(slow: Running) -> None:
    body = json.dumps({"query": "storms", "documents": LONG}).encode()
    url = httpx.URL(slow.url)
    with socket.create_connection((url.host, url.port)) as long, slow.client() as client:
        long.sendall(head(len(body)) + body)
        while not slow.metric("colbert_rag_running"):
            time.sleep(0.01)
        for number in range(5):
            short = {"query": "red", "documents": [f"Mars is red {number}."]}
            assert client.post("/rerank", json=short).status_code == 200

        # All of them were answered while it ran, and it is not done yet.
        assert slow.metric("colbert_rag_running") == 1
        assert slow.metric("colbert_rag_abandoned_total") == 0


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    options = ("-m", "offline-minilm", "--timeout", "0.5", "--cache-mib", 0)
    with serving(tmp_path, *options) as running:
        with running.client() as client:
            answer = client.post("/rerank", json={"query": "storms", "documents": LONG})
        assert answer.status_code == 504
        assert "no answer within 0.5 seconds" in answer.json()["message"]
        running.settled()
        assert running.stop() == 0


@needs_signals
@pytest.mark.slow
def test_a_stop_finishes_what_runs_and_refuses_what_comes(slow: Running) -> None:
    def ask() -> int:
        with slow.client() as client:
            body = {"query": "storms", "documents": LONG[:60]}
            return client.post("/rerank", json=body).status_code

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask)
        while not slow.metric("colbert_rag_running"):
            time.sleep(0.01)
        slow.process.terminate()
        while True:  # until it listens no more
            try:
                socket.create_connection(("127.0.0.1", httpx.URL(slow.url).port), 1).close()
            except OSError:
                break
        assert running.result(LIMIT) == 200

    assert slow.process.wait(LIMIT) == 0
    assert slow.log.read_text().endswith("stopped\n")


@needs_signals
@pytest.mark.slow
def test_a_second_ctrl_c_stops_what_runs_without_a_traceback(slow: Running) -> None:
    def ask() -> httpx.Response:
        with slow.client() as client:
            return client.post("/rerank", json={"query": "storms", "documents": LONG})

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask)
        while not slow.metric("colbert_rag_running"):
            time.sleep(0.01)
        slow.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        slow.process.send_signal(signal.SIGINT)
        answer = running.result(LIMIT)

    assert answer.status_code == 503
    assert "the server is stopping" in answer.json()["message"]
    assert slow.process.wait(LIMIT) == 130
    log = slow.log.read_text()
    assert "Traceback" not in log
    assert "Exception" not in log


def test_it_says_so_where_anybody_can_reach_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("-m", tiny_checkpoint, "--host", "0.0.0.0")
    with serving(tmp_path / "open", *options) as running:
        assert running.url.startswith("http://127.0.0.1:")
        assert "anybody who reaches 0.0.0.0 can use this server" in running.log.read_text()
    with serving(tmp_path / "locked", *options, "--api-key", KEY) as running:
        assert "anybody" not in running.log.read_text()
        assert '"Authorization: Bearer KEY"' in running.said
        assert KEY not in running.said


@needs_signals
@pytest.mark.parametrize("keys", ["one", "one, two", " one ,two"])
def test_what_it_prints_and_the_client_take_the_first_of_several_keys(
    keys: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLBERT_RAG_API_KEY", keys)
    options = ("-m", tiny_checkpoint, "--api-key", "three")
    with serving(tmp_path, *options) as running:
        command = running.said.partition("Try: ")[2]
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)

        assert len(json.loads(done.stdout)["results"]) == 2
        assert RemoteColBERT(running.url).dim > 0
        assert "one" not in command


def test_a_log_that_was_asked_for_holds_no_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    index = tmp_path / "facts.sqlite"
    options = ("-m", tiny_checkpoint, "--access-log", "--index", index)
    with serving(tmp_path, *options) as running, running.client() as client:
        client.post("/v1/search", json={"query": "xyzzy"})
        client.get("/v1/documents/xyzzy")
        running.stop()
        log = running.log.read_text()

    assert "POST /v1/search 200" in log
    assert "GET /v1/documents/{name:id} 404" in log
    assert "xyzzy" not in log


def test_an_address_in_use_is_refused_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "-m", "/no/such/model", "--port", str(port)]) == 1

    err = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1:{port}" in err
    assert "use another --port" in err


def test_of_two_that_start_at_once_one_serves_and_one_says_why_not(tiny_checkpoint: Path) -> None:
    """Both have bound the port before either listens."""
    code = (
        "import socket, sys\n"
        "from colbert_rag.cli import main, serve\n"
        "opened = serve.open_model\n"
        "def open_late(settings):\n"
        "    global other\n"
        "    other = socket.socket()\n"
        "    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "    other.bind(('127.0.0.1', int(sys.argv[-1])))\n"
        "    other.listen()\n"
        "    return opened(settings)\n"
        "serve.open_model = open_late\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])

    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "-m", str(tiny_checkpoint), "--port", port],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )

    assert done.returncode == 1
    said = f"error: cannot listen at 127.0.0.1:{port}: Address already in use, use another --port\n"
    assert done.stderr.endswith(said)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b"])
def test_a_host_that_is_none_is_named_with_its_option(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "-m", "/no/such/model", "--host", host]) == 1

    assert f"--host is '{host}'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="others have one loopback address")
def test_it_answers_at_whatever_loopback_address_it_listens(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with (
        serving(tmp_path, "-m", tiny_checkpoint, "--host", "127.0.0.2") as running,
        running.client() as client,
    ):
        assert client.get("/v1/models").status_code == 200
        answer = client.get("/v1/models", headers={"Host": "127.0.0.3"})
        assert answer.status_code == 403


WRONG = {
    "--port 70000": "expected 65535 at most",
    "--read-only": "--read-only is about an index",
    "--max-running 0": "--max-running: '0' is not a whole number of 1 or more",
    "--max-waiting x": "--max-waiting: 'x' is not a whole number of 0 or more",
    "--timeout 0": "expected more than 0 seconds",
    "--api-key kéy": "characters that no key has",
    "--name=": "--name is empty",
    "--index http://x": "names no collection",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_usage_is_said(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = refused(["serve", "--port", "0", *options.split()], capsys)

    assert status == 2
    assert WRONG[options] in err


def test_what_is_missing_is_said_with_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from colbert_rag.cli import main; sys.exit(main(['serve']))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install 'colbert-rag-components[server]'" in done.stderr


def test_the_defaults_of_the_help_are_those_of_the_limits() -> None:
    import re

    from colbert_rag.cli import serve
    from colbert_rag.server.limits import MIB, Limits

    said = {name: int(re.findall(r"\((\d+)\)$", text)[0]) for name, text in serve.LIMITS.items()}
    said["body"] = said.pop("body_mib") * MIB

    assert said == {name: getattr(Limits, name) for name in said}
