"""Who is computed for, and when: a bounded queue, a deadline, and nothing for those who left.

That requests which arrive together are encoded together is the encoder's doing (`batching.py`):
each batch is shared by all calls that wait, in equal parts. So a request is a call in a thread of
its own, and what is left to decide is how many of them there may be.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from colbert_rag.batching import giving_up
from colbert_rag.server.errors import ApiError
from colbert_rag.server.limits import Limits

Result = TypeVar("Result")

SHORT, LONG = 1, 16
"""Batches of tokens up to which a request is a short one, and above which it is a long one. Short
ones have places of their own, since each is done with the next batch or two. Long ones take half of
the other places at most, so that however many there are, the rest finds one."""

PATIENCE = 60
"""Seconds after which clients are told to come back, at most."""


class AbandonedError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """One request.

    Attributes:
        deadline: When its time is over, by `time.monotonic`.
        begun: Whether it is being computed.
        refused: Whether the server stops before it has begun.
        given_up: Whether nobody waits for it any more.
    """

    deadline: float
    begun: bool = False
    refused: bool = False
    given_up: bool = False

    @property
    def seconds(self) -> float:
        """What is left of its time."""
        return max(self.deadline - time.monotonic(), 0.0)

    def check(self) -> None:
        """Asked in the thread that computes, between batches.

        Raises:
            AbandonedError: the work is for nobody.
        """
        if self.given_up or time.monotonic() > self.deadline:
            raise AbandonedError


class Scheduler:
    """Runs requests in threads; used from one event loop.

    Attributes:
        stopping: Whether nothing new is begun.
    """

    def __init__(self, limits: Limits, *, batch_tokens: int) -> None:
        """Start idle.

        Args:
            limits: How many may run and wait, and for how long.
            batch_tokens: Tokens of one of the encoder's batches.
        """
        self.limits = limits
        self.stopping = False
        self._batch_tokens = batch_tokens
        self._threads = ThreadPoolExecutor(2 * limits.running, thread_name_prefix="request")
        self._short = asyncio.Semaphore(limits.running)
        self._any = asyncio.Semaphore(limits.running)
        self._long = asyncio.Semaphore(max(limits.running // 2, 1))
        self._writer = asyncio.Semaphore(1)
        self._jobs: dict[Job, asyncio.Task[object]] = {}
        self._seconds = 0.1  # of a request, lately

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return sum(job.begun for job in self._jobs)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._jobs) - self.running

    async def run(
        self,
        work: Callable[[], Result],
        *,
        tokens: int,
        hung_up: Callable[[], Awaitable[None]],
        writes: bool = False,
    ) -> Result:
        """Compute something in a thread, once there is room.

        Args:
            work: What to compute.
            tokens: About how many tokens it may have to encode.
            hung_up: Returns when the client is gone.
            writes: Whether it changes the index, which one at a time may do.

        Raises:
            AbandonedError: the client hung up.
            ApiError: there is no room (429), no time (504), or the server stops (503).
        """
        if self.stopping:
            raise stopping()
        # Not those that wait: of a burst, none has begun yet.
        if len(self._jobs) >= 2 * self.limits.running + self.limits.waiting:
            raise self._full()
        job = Job(deadline=time.monotonic() + self.limits.seconds)
        lanes = [self._writer] if writes else []
        task = asyncio.ensure_future(self._turn(job, work, [*lanes, *self._lanes(tokens)]))
        with self._known(job, task):
            return await self._watched(job, task, hung_up)

    def _lanes(self, tokens: int) -> list[asyncio.Semaphore]:
        """In which a request needs a place."""
        if tokens <= SHORT * self._batch_tokens:
            return [self._short]
        return [self._long, self._any] if tokens > LONG * self._batch_tokens else [self._any]

    @contextmanager
    def _known(self, job: Job, task: asyncio.Task[Result]) -> Iterator[None]:
        self._jobs[job] = task
        try:
            yield
        finally:
            del self._jobs[job]
            # What still runs, of one that hung up or is late, ends after the batch it is in.
            job.given_up = True
            task.cancel()

    async def _watched(
        self, job: Job, task: asyncio.Task[Result], hung_up: Callable[[], Awaitable[None]]
    ) -> Result:
        """The result, unless the client leaves or time is over before it is there."""
        leaving = asyncio.ensure_future(hung_up())
        try:
            await asyncio.wait(
                {task, leaving}, timeout=job.seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            leaving.cancel()
        if job.refused:
            raise stopping()
        if (
            task.done()
            and not task.cancelled()
            and not isinstance(task.exception(), AbandonedError)
        ):
            return task.result()
        if job.seconds:
            raise AbandonedError
        raise ApiError(
            504,
            f"no answer within {self.limits.seconds:g} seconds: send fewer or shorter documents, "
            "or let the server take longer (--timeout)",
        )

    async def _turn(
        self, job: Job, work: Callable[[], Result], lanes: list[asyncio.Semaphore]
    ) -> Result:
        """Wait for a place in each lane, in one order for all, and compute."""
        async with AsyncExitStack() as held:
            for lane in lanes:
                await held.enter_async_context(lane)
            job.begun = True
            begun = time.monotonic()

            def compute() -> Result:
                with giving_up(job.check):
                    job.check()
                    return work()

            result = await asyncio.get_running_loop().run_in_executor(self._threads, compute)
            self._seconds += (time.monotonic() - begun - self._seconds) / 16
            return result

    def _full(self) -> ApiError:
        turns = (self.waiting + 1) / self.limits.running
        seconds = min(max(math.ceil(turns * self._seconds), 1), PATIENCE)
        waiting = "1 request waits" if self.waiting == 1 else f"{self.waiting} requests wait"
        return ApiError(
            429,
            f"{waiting} already, and no more may; try again in {seconds} s",
            code="queue_full",
            retry_after=seconds,
        )

    def stop(self) -> None:
        """Begin nothing any more: who waits is told so, what runs goes on."""
        self.stopping = True
        for job, task in self._jobs.items():
            if not job.begun:
                job.refused = True
                task.cancel()

    def close(self) -> None:
        """Let what still runs end after the batch it is in, and the threads with it."""
        for job in self._jobs:
            job.given_up = True
        self._threads.shutdown(wait=True, cancel_futures=True)


def stopping() -> ApiError:
    """What those get who come too late."""
    return ApiError(503, "the server is stopping; try again, another one may answer", retry_after=1)
