"""Forks: which work they wait for, and what a forked process makes anew."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

# A fork never waits for longer: the work that it waits for might wait for the thread that forks.
_LONGEST = 10.0

# The door is held for so long by a fork alone.
_SHORT = 0.05

Work = Literal["index", "model"]
"""What a fork waits for: each has a library whose locks nobody can make anew, see `_REASONS`."""

# The locks of each thread, in the order in which a fork takes them: it would wait for a thread that
# has one of them and wants one before it. A search of an index computes. And in the middle of a
# product, an index is closed by the collector of garbage, or used by the handler of a signal.
_ORDER: tuple[Work, ...] = ("index", "model", "index")

_REASONS: dict[Work, tuple[str, str]] = {
    "index": ("reading or writing an index", "SQLite"),
    "model": ("computing with a model", "oneDNN"),
}


class Renewable(Protocol):
    """An object with locks, threads or connections of its own."""

    def renew(self) -> None:
        """Make them anew; called in a forked child, before any of its own code runs."""
        ...


def renewed_after_fork(renewable: Renewable) -> None:
    """See that `renewable` can be used in a forked child, for as long as it lives.

    A fork copies the memory and only the thread that forks. A lock that another thread held at that
    moment would stay locked for ever in the child.
    """
    _RENEWABLES.add(renewable)


def no_fork(work: Work = "index") -> contextlib.AbstractContextManager[object]:
    """To enter by `with` around work in a library whose locks nobody can make anew, like SQLite's.

    A fork waits until all other threads have left. They do not wait for each other, since each has
    locks of its own, and a thread may enter again while it is inside. The locks are C: an interrupt
    between the lines of one written in Python could leave it held.

    Raises:
        RuntimeError: a thread was inside when this process was forked, and is not here to leave.
    """
    if work in _torn:
        doing, library = _REASONS[work]
        raise RuntimeError(
            f"this process was forked while another thread was {doing}, and still was after "
            f"{_LONGEST:g} seconds: {library} would wait for that thread for ever. "
            'Start processes by multiprocessing.get_context("spawn"), or fork before such work'
        )
    own: Sequence[Any] = getattr(_own, "locks", ())
    if not own:
        with _door:
            own = [threading.RLock() for _ in _ORDER]
            _enlist(own)
        _own.locks = own
    elif _waiting and not any(lock._is_owned() for lock in own):  # as Condition asks it
        # Nobody comes in any more: threads that take turns would be all out only by chance.
        with _door:
            pass
    index, model, index_in_model = own
    inside: contextlib.AbstractContextManager[object] = model
    if work == "index":
        inside = index_in_model if model._is_owned() else index
    return inside


def _enlist(own: Sequence[Any]) -> None:
    """Have forks wait for the locks of this thread."""
    thread = threading.current_thread()
    _locks.update((lock, (work, thread)) for work, lock in zip(_ORDER, own, strict=True))


@contextlib.contextmanager
def no_fork_unless_waiting() -> Iterator[bool]:
    """As `no_fork`, for work that may be left out: entered with False where a fork waits already.

    That fork may wait for the work that waits for this. In threads that no interrupt reaches.
    """
    with contextlib.ExitStack() as inside:
        free = "index" not in _torn and _door.acquire(timeout=_SHORT)
        if free:
            try:
                inside.enter_context(no_fork())
            finally:
                _door.release()
        yield free


def _of_others() -> list[Any]:
    """The locks of all other threads."""
    own = getattr(_own, "locks", ())
    return [lock for lock in list(_locks) if lock not in own]


def _hold_all() -> None:
    """Before a fork: wait until no other thread is inside."""
    global _waiting
    # The second of two such functions has the time that the first one left.
    _own.until = deadline = getattr(_own, "until", None) or time.monotonic() + _LONGEST
    _waiting = _door.acquire(timeout=max(0.0, deadline - time.monotonic())) or _waiting
    # A thread that has ended is in no library, whatever it left held: who keeps its traceback keeps
    # its lock, which nobody could let go. In the child, no other thread seems to run. Not asked by
    # `is_alive`, which is false of a thread that goes on after its `join` was interrupted; nor by
    # the frames of all threads: this one is among them, and would keep all that any was holding.
    running = set(threading.enumerate())
    for lock, (_, thread) in list(_locks.items()):
        if thread not in running:
            del _locks[lock]
    for lock in _of_others():
        lock.acquire(timeout=max(0.0, deadline - time.monotonic()))


def _leave_all() -> None:
    """After it, in the parent."""
    global _waiting
    _own.until = None
    for lock in (*_of_others(), _door):
        if lock is _door and lock._is_owned():  # type: ignore[attr-defined]  # else another waits
            _waiting = False
        with contextlib.suppress(RuntimeError):  # it was let go as often as it was taken
            while True:
                lock.release()


def _renew_all() -> None:
    """After it, in the child."""
    global _door, _locks, _waiting
    _own.until = None
    # What is free was free, or is held by the thread that forked. Not all forks run `_hold_all`:
    # those of a server in C, like uWSGI, are told afterwards alone.
    _torn.update(_locks[lock][0] for lock in _of_others() if not lock.acquire(blocking=False))
    _door, _locks, _waiting = threading.RLock(), weakref.WeakKeyDictionary(), False
    if own := getattr(_own, "locks", ()):
        _enlist(own)
    # All of them, whichever fails: what is raised in the end is printed.
    with contextlib.ExitStack() as all_of_them:
        for renewable in list(_RENEWABLES):
            all_of_them.callback(renewable.renew)


def is_torn(work: Work = "index") -> bool:
    """Whether `no_fork` refuses."""
    return work in _torn


_RENEWABLES: weakref.WeakSet[Renewable] = weakref.WeakSet()
_own = threading.local()
_locks: weakref.WeakKeyDictionary[Any, tuple[Work, threading.Thread]] = weakref.WeakKeyDictionary()
_door = threading.RLock()  # in front of `_locks`
_torn: set[Work] = set()
_waiting = False

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    # Twice: an interrupt ends such a function wherever it is, and is printed and forgotten. The
    # second finishes what the first had begun, or locks would stay held for ever.
    for _ in range(2):
        os.register_at_fork(before=_hold_all, after_in_parent=_leave_all)
    os.register_at_fork(after_in_child=_renew_all)
