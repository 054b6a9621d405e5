"""Who is computed for: a bounded queue, a deadline, nothing for those who left, an orderly end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from colbert_rag.batching import _check
from colbert_rag.server.errors import ApiError
from colbert_rag.server.limits import Limits
from colbert_rag.server.schedule import LONG, SHORT, AbandonedError, Scheduler

Result = TypeVar("Result")

LIMITS = Limits(running=2, waiting=1, seconds=30)
SOME_TOKENS, LONG_TOKENS = SHORT * 100 + 1, LONG * 100 + 1


class Work:
    """A request that begins, and ends when it is told to; it asks whether it is wanted."""

    def __init__(self, answer: str = "done") -> None:
        self.answer = answer
        self.begun, self.ended = threading.Event(), threading.Event()
        self.finish = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        try:
            while not self.finish.wait(0.005):
                check = _check.get()
                assert check is not None
                check()
            return self.answer
        finally:
            self.ended.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def for_ever() -> None:
    await asyncio.Event().wait()


def ask(
    scheduler: Scheduler,
    work: Callable[[], Result],
    *,
    tokens: int = SOME_TOKENS,
    hung_up: Callable[[], object] = for_ever,
    writes: bool = False,
) -> asyncio.Task[Result]:
    return asyncio.ensure_future(
        scheduler.run(work, tokens=tokens, hung_up=hung_up, writes=writes)  # type: ignore[arg-type]
    )


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(LIMITS, batch_tokens=100)
    yield scheduler
    await asyncio.to_thread(scheduler.close)


async def test_what_waits_is_bounded_and_the_rest_is_told_when_to_come_back(
    scheduler: Scheduler,
) -> None:
    works = [Work() for _ in range(5)]
    asked = [ask(scheduler, work) for work in works]
    await until(lambda: scheduler.running == 2 and scheduler.waiting == 3)

    with pytest.raises(ApiError, match="3 requests wait already") as refused:
        await ask(scheduler, Work())

    assert refused.value.status == 429
    assert refused.value.response().headers["retry-after"] == "1"
    for work in works:
        work.finish.set()
    assert await asyncio.gather(*asked) == ["done"] * 5
    assert scheduler.running == scheduler.waiting == 0


async def test_a_slow_service_asks_for_more_patience(scheduler: Scheduler) -> None:
    scheduler._seconds = 8.0
    asked = [ask(scheduler, Work()) for _ in range(5)]
    await until(lambda: scheduler.waiting == 3)

    with pytest.raises(ApiError) as refused:
        await ask(scheduler, Work())

    # Three wait and this would be the fourth, two run at a time: two turns of eight seconds.
    assert refused.value.retry_after == 16
    for task in asked:
        task.cancel()


async def test_long_requests_leave_half_of_the_places_to_short_ones(scheduler: Scheduler) -> None:
    long = [Work() for _ in range(3)]
    asked = [ask(scheduler, work, tokens=LONG_TOKENS) for work in long]
    await until(long[0].begun.is_set)

    short = Work("short")
    short.finish.set()

    assert await ask(scheduler, short) == "short"
    assert [work.begun.is_set() for work in long] == [True, False, False]
    for work in long:
        work.finish.set()
    assert await asyncio.gather(*asked) == ["done"] * 3


async def test_short_requests_have_places_of_their_own(scheduler: Scheduler) -> None:
    others = [Work() for _ in range(3)]
    asked = [ask(scheduler, work) for work in others]
    await until(lambda: scheduler.running == 2)
    short = Work("short")
    short.finish.set()

    assert await ask(scheduler, short, tokens=1) == "short"

    assert [work.begun.is_set() for work in others] == [True, True, False]
    for work in others:
        work.finish.set()
    await asyncio.gather(*asked)


async def test_nothing_is_computed_for_who_left_before_it_began(scheduler: Scheduler) -> None:
    running = [Work(), Work()]
    asked = [ask(scheduler, work) for work in running]
    await until(lambda: scheduler.running == 2)
    leaving, waiting = asyncio.Event(), Work()
    left = ask(scheduler, waiting, hung_up=leaving.wait)
    await until(lambda: scheduler.waiting == 1)

    leaving.set()

    with pytest.raises(AbandonedError):
        await left
    assert scheduler.waiting == 0
    for work in running:
        work.finish.set()
    await asyncio.gather(*asked)
    assert not waiting.begun.is_set()


async def test_what_runs_for_who_left_ends_at_the_next_batch(scheduler: Scheduler) -> None:
    leaving, work = asyncio.Event(), Work()
    left = ask(scheduler, work, hung_up=leaving.wait)
    await until(work.begun.is_set)

    leaving.set()

    with pytest.raises(AbandonedError):
        await left
    await until(work.ended.is_set)
    assert not work.finish.is_set()
    next_one = Work("next")
    next_one.finish.set()
    assert await ask(scheduler, next_one) == "next"


async def test_what_takes_too_long_is_answered_and_ended() -> None:
    scheduler = Scheduler(replace(LIMITS, seconds=0.1), batch_tokens=100)
    work = Work()

    with pytest.raises(ApiError, match=r"no answer within 0\.1 seconds") as late:
        await ask(scheduler, work)

    assert late.value.status == 504
    await until(work.ended.is_set)
    await asyncio.to_thread(scheduler.close)


async def test_waiting_counts_as_time() -> None:
    scheduler = Scheduler(replace(LIMITS, running=1, seconds=60), batch_tokens=100)
    first, second = Work(), Work()
    # Has time for ever: else it could be late a moment before the other, which then had its place.
    answer = ask(scheduler, first)
    await until(lambda: scheduler.running == 1)
    scheduler.limits = replace(LIMITS, running=1, seconds=0.3)

    with pytest.raises(ApiError) as late:
        await ask(scheduler, second)

    assert late.value.status == 504
    first.finish.set()
    assert await answer == "done"
    await asyncio.to_thread(scheduler.close)
    assert not second.begun.is_set()


async def test_an_error_of_the_work_is_the_callers(scheduler: Scheduler) -> None:
    def work() -> str:
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        await scheduler.run(work, tokens=SOME_TOKENS, hung_up=for_ever)
    assert scheduler.running == 0


async def test_a_stop_finishes_what_runs_and_refuses_the_rest(scheduler: Scheduler) -> None:
    running, waiting = [Work(), Work()], [Work(), Work()]
    asked = [ask(scheduler, work) for work in running]
    await until(lambda: scheduler.running == 2)
    refused = [ask(scheduler, work) for work in waiting]
    await until(lambda: scheduler.waiting == 2)

    scheduler.stop()

    errors = await asyncio.gather(*refused, return_exceptions=True)
    assert [getattr(error, "status", None) for error in errors] == [503, 503]
    with pytest.raises(ApiError, match="stopping"):
        await ask(scheduler, Work())
    for work in running:
        work.finish.set()
    assert await asyncio.gather(*asked) == ["done", "done"]
    assert not any(work.begun.is_set() for work in waiting)


async def test_a_close_ends_what_still_runs(scheduler: Scheduler) -> None:
    work = Work()
    asked = ask(scheduler, work)
    await until(work.begun.is_set)

    await asyncio.to_thread(scheduler.close)

    assert work.ended.is_set()
    with pytest.raises(AbandonedError):
        await asked


async def test_one_writer_at_a_time(scheduler: Scheduler) -> None:
    writers = [Work(), Work()]
    asked = [ask(scheduler, work, writes=True) for work in writers]
    await until(writers[0].begun.is_set)
    reader = Work("read")
    reader.finish.set()

    assert await ask(scheduler, reader) == "read"

    assert not writers[1].begun.is_set()
    for work in writers:
        work.finish.set()
    assert await asyncio.gather(*asked) == ["done", "done"]
