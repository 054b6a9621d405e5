"""Threads that compute side by side, each on one core."""

from __future__ import annotations

import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

from colbert_rag.forks import renewed_after_fork

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Computes parts of a batch at the same time; for one caller at a time.

    torch would rather share out the loops of every single operation. Then all cores wait for the
    slowest of them some hundred times in a forward pass, which costs up to a tenth of the time of
    two idle cores and a third where one of them has other work (benchmarks/NOTES.md); and whatever
    is no loop leaves all but one of them idle.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pool: ThreadPoolExecutor | None = None
        self._count = 0
        self._begun: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        renewed_after_fork(self)

    def renew(self) -> None:
        """Forget threads that a fork did not copy."""
        self._pool, self._count, self._begun = None, 0, weakref.WeakSet()

    def begin(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Future[Result]]:
        """`function` of every item, each in a thread of its own; none where no threads can be had.

        Python closes pools when its main thread ends, and then waits for the threads of its user:
        those may have a corpus to encode still.
        """
        try:
            if self._pool is None or self._count < len(items):
                self._pool, self._count = _started(len(items)), len(items)
            begun = [self._pool.submit(_result, function, item) for item in items]
        except RuntimeError:
            return []
        self._begun.update(begun)
        return begun

    def wait(self) -> None:
        """Wait until all that was begun has ended."""
        wait(list(self._begun))


def _result(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        return function(item)
    except BaseException as error:
        # They would keep the tensors of a forward pass until somebody asks what came of it.
        traceback.clear_frames(error.__traceback__)
        raise


def results(parts: list[Future[Result]]) -> list[Result]:
    """What threads have computed, when all of them have ended; `parts` is empty then.

    Raises:
        Exception: the first that a part raised. What the others hold is free, so that the caller
            can try again with less.
    """
    wait(parts)
    found = []
    try:
        while parts:
            # No name for it: it holds its error, whose traceback would hold this frame, and so it.
            found.append(parts.pop(0).result())
    finally:
        parts.clear()
    return found


def _started(count: int) -> ThreadPoolExecutor:
    """So many threads, in which an operation of torch uses one core.

    Raises:
        RuntimeError: not all of them can be started; none is left then.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, thread_name_prefix="encode")
    together = threading.Barrier(count)
    try:
        wait([pool.submit(_use_one_core, together) for _ in range(count)])
    except RuntimeError:
        together.abort()
        raise
    # torch keeps the number for each thread, but begins with the last that any of them has set.
    torch.set_num_threads(threads)
    return pool


def _use_one_core(together: threading.Barrier) -> None:
    # Asked first, because a thread that has not computed yet would forget what is set.
    torch.get_num_threads()
    # All at once, since a thread of the user that begins to compute meanwhile would have one core.
    together.wait()
    torch.set_num_threads(1)
