"""What a client makes of a server that is slow, busy, elsewhere, or not ours."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from langchain_core.documents import Document

from colbert_rag import MissingExtraError, RemoteColBERT, RemoteIndex
from colbert_rag.errors import (
    DeviceMemoryError,
    IndexBusyError,
    ScoringError,
    ServerAccessError,
    ServerAnswerError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from colbert_rag.langchain import ColBERTRerank
from colbert_rag.remote import address, connections, patience
from colbert_rag.remote.replies import Request, broken
from tests.helpers.stand_in import Answer, Asked, StandIn, refused, standing_in

TEXTS = ["a", "bb", "ccc"]


def scores(asked: Asked, **changed: object) -> dict[str, Any]:
    """What a server of ours answers: a text's score is its length."""
    results = [
        {"index": index, "relevance_score": float(len(text))}
        for index, text in enumerate(asked.body["documents"])
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    return {"id": "x", "model": "m", "query_rows": 4, "results": results, **changed}


def right(asked: Asked) -> Answer:
    return Answer(scores(asked))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)


@contextmanager
def serving(answer: Callable[[Asked], Answer], **options: Any) -> Iterator[tuple[Any, StandIn]]:
    with standing_in(answer) as server:
        yield RemoteColBERT(server.url, **options), server


def in_turn(*answers: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """The first answer to the first request, and so on; the last to all others."""
    left = list(answers)

    def answer(asked: Asked) -> Answer:
        return (left.pop(0) if len(left) > 1 else left[0])(asked)

    return answer


def ask(model: RemoteColBERT, how: str) -> Any:
    if how == "waiting":
        return model.rank("q", TEXTS)
    return asyncio.run(model.arank("q", TEXTS))


both_ways = pytest.mark.parametrize("how", ["waiting", "awaiting"])

# What is sent


@both_ways
def test_the_request_is_that_of_the_contract(how: str) -> None:
    with serving(right, api_key="open sesame") as (model, server):
        ranking = ask(model, how)

    assert [(place.index, place.score) for place in ranking] == [(2, 3.0), (1, 2.0), (0, 1.0)]
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/rerank")
    assert asked.body == {
        "query": "q",
        "documents": TEXTS,
        "score": "sum",
        "return_documents": False,
    }
    assert asked.headers["Authorization"] == "Bearer open sesame"


def test_the_key_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(right) as (model, server):
        model.rank("q", TEXTS)
        monkeypatch.setenv("COLBERT_RAG_API_KEY", "from a file\n")
        model.rank("q", TEXTS)
        RemoteColBERT(server.url, api_key="own").rank("q", TEXTS)
        monkeypatch.setenv("COLBERT_RAG_API_KEY", " , new ,old")
        model.rank("q", TEXTS)
        RemoteColBERT(server.url, api_key="a,b").rank("q", TEXTS)

    keys = [asked.headers.get("Authorization") for asked in server.asked]
    assert keys == [None, "Bearer from a file", "Bearer own", "Bearer new", "Bearer a,b"]


@pytest.mark.parametrize("key", ["sch\u00f6n", "two\nlines"])
def test_a_key_that_no_header_carries_is_refused_unseen(key: str) -> None:
    with pytest.raises(ValueError, match="api_key holds characters") as error:
        RemoteColBERT("http://127.0.0.1:1", api_key=key)

    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"api_key": 5}, "api_key is of type int, expected text"),
        ({"timeout": "3"}, "timeout is '3', expected seconds"),
        ({"timeout": None}, "timeout is None, expected seconds"),
    ],
)
def test_an_argument_of_another_type_is_named(options: dict, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        RemoteColBERT("http://127.0.0.1:1", **options)


@pytest.mark.parametrize(
    "address",
    ["http://host:8000\n", "http://ho\nst", "http://ho st:8000", "http://host/a b", "http://h\tx"],
)
def test_an_address_with_blanks_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected one such as"):
        RemoteColBERT(address)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("HTTP://localhost:8000/", "http://localhost:8000"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("https://host/colbert/v1/", "https://host/colbert"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_is_brought_to_one_form(given: str, base: str) -> None:
    assert address.base_of(given) == base


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("localhost:8000", "expected one such as 'http://127.0.0.1:8000'"),
        ("ftp://host", "expected one such as 'http://127.0.0.1:8000'"),
        ("http://", "expected a host"),
        ("http://host?key=secret", "expected a host"),
        ("http://host:port", "cannot be read"),
        ("http://a..b\u00e4", "cannot be asked"),
    ],
)
def test_what_is_no_address_is_refused(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RemoteColBERT(given)


def test_an_address_with_a_password_is_refused_unseen() -> None:
    with pytest.raises(ValueError, match="holds a user name or password") as error:
        RemoteColBERT("http://me:sesame@host")

    assert "sesame" not in str(error.value)


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan, True])
def test_a_timeout_is_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match="expected seconds"):
        RemoteColBERT("http://127.0.0.1:1", timeout=timeout)


# Connections


def test_one_connection_serves_all_instances_of_a_process() -> None:
    with serving(right) as (model, server):
        for _ in range(3):
            model.rank("q", TEXTS)
            RemoteColBERT(server.url).rank("q", TEXTS)

        assert server.connections == 1


def test_one_connection_serves_all_calls_of_an_event_loop() -> None:
    async def several(model: RemoteColBERT) -> None:
        for _ in range(3):
            await model.arank("q", TEXTS)

    with serving(right) as (model, server):
        asyncio.run(several(model))
        assert server.connections == 1
        asyncio.run(several(model))
        assert server.connections == 2


def test_a_process_that_ends_leaves_no_connection_open() -> None:
    program = (
        "import asyncio, sys\n"
        "from colbert_rag import RemoteColBERT\n"
        "model = RemoteColBERT(sys.argv[1])\n"
        "model.rank('q', ['a', 'bb'])\n"
        "asyncio.run(model.arank('q', ['a', 'bb']))\n"
    )
    always = ("-W", "always::ResourceWarning")
    with standing_in(right) as server:
        run = subprocess.run(
            [sys.executable, *always, "-c", program, server.url],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )

    assert (run.returncode, run.stderr) == (0, "")
    assert server.connections == 2


def test_a_loop_that_ended_leaves_nothing_behind() -> None:
    with serving(right) as (model, _):
        asyncio.run(model.arank("q", TEXTS))

    assert not [loop for loop in connections._LOOPS._held if loop.is_closed()]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_loop_that_was_closed_by_hand_is_forgotten() -> None:
    with serving(right) as (model, _):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(model.arank("q", TEXTS))
        loop.close()
        assert asyncio.run(model.arank("q", TEXTS))[0].index == 2

        assert loop not in connections._LOOPS._held
        gc.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_opens_connections_of_its_own() -> None:
    with serving(right) as (model, server):
        model.rank("q", TEXTS)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                best = model.rank("q", TEXTS)[0].index
                again = asyncio.run(model.arank("q", TEXTS))[0].index
                os.write(write, f"{best}{again}".encode())
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        said = os.read(read, 10)
        os.close(read)
        os.close(write)

        assert said == b"22"
        assert model.rank("q", TEXTS)[0].index == 2
        assert server.connections == 3


def test_a_proxy_of_the_environment_does_not_see_what_stays_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def proxied(asked: Asked) -> Answer:
        return refused(502, "the proxy was asked")

    with standing_in(proxied) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with serving(right) as (model, _):
            assert model.rank("q", TEXTS)[0].index == 2
        assert proxy.asked == []
        with pytest.raises(ServerError, match="the proxy was asked"):
            RemoteColBERT("http://colbert.invalid", retries=0).rank("q", TEXTS)
        assert [asked.path for asked in proxy.asked] == ["http://colbert.invalid/v1/rerank"]


# Tries


@both_ways
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_passes_is_tried_again(status: int, how: str) -> None:
    answer = in_turn(lambda _: refused(status, "later"), lambda _: refused(status, "later"), right)
    with serving(answer) as (model, server):
        assert ask(model, how)[0].index == 2

    assert len(server.asked) == 3


@both_ways
def test_a_server_says_when_to_come_again(how: str) -> None:
    with serving(in_turn(lambda _: refused(429, "later", Retry_After="1"), right)) as (model, _):
        begun = time.monotonic()
        ask(model, how)

        assert 1 <= time.monotonic() - begun < 5


def test_who_is_to_come_again_too_late_is_told_at_once() -> None:
    with serving(lambda _: refused(503, "later", Retry_After="999")) as (model, server):
        begun = time.monotonic()
        with pytest.raises(ServerBusyError, match=r"has too much to do.*\(503\): later"):
            model.rank("q", TEXTS)

        assert time.monotonic() - begun < 5
    assert len(server.asked) == 1


@both_ways
def test_tries_are_bounded(how: str) -> None:
    with (
        serving(lambda _: refused(429, "full"), retries=2) as (model, server),
        pytest.raises(ServerBusyError, match="429"),
    ):
        ask(model, how)

    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("nan", None), (None, None)],
)
def test_what_retry_after_says(said: str | None, seconds: float | None) -> None:
    from colbert_rag.remote.replies import _seconds

    assert _seconds(said) == seconds


def test_retry_after_may_be_a_date() -> None:
    from email.utils import formatdate

    from colbert_rag.remote.replies import _seconds

    assert 50 < _seconds(formatdate(time.time() + 60, usegmt=True)) <= 60


@both_ways
@pytest.mark.parametrize("status", [400, 404, 500])
def test_what_does_not_pass_is_not_tried_again(status: int, how: str) -> None:
    with (
        serving(lambda _: refused(status, "no such thing")) as (model, server),
        pytest.raises(ServerError, match="no such thing"),
    ):
        ask(model, how)

    assert len(server.asked) == 1


def test_what_changes_something_is_not_tried_twice_unless_it_was_surely_refused() -> None:
    def stored(asked: Asked) -> Answer:
        return Answer({"added": 1, "updated": 0, "unchanged": 0, "removed": 0})

    for fault in (lambda _: refused(502, "bad gateway"), lambda _: Answer(wire=lambda _: None)):
        with standing_in(in_turn(fault, stored)) as server:
            with pytest.raises(ServerError):
                RemoteIndex(server.url).add(["mars"])
            assert len(server.asked) == 1
    with standing_in(in_turn(lambda _: refused(429, "full"), stored)) as server:
        assert RemoteIndex(server.url).add(["mars"]).added == 1
        assert len(server.asked) == 2


@both_ways
def test_a_connection_that_breaks_is_opened_again(how: str) -> None:
    def half(connection: Any) -> None:
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        connection.write(b'Content-Length: 999\r\n\r\n{"query_rows": 4, "res')

    answers = in_turn(lambda _: Answer(wire=lambda _: None), lambda _: Answer(wire=half), right)
    with serving(answers) as (model, server):
        assert ask(model, how)[0].index == 2

    assert len(server.asked) == 3


@both_ways
def test_half_an_answer_is_none(how: str) -> None:
    def half(connection: Any) -> None:
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{}")

    with (
        serving(lambda _: Answer(wire=half), retries=1) as (model, _),
        pytest.raises(ServerUnreachableError, match=r"the connection to .* broke during POST"),
    ):
        ask(model, how)


@both_ways
def test_nobody_there(how: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        model = RemoteColBERT(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=1)
        with pytest.raises(
            ServerUnreachableError, match=r"nothing answers at .*`colbert-rag serve`"
        ):
            ask(model, how)


# Time


@both_ways
@pytest.mark.parametrize("slow", ["silent", "drop by drop"])
def test_a_slow_server_is_given_up(how: str, slow: str) -> None:
    ended = threading.Event()

    def slowly(connection: Any) -> None:
        connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        while not ended.wait(0.05):
            if slow != "silent":
                connection.write(b" ")
                connection.flush()

    with serving(lambda _: Answer(wire=slowly), timeout=0.4) as (model, server):
        begun = time.monotonic()
        with pytest.raises(ServerTimeoutError, match=r"did not answer POST .* within 0.4 seconds"):
            ask(model, how)
        assert time.monotonic() - begun < 3
        ended.set()

    assert len(server.asked) == 1


async def test_who_gives_up_waiting_holds_nothing_up() -> None:
    ended = threading.Event()

    def slowly(connection: Any) -> None:
        ended.wait(20)

    with serving(in_turn(lambda _: Answer(wire=slowly), right)) as (model, _):
        task = asyncio.create_task(model.arank("q", TEXTS))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await model.arank("q", TEXTS))[0].index == 2
        ended.set()


async def test_many_calls_wait_in_one_thread() -> None:
    together = threading.Barrier(40, timeout=20)  # more than any pool of threads has here

    def waited(asked: Asked) -> Answer:
        together.wait()
        return right(asked)

    with serving(waited) as (model, _):
        found = await asyncio.gather(*(model.arank("q", TEXTS) for _ in range(40)))

    assert [ranking[0].index for ranking in found] == [2] * 40


@both_ways
def test_what_a_server_gives_up_is_asked_for_in_halves(how: str) -> None:
    """Whatever its deadline is: the same request again would be given up again."""

    def slow(asked: Asked) -> Answer:
        late = len(asked.body["documents"]) > 1
        return refused(504, "late", code="deadline_exceeded") if late else right(asked)

    with serving(slow) as (model, server):
        assert [place.index for place in ask(model, how)] == [2, 1, 0]

    assert [len(asked.body["documents"]) for asked in server.asked] == [3, 1, 2, 1, 1]


def test_one_text_that_takes_too_long_is_a_timeout_at_once() -> None:
    late = refused(504, "late", code="deadline_exceeded")
    with serving(lambda _: late) as (model, server), pytest.raises(ServerTimeoutError):
        model.rank("q", ["one"])

    assert len(server.asked) == 1


# Errors of the server


@pytest.mark.parametrize(
    ("status", "key", "said"),
    [(401, None, "no key was sent"), (401, "wrong", "the key was refused")],
)
def test_a_key_is_asked_for(status: int, key: str | None, said: str) -> None:
    with (
        serving(lambda _: refused(status, "no"), api_key=key) as (model, _),
        pytest.raises(ServerAccessError, match=f"{said}.*COLBERT_RAG_API_KEY") as error,
    ):
        model.rank("q", TEXTS)

    assert isinstance(error.value, PermissionError)
    assert "wrong" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, "no_finite_score", ScoringError),
        (503, "out_of_memory", DeviceMemoryError),
        (503, "index_busy", IndexBusyError),
    ],
)
def test_errors_of_ours_are_the_same_here(status: int, code: str, kind: type) -> None:
    with (
        serving(lambda _: refused(status, "why", code=code), retries=0) as (model, _),
        pytest.raises(kind, match="why"),
    ):
        model.rank("q", TEXTS)


HTML = b"<!doctype html><title>Welcome to nginx!</title>"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(HTML, headers={"Content-Type": "text/html"}), "text/html beginning '<!doctype"),
        (Answer(HTML, 404, {"Content-Type": "text/html"}), "status 404 and text/html"),
        (Answer([1]), "expected a JSON object"),
        (Answer(b""), "an empty body"),
        (Answer(b'{"results": ['), "expected a JSON object"),
        (Answer(b"{}", 302, {"Location": "http://elsewhere"}), "redirect to 'http://elsewhere'"),
        (Answer({"results": [{"index": 0, "relevance_score": 1.0}]}), "'query_rows'"),
        (Answer(b"no gzip" * 9, headers={"Content-Encoding": "gzip"}), "cannot be read"),
    ],
    ids=["html", "html 404", "a list", "nothing", "half", "redirect", "another server", "gzip"],
)
@both_ways
def test_what_is_not_our_server_is_said_so(answer: Answer, said: str, how: str) -> None:
    with (
        serving(lambda _: answer) as (model, server),
        pytest.raises(ServerAnswerError, match=said),
    ):
        ask(model, how)

    assert len(server.asked) == 1


def changed(**members: object) -> Callable[[Asked], Answer]:
    return lambda asked: Answer(scores(asked, **members))


def result(index: object, score: object) -> dict[str, object]:
    return {"index": index, "relevance_score": score}


@pytest.mark.parametrize(
    "results",
    [
        [],
        [result(0, 1.0), result(1, 1.0)],
        [result(0, 1.0), result(1, 1.0), result(1, 1.0)],
        [result(0, 1.0), result(1, 1.0), result(3, 1.0)],
        [result(0, 1.0), result(1, 1.0), result(-1, 1.0)],
        [result(0, 1.0), result(1, 1.0), result(2, math.nan)],
        [result(0, 1.0), result(1, 1.0), result(2, math.inf)],
        [result(0, 1.0), result(1, 1.0), result(2, None)],
        [result(0, 1.0), result(1, 1.0), result(2, "1.0")],
        [result(0, 1.0), result(1, 1.0), result(True, 1.0)],
        [result(0, 1.0), result(1, 1.0), "three"],
        "none",
    ],
)
def test_no_wrong_order_is_ever_made_of_a_wrong_answer(results: object) -> None:
    with (
        serving(changed(results=results)) as (model, _),
        pytest.raises(ServerAnswerError, match="of the same version"),
    ):
        model.rank("q", TEXTS)


@pytest.mark.parametrize("rows", [0, -1, 2.5, None, True])
def test_the_rows_of_a_query_are_a_number(rows: object) -> None:
    with (
        serving(changed(query_rows=rows)) as (model, _),
        pytest.raises(ServerAnswerError, match="of the same version"),
    ):
        model.rank("q", TEXTS)


def test_the_order_is_ours_whatever_that_of_the_answer() -> None:
    def backwards(asked: Asked) -> Answer:
        body = scores(asked)
        return Answer({**body, "results": body["results"][::-1]})

    with serving(backwards) as (model, _):
        assert [place.index for place in model.rank("q", TEXTS)] == [2, 1, 0]


def test_another_number_of_queries_is_no_answer() -> None:
    with (
        serving(lambda asked: Answer({"data": []})) as (model, _),
        pytest.raises(ServerAnswerError, match="answers 0 of 2 queries"),
    ):
        model.rank_many(["p", "q"], TEXTS)


def test_a_model_that_changes_between_two_parts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_rag.remote.parts.MOST_BYTES", 3)
    with (
        serving(in_turn(right, changed(query_rows=5))) as (model, _),
        pytest.raises(ServerAnswerError, match="4 and 5 rows in one query"),
    ):
        model.rank("q", TEXTS)


def described(**members: object) -> Callable[[Asked], Answer]:
    model = {"id": "m", "dim": 2, "fingerprint": "f", "settings": {"checkpoint": "c"}, **members}
    return lambda asked: Answer({"data": [model]})


def test_settings_that_only_another_version_knows_are_left_out() -> None:
    said = {"checkpoint": "c", "query_length": 32, "skiplist": ["!"], "new_option": 7}
    with serving(described(settings=said)) as (model, _):
        assert model.settings.query_length == 32
        assert model.settings.skiplist == ("!",)


def test_texts_of_which_nothing_is_known_are_sent_once() -> None:
    with serving(in_turn(described(), right)) as (model, server):
        assert model.rank("q", TEXTS, known=lambda texts: {})[0].index == 2

    assert [asked.path for asked in server.asked] == ["/v1/models", "/v1/rerank"]


@pytest.mark.parametrize(
    ("members", "ask"),
    [
        ({"settings": {"checkpoint": "c", "query_length": -1}}, "settings"),
        ({"settings": None}, "settings"),
        ({"dim": "wide"}, "dim"),
        ({"fingerprint": None}, "fingerprint"),
    ],
)
def test_a_description_of_another_kind_is_refused(members: dict, ask: str) -> None:
    with (
        serving(described(**members)) as (model, _),
        pytest.raises(ServerAnswerError, match="of the same version"),
    ):
        getattr(model, ask)


def test_a_description_is_not_quoted_without_end() -> None:
    said = {"checkpoint": "c", "query_length": [0] * 5_000}
    with (
        serving(described(settings=said)) as (model, _),
        pytest.raises(ServerAnswerError, match="query_length is") as refusal,
    ):
        _ = model.settings

    assert len(str(refusal.value)) < 1_000


def test_a_fingerprint_is_asked_for_each_time() -> None:
    with serving(in_turn(described(), described(fingerprint="g"))) as (model, server):
        assert (model.fingerprint, model.dim) == ("f", 2)
        assert (model.fingerprint, model.dim) == ("g", 2)

    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "data": "AAAAAAAAAAA="}],
        [{"index": 0, "data": "AAAAAAAAAAA="}, {"index": 0, "data": "AAAAAAAAAAA="}],
        [{"index": 0, "data": "AAAA"}, {"index": 1, "data": "AAAAAAAAAAA="}],
        [{"index": 0, "data": "*"}, {"index": 1, "data": "AAAAAAAAAAA="}],
        [{"index": 0, "data": [0.0]}, {"index": 1, "data": [0.0]}],
    ],
)
def test_vectors_of_another_kind_are_refused(data: list) -> None:
    def answer(asked: Asked) -> Answer:
        return described()(asked) if asked.method == "GET" else Answer({"data": data})

    with (
        serving(answer) as (model, _),
        pytest.raises(ServerAnswerError, match="of the same version"),
    ):
        model.encode_documents(["a", "b"])


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"\[remote\]"):
        RemoteColBERT("http://127.0.0.1:1")


def test_an_error_of_one_query_of_a_batch_is_its_own() -> None:
    def answer(asked: Asked) -> Answer:
        if "queries" in asked.body or asked.body["query"] == "lost":
            return refused(500, "no score", code="no_finite_score")
        return right(asked)

    inputs = [{"documents": [Document(text) for text in TEXTS], "query": q} for q in ("lost", "q")]
    with serving(answer) as (_, server):
        step = ColBERTRerank(model=server.url, score="sum").as_runnable()
        for found in (
            step.batch(inputs, return_exceptions=True),
            asyncio.run(step.abatch(inputs, return_exceptions=True)),
        ):
            assert isinstance(found[0], ScoringError)
            assert [document.page_content for document in found[1]] == ["ccc", "bb", "a"]


def exceptions_of(kind: type[Exception]) -> Iterator[type[Exception]]:
    for inner in kind.__subclasses__():
        yield from exceptions_of(inner)
    yield kind


@pytest.mark.parametrize(
    "kind", list(exceptions_of(httpx2.RequestError)), ids=lambda kind: kind.__name__
)
def test_every_error_of_the_http_library_becomes_one_of_ours(kind: type[Exception]) -> None:
    request = Request("POST", "/x")

    refusal = broken(kind("why"), request, "http://host", 1.0)

    assert isinstance(refusal.error, ServerError)
    assert "http://host" in str(refusal.error)
    assert "why" in str(refusal.error)


def test_of_many_calls_each_is_right_or_an_error_of_ours() -> None:
    chance = random.Random(14)

    def half(connection: Any) -> None:
        connection.write(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"query_rows": 4, "res')

    faults: list[Callable[[Asked], Answer]] = [
        lambda _: refused(429, "full"),
        lambda _: refused(503, "stopping", Retry_After="0"),
        lambda _: refused(500, "failed"),
        lambda _: refused(413, "too large"),
        lambda _: Answer(wire=lambda _: None),
        lambda _: Answer(wire=half),
        lambda _: Answer(HTML, headers={"Content-Type": "text/html"}),
        changed(results=[]),
        changed(query_rows=None),
    ]

    def answer(asked: Asked) -> Answer:
        return (right if chance.random() < 0.6 else chance.choice(faults))(asked)

    outcomes = {"right": 0, "refused": 0}

    def call(model: RemoteColBERT, number: int) -> None:
        texts = ["x" * chance.randint(1, 60) for _ in range(chance.randint(1, 6))]
        try:
            found = model.score("q", texts) if number % 2 else asyncio.run(model.ascore("q", texts))
        except ServerError:
            outcomes["refused"] += 1
            return
        assert found == [float(len(text)) for text in texts]
        outcomes["right"] += 1

    with serving(answer) as (model, _):
        for number in range(300):
            call(model, number)

    assert outcomes["right"] > 100
    assert outcomes["refused"] > 20
    assert sum(outcomes.values()) == 300


def test_what_cannot_be_sent_is_not_json() -> None:
    content = Request("POST", "/x", {"text": "\ud800 \u706b"}).content

    assert json.loads(content) == {"text": "? \u706b"}
