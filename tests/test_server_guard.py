"""What every request passes: how much is read and held, and for how long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from colbert_rag.server.guard import Guard
from colbert_rag.server.limits import Limits
from colbert_rag.server.schedule import AbandonedError

Message = dict[str, Any]
LIMITS = replace(Limits(), body=1000, bodies=2500, body_seconds=0.2)


class Counts:
    """Counts of one test."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Counter("requests", "", ("route", "status"), registry=registry)
        self.seconds = Histogram("seconds", "", ("route",), registry=registry)
        self.abandoned = Counter("abandoned", "", registry=registry)

    def of(self, status: object) -> float:
        return self.requests.labels("other", status)._value.get()


async def ask(
    guard: Guard, receive: Callable[[], Awaitable[Message]], *headers: tuple[bytes, bytes]
) -> tuple[int, str]:
    """Status and message of an answer; 0 where there is none."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": [*headers]}
    await guard(scope, receive, send)  # type: ignore[arg-type]
    if not sent:
        return 0, ""
    return sent[0]["status"], json.loads(sent[1]["body"])["message"]


def guarding(application: Callable[..., Awaitable[None]]) -> tuple[Guard, Counts]:
    counts = Counts()
    return Guard(application, limits=LIMITS, metrics=counts), counts  # type: ignore[arg-type]


async def reads_all(scope: Message, receive: Callable[..., Any], send: object) -> None:
    while (await receive()).get("more_body"):
        pass
    raise AbandonedError


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    guard, counts = guarding(reads_all)

    status, message = await ask(guard, never)

    assert status == 408
    assert "did not come within 0.2 seconds" in message
    assert counts.of(408) == 1


async def test_a_body_that_trickles_is_not_waited_for_either() -> None:
    async def trickle() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert (await ask(guarding(reads_all)[0], trickle))[0] == 408


async def test_a_body_without_a_length_is_counted_as_it_comes() -> None:
    async def more() -> Message:
        return {"type": "http.request", "body": b"x" * 400, "more_body": True}

    status, message = await ask(guarding(reads_all)[0], more, (b"transfer-encoding", b"chunked"))

    assert status == 413
    assert "the body is larger than" in message


async def test_what_all_bodies_take_is_bounded_and_given_back() -> None:
    guard, _ = guarding(reads_all)
    length = (b"content-length", b"1000")

    *answers, refused = await asyncio.gather(*(ask(guard, never, length) for _ in range(3)))

    assert [status for status, _ in answers] == [408, 408]
    assert refused[0] == 429
    assert (await ask(guard, never, length))[0] == 408


@pytest.mark.parametrize("length", [b"1001", b"9" * 18])
async def test_a_body_that_says_it_is_too_large_is_not_read(length: bytes) -> None:
    assert (await ask(guarding(reads_all)[0], never, (b"content-length", length)))[0] == 413


async def test_who_hung_up_is_counted_and_gets_nothing() -> None:
    async def whole() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    guard, counts = guarding(reads_all)

    assert await ask(guard, whole) == (0, "")
    assert counts.abandoned._value.get() == counts.of("none") == 1


async def test_what_runs_when_the_server_is_stopped_at_once_is_told_so() -> None:
    async def runs(scope: Message, receive: Callable[..., Any], send: object) -> None:
        await asyncio.Event().wait()

    guard, counts = guarding(runs)
    asking = asyncio.create_task(ask(guard, never))
    await asyncio.sleep(0)
    asking.cancel()

    status, message = await asking

    assert (status, counts.of(503)) == (503, 1)
    assert "the server is stopping" in message
