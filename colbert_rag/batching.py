"""Calls that arrive together are computed together: one thread forms batches from all of them."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from colbert_rag.computing import computing
from colbert_rag.forks import renewed_after_fork

Texts: TypeAlias = NDArray[np.int64]
"""Numbers of some texts of one call, `(texts,)`."""

Progress = Callable[[int], object]
Payload = TypeVar("Payload")
Part: TypeAlias = tuple[Payload, Texts]
"""What a batch takes of one call."""

_check: ContextVar[Callable[[], object] | None] = ContextVar("check", default=None)


@contextmanager
def giving_up(check: Callable[[], object]) -> Iterator[None]:
    """Inside, whatever encodes calls `check` between its batches; what it raises ends the work.

    A context variable and no argument: it reaches the encoder through `rank`, `rank_many`, `search`
    and `add` alike, and each thread has its own.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Begun:
    """A batch under way.

    Attributes:
        parts: What cores compute of it side by side; none where `finish` computes all.
        finish: Computes or waits for what is left, and hands it to the calls.
    """

    parts: Sequence[Future[Any]]
    finish: Callable[[], None]


@dataclass(eq=False, slots=True, kw_only=True)
class Call(Generic[Payload]):
    """The texts of one call while they wait for their turn.

    Attributes:
        payload: What `begin` needs to know of the call.
        begin: Begins one batch; it is given parts of calls of one kind.
        kind: Calls of the same kind share batches.
        lengths: Tokens of each text, `(texts,)`.
        waiting: Batches within the budget that were not begun, in order.
        threads: Threads that the caller lets one operation use.
        wanted: Whether the caller still waits for it, and nothing of it has failed.
        steps: For the caller: numbers of texts done, or what went wrong.
    """

    payload: Payload
    begin: Callable[[Sequence[Part[Payload]]], Begun]
    kind: Hashable
    lengths: NDArray[np.int64]
    waiting: deque[Texts]
    threads: int = 1
    wanted: bool = True
    steps: SimpleQueue[int | BaseException] = field(default_factory=SimpleQueue)

    def take(self, tokens: int, *, at_least_one: bool) -> Texts:
        """The next texts that fit into so many tokens, no longer waiting."""
        batch = self.waiting.popleft()
        fitting = int(np.searchsorted(self.lengths[batch].cumsum(), tokens, side="right"))
        fitting = max(fitting, int(at_least_one))
        if fitting < len(batch):
            self.waiting.appendleft(batch[fitting:])
        return batch[:fitting]


class Batcher:
    """Computes the texts of all callers in one thread of its own, batch after batch.

    Callers of the same moment share a batch: each gets an equal part of its tokens, and what one
    does not need goes to the others. So a short call is in the very next batch, however long the
    one before it is, and short calls fill a batch together.

    One thread, because two batches at once would share the same cores or the same memory and
    neither would end sooner; but the next one begins where one core waits for another. Not the
    thread of a caller, because that can be interrupted anywhere, with the texts of others in its
    hands.
    """

    def __init__(self, budget: int) -> None:
        """Start idle.

        Args:
            budget: Tokens of a batch.
        """
        self._budget = budget
        self._start()
        renewed_after_fork(self)

    def renew(self) -> None:
        """Forget the thread and its calls: neither is there after a fork."""
        self._start()

    def _start(self) -> None:
        # Not a Condition, which is entered and left in Python: an interrupt can fall between its
        # lines, and the lock would be held for ever. A lock and this queue are C.
        self._lock = threading.Lock()
        self._arrived: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Let the thread end after what it is computing, and wait for that."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._arrived.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def complete(self, call: Call[Any], progress: Progress | None = None) -> None:
        """Wait until every text of a call is done.

        Args:
            call: The call; an exception that leaves here takes back what was not begun.
            progress: Called with the number of texts done since the last call.
        """
        remaining = sum(map(len, call.waiting))
        if not remaining:
            return
        with computing():  # which may have something to say about their number
            call.threads = torch.get_num_threads()
        check = _check.get() or (lambda: None)
        check()
        try:
            with self._lock:
                if self._thread is None:
                    arrived: SimpleQueue[Call[Any] | None] = SimpleQueue()
                    # A daemon, so that leaving Python waits for one batch and not for all.
                    thread = threading.Thread(
                        target=_work, args=(arrived, self._budget), name="encode", daemon=True
                    )
                    thread.start()
                    self._arrived, self._thread = arrived, thread
                self._arrived.put(call)
            while remaining:
                done = _done(call.steps.get())
                remaining -= done
                if progress is not None:
                    progress(done)
                if remaining:
                    check()
        finally:
            call.wanted = False


def _done(step: int | BaseException) -> int:
    """The number of texts done, or what went wrong raised."""
    if not isinstance(step, BaseException):
        return step
    try:
        raise step
    finally:
        del step  # its traceback has this frame


@dataclass(frozen=True, eq=False, slots=True)
class _Batch:
    """What is under way, and whose texts they are."""

    calls: Sequence[tuple[Call[Any], Texts]]
    begun: Begun


def _work(arrived: SimpleQueue[Call[Any] | None], budget: int) -> None:
    """Compute what arrives, until a None does; the calls that wait are this thread's alone."""
    calls: deque[Call[Any]] = deque()
    last: _Batch | None = None
    while _receive(arrived, calls, wait=last is None):
        last = _advance(calls, budget, last)
    if last is not None:
        _finish(last)


def _receive(arrived: SimpleQueue[Call[Any] | None], calls: deque[Call[Any]], wait: bool) -> bool:
    """Take in all that has arrived, and wait where there is nothing to compute; False to end."""
    while True:
        while calls and not (calls[0].wanted and calls[0].waiting):
            calls.popleft()
        if arrived.empty() and (calls or not wait):
            return True
        call = arrived.get()
        if call is None:
            return False
        calls.append(call)
        del call


def _advance(calls: deque[Call[Any]], budget: int, last: _Batch | None) -> _Batch | None:
    """Begin a batch, end the last one, and come back when a core is free for the next.

    Returns:
        What is still being computed. An idle thread has none, and keeps no model alive.
    """
    batch = _begin(_share(calls, budget)) if calls else None
    if last is not None:
        _finish(last)
    if batch is None:
        return None
    if not batch.begun.parts:
        _finish(batch)
        return None
    wait(batch.begun.parts, return_when=FIRST_COMPLETED)
    return batch


def _share(calls: deque[Call[Any]], budget: int) -> list[tuple[Call[Any], Texts]]:
    """Take texts of every call of one kind, in equal parts; the first call sets the kind."""
    first = calls[0]
    together = [call for call in calls if call.waiting and call.kind == first.kind]
    tokens, taken = budget, []
    for place, call in enumerate(together):
        part = tokens // (len(together) - place)
        texts = call.take(part, at_least_one=place == 0)
        if len(texts):
            taken.append((call, texts))
            tokens -= int(call.lengths[texts].sum())
    # Another call is first next time.
    calls.rotate(-1)
    return taken


def _begin(calls: Sequence[tuple[Call[Any], Texts]]) -> _Batch:
    """Begin a batch; what goes wrong comes out when it is finished."""
    first = calls[0][0]
    try:
        _use(first.threads)
        begun = first.begin([(call.payload, texts) for call, texts in calls])
    except BaseException as error:
        begun = Begun(parts=(), finish=partial(_fail, [error]))
    return _Batch(calls, begun)


def _finish(batch: _Batch) -> None:
    """End a batch and tell its callers; what fails together is tried alone."""
    try:
        _use(batch.calls[0][0].threads)  # again: others may have been begun since
        batch.begun.finish()
    except BaseException as error:
        # Its frames have the batch, and the batch has it: only the collector would free them.
        traceback.clear_frames(error.__traceback__)
        if len(batch.calls) == 1:
            _refuse(batch.calls[0][0], error)
            return
    else:
        for call, texts in batch.calls:
            call.steps.put(len(texts))
        return
    # Outside of the handler, so that the failed batch is no context of the next error.
    for part in batch.calls:
        _finish(_begin([part]))


def _use(threads: int) -> None:
    """Let an operation in this thread, which keeps the number for itself, use so many."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _refuse(call: Call[Any], error: BaseException) -> None:
    """Tell a caller what went wrong, once: what nobody takes would keep the call by its frames."""
    if call.wanted:
        call.wanted = False
        call.steps.put(error)


def _fail(errors: list[BaseException]) -> None:
    # Popped, since its traceback holds the frames that hold the list.
    raise errors.pop()
