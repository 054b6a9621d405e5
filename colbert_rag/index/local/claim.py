"""The right to be the one writer, for longer than a transaction."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Self, SupportsFloat

from colbert_rag.errors import IndexBusyError
from colbert_rag.index.local.place import MEMORY, Place
from colbert_rag.index.local.translation import busy, is_busy, translated

# Between two attempts at a lock. Not SQLite's own waiting, which Ctrl-C cannot end.
_PAUSE = 0.01

# SQLite counts milliseconds in 32 bits; nobody waits for longer than a month.
_LONGEST = 30 * 24 * 60 * 60


class _Held(sqlite3.Connection):
    """A claim: a connection whose transaction lasts as long as the block that is entered with it.

    `__exit__` must stay that of the base class. An interrupt can fall before the first line of any
    written in Python, and then the claim would be held for ever; the one in C always runs. For the
    same reason nothing is locked before `__enter__`, between which and the block there is nothing.
    """

    claim: Claim
    thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Wait for the lock."""
        try:
            with translated(self.claim.path, self.claim.timeout, "written"):
                self._wait()
            return self
        except BaseException:
            self.close()
            raise

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
        if previous is not None:
            previous.close()

    def _attempt(self) -> bool:
        try:
            self.open()
            return _locked(self, self.claim.file)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        return False

    def open(self) -> None:
        """Open the file, which its last user may have removed since."""
        claim = self.claim
        super().__init__(claim.file, timeout=0, isolation_level=None, check_same_thread=False)
        self.claim = claim  # the base class has cleared its attributes
        self.execute("PRAGMA journal_mode = MEMORY")

    def is_held(self) -> bool:
        """Whether the block goes on."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # it was closed
            return self.in_transaction
        return False


class Claim:
    """A lock on an empty database beside an index, for the threads of all processes.

    It goes with the process, however that ends; the index itself is safe without it.
    """

    def __init__(self, place: Place, *, timeout: float) -> None:
        """Nothing is locked or written yet."""
        self.path = place.path
        self.timeout = timeout
        beside = Path(place.absolute)
        if place.path == MEMORY:
            beside = Path(tempfile.gettempdir()) / secrets.token_hex(16)
        self.file = beside.with_name(f"{beside.name}-writer")
        self.last: _Held | None = None

    def held(self) -> contextlib.AbstractContextManager[object]:
        """The claim, for the length of a block.

        Raises:
            IndexBusyError: somebody else is the writer, or this thread is.
        """
        claim = _Held(":memory:")
        claim.claim = self
        return claim

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
        """Remove the file, unless somebody is writing."""
        last, self.last = self.last, None
        if last is None:
            return
        with contextlib.suppress(sqlite3.Error, OSError):
            if last.is_held() or _locked(last, self.file):
                self.file.unlink()
        last.close()


def _locked(claim: sqlite3.Connection, file: Path) -> bool:
    """Lock a file; one that was removed or replaced meanwhile would lock nobody out."""
    try:
        before = file.stat()
        claim.execute("BEGIN EXCLUSIVE")
        return file.stat().st_ino == before.st_ino
    except FileNotFoundError:
        return False


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
