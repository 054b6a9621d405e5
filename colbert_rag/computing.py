"""Around what torch computes: no fork falls into it, and a forked child does it on one thread."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager

import torch

from colbert_rag.forks import no_fork, renewed_after_fork

logger = logging.getLogger(__name__)


def computing() -> AbstractContextManager[object]:
    """To enter by `with` around products of matrices, for no longer than seconds.

    Another thread that forks waits until they are done. oneDNN keeps the code that it compiled
    behind a lock; a child that was forked while a thread had it would wait for that thread for
    ever, at its first product of a new shape.

    Raises:
        RuntimeError: a thread was computing when this process was forked, and is not here to end.
    """
    _process.begin()
    return no_fork("model")


class _Process:
    """Whether this process has computed, and whether the one that it was forked from had."""

    def __init__(self) -> None:
        self._begun = self._warned = False
        self._survivor: int | None = None
        renewed_after_fork(self)

    def begin(self) -> None:
        """Before anything is computed: in a forked child, on one thread.

        OpenMP keeps threads in a pool of each thread that computes, and a fork copies the pool
        without them. So this concerns the thread that forked, which is the only one that goes on
        in the child. torch takes the number of threads from whoever set it last, but a thread that
        has computed before keeps its own.
        """
        self._begun = True
        if self._survivor is None:
            return
        here = threading.get_ident() == self._survivor
        if here or not self._warned:
            torch.set_num_threads(1)
        if here:
            self._survivor = None
        if not self._warned:
            self._warned = True
            logger.warning(
                "this process was forked after its parent had loaded the model, so it computes on "
                "one thread: more would wait for ever. Load the model after the fork to use all"
            )

    def renew(self) -> None:
        """In a forked child, in the thread that forked."""
        if self._begun:
            self._survivor, self._warned = threading.get_ident(), False


_process = _Process()
