"""The right to be the one writer, for longer than a transaction."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, SupportsFloat, TypeVar

from colbert_rag.errors import IndexBusyError, IndexStorageError
from colbert_rag.forks import is_torn, no_fork, renewed_after_fork
from colbert_rag.index.handle import MEMORY
from colbert_rag.index.local.inherited import let_go
from colbert_rag.index.local.place import Place
from colbert_rag.index.local.translation import busy, is_busy, tells_damage, translated

Result = TypeVar("Result")

# Between two attempts at a lock. Not SQLite's own waiting, which Ctrl-C cannot end.
_PAUSE = 0.01

# The smallest page of SQLite, and so all that its file of nothing has after a commit: versions
# before this one made some.
_EMPTY = 512

# SQLite counts milliseconds in 32 bits; nobody waits for longer than a month.
_LONGEST = 30 * 24 * 60 * 60


class _Held(sqlite3.Connection):
    """A claim: a connection whose transaction lasts as long as the block that is entered with it.

    `__exit__` must stay that of the base class. An interrupt can fall before the first line of any
    written in Python, and then the claim would be held for ever; the one in C always runs. For the
    same reason nothing is locked before `__enter__`, between which and the block there is nothing.
    """

    claim: Claim
    file: tuple[int, int] | None = None
    thread: threading.Thread | None = None
    ended = False

    @classmethod
    def of(cls, claim: Claim) -> Self:
        """One that has locked nothing yet."""
        with no_fork():
            # Any thread may be the one that forks, and so the one that renews it in the child.
            held = cls(":memory:", check_same_thread=False)
        held.claim = claim
        renewed_after_fork(held)
        return held

    def __enter__(self) -> Self:
        """Wait for the lock."""
        try:
            with translated(self.claim.path, self.claim.timeout, "written"):
                self._wait()
            return self
        except BaseException:
            # An interrupt in the middle of opening leaves nothing that could be closed.
            with contextlib.suppress(sqlite3.ProgrammingError), no_fork():
                self.close()
            raise

    def last(self, work: Callable[[], Result]) -> Result:
        """`work()` as the last of the block, with the lock let go of behind it.

        `__exit__` would do that as well, and does after an interrupt, but a fork does not wait for
        it: it is not inside `no_fork`. And not by a commit, which writes a first page: on a full
        disk that fails, and would say so in place of what `work` has to say, or after its success.
        """
        try:
            return work()
        finally:
            with no_fork():
                self.rollback()

    def leave(self) -> None:
        """Behind the block: from now on whoever holds the claim next may close the connection."""
        if self.thread is None:  # it was never held, or by the process that this was forked from
            return
        self.ended = True
        if self.claim.last is not self:  # who already does, or has closed it, has let it alone
            with no_fork():
                self.remove()

    def remove(self) -> None:
        """Close the connection, and remove the file unless somebody else is writing."""
        with contextlib.suppress(sqlite3.Error, OSError):
            if self.is_held() or self.lock():
                self.claim.file.unlink()
        self.close()

    def renew(self) -> None:
        """In a forked child, which holds no lock of its parent: forget the file."""
        claim, ended = self.claim, self.ended
        let_go(self)
        if not is_torn():
            # A block that goes on in the child ends with nothing to do.
            super().__init__(":memory:", check_same_thread=False)
            self.claim, self.ended = claim, ended

    def _wait(self) -> None:
        claim = self.claim
        claim.refuse_nesting()
        deadline = time.monotonic() + claim.timeout
        while not self._attempt():
            if time.monotonic() >= deadline:
                raise busy(claim.path, claim.timeout)
            time.sleep(_PAUSE)
        self.thread = threading.current_thread()
        previous, claim.last = claim.last, self
        with no_fork():
            # The lock is let go of before the block ends: its `__exit__` needs the connection.
            if previous is not None and previous.ended:
                previous.close()
            del previous

    def _attempt(self) -> bool:
        with no_fork():
            return self._locked()

    def _locked(self) -> bool:
        try:
            file = self.claim.found()
            if file is None:
                self._open()  # which makes it
                file = self.claim.found()
            # Looked at before it is opened: afterwards, another one may have taken its name.
            self._open()
            self.file = file
            return self.lock()
        except sqlite3.DatabaseError as error:
            if tells_damage(error):
                raise self.claim.in_the_way() from error
            if not is_busy(error):
                raise
        return False

    def _open(self) -> None:
        claim = self.claim
        super().__init__(claim.file, timeout=0, isolation_level=None, check_same_thread=False)
        self.claim = claim  # the base class has cleared its attributes
        self.execute(f"PRAGMA page_size = {_EMPTY}")
        self.execute("PRAGMA journal_mode = MEMORY")

    def lock(self) -> bool:
        """Lock the file that was opened; without its name, it would lock nobody out."""
        self.execute("BEGIN EXCLUSIVE")
        return self.file is not None and self.claim.found() == self.file

    def is_held(self) -> bool:
        """Whether the block goes on."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # it was closed
            return self.in_transaction
        return False


class Claim:
    """A lock on an empty database beside an index, for the threads of all processes.

    It goes with the process, however that ends; the index itself is safe without it. Nothing is
    ever stored in it, so a file that holds something is not ours to write to or to remove.
    """

    def __init__(self, place: Place, kind: str = "writer", *, timeout: float) -> None:
        """Nothing is locked or written yet; `kind` ends the name of the file."""
        self.path = place.path
        self.timeout = timeout
        beside = Path(place.absolute)
        if place.path == MEMORY:
            beside = Path(tempfile.gettempdir()) / secrets.token_hex(16)
        self.file = beside.with_name(f"{beside.name}-{kind}")
        self.last: _Held | None = None

    def held(self) -> _Held:
        """The claim, to be entered by `with` and left by `leave`; `during` does both.

        Raises:
            IndexBusyError: somebody else is the writer, or this thread is.
            IndexStorageError: something else has the name of the file.
        """
        return _Held.of(self)

    def during(self, work: Callable[[], Result]) -> Result:
        """`work()` while the claim is held; a fork waits for none of it but SQLite's part.

        Raises:
            IndexBusyError: somebody else is the writer, or this thread is.
            IndexStorageError: something else has the name of the file.
        """
        held = self.held()
        try:
            with held:
                return held.last(work)
        finally:
            held.leave()

    def refuse_nesting(self) -> None:
        """A thread would wait for itself.

        Raises:
            IndexBusyError: this thread is the writer.
        """
        last = self.last
        if last is not None and last.is_held() and last.thread is threading.current_thread():
            raise IndexBusyError(
                f"{self.path} is being written to by the call that this one is part of: its "
                "documents are read while it writes. Collect what is to change, and change it "
                "afterwards"
            )

    def close(self) -> None:
        """Remove the file, unless somebody is writing; another thread may be ending its block."""
        last, self.last = self.last, None
        if last is not None and last.ended:  # else its block needs the connection, and closes it
            with no_fork():
                last.remove()

    def found(self) -> tuple[int, int] | None:
        """Device and inode of the file; None where there is none yet.

        Raises:
            IndexStorageError: something else has its name.
        """
        try:
            status = self.file.stat()
        except OSError:  # where it is not just missing, opening it gives the reason
            return None
        if status.st_size not in (0, _EMPTY) or not stat.S_ISREG(status.st_mode):
            raise self.in_the_way()
        return status.st_dev, status.st_ino

    def in_the_way(self) -> IndexStorageError:
        """The error of a file that is something else."""
        return IndexStorageError(
            f"{self.file} is in the way: who writes to {self.path} locks an empty file of that "
            "name, and this is something else. It was left untouched, as was the index. Move or "
            "delete it, and run the same call again"
        )


def seconds(busy_timeout: float) -> float:
    """How long to wait for another writer, as a number that SQLite takes.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, NaN, or longer than a month.
    """
    if isinstance(busy_timeout, bool) or not isinstance(busy_timeout, SupportsFloat):
        raise TypeError(f"busy_timeout is {busy_timeout!r}, expected a number of seconds")
    waiting = float(busy_timeout)
    if not 0 <= waiting <= _LONGEST:  # NaN is neither
        raise ValueError(f"busy_timeout is {waiting}, expected seconds from 0 to {_LONGEST:,}")
    return waiting
