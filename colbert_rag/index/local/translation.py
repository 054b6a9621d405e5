"""SQLite's errors in our words: what happened to which file, and what to do."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import Literal, TypeAlias

from colbert_rag.errors import (
    ColBERTRagError,
    IndexBusyError,
    IndexCorruptError,
    IndexStorageError,
)
from colbert_rag.index.local import descriptors

Action: TypeAlias = Literal["opened", "read", "written"]

_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "see that its folder exists, is writable and has room for a file",
    sqlite3.SQLITE_PERM: "make the file and its folder writable",
    sqlite3.SQLITE_IOERR: "see that the disk has space and works",
    sqlite3.SQLITE_TOOBIG: "split the document",
} | dict.fromkeys(
    # On a full disk an intact file can be read only where somebody has it open already.
    (sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE),
    "free some space (even reading takes 32 KiB beside the file)",
)
_TOO_MANY = "too many open files"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
_ADVICE_WITHOUT_A_WRITE = _ADVICE | {
    # Reading asks for a writable folder too, for the log that parts readers from the writer.
    sqlite3.SQLITE_CANTOPEN: "see that its folder exists, has room for a file, and that both may "
    "be read and written",
    sqlite3.SQLITE_IOERR: "see that the disk works, or restore the file from a copy",
}


@contextlib.contextmanager
def translated(path: str, timeout: float, action: Action) -> Iterator[None]:
    """Raise SQLite's errors as ours; `action` is what was being done to the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, path, timeout, action) from error
    except OSError as error:
        if not descriptors.tells_none_left(error):
            raise
        advice = descriptors.advice()
        raise _unable(path, action, _TOO_MANY, advice) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes the damaged schema
        raise corrupt(path, str(error)) from error


def _translated(error: sqlite3.Error, path: str, timeout: float, action: Action) -> ColBERTRagError:
    kind = _kind(error)
    if is_busy(error):
        return busy(path, timeout)
    if kind == sqlite3.SQLITE_NOTADB:
        return IndexCorruptError(
            f"{path} is not an index, or its beginning is damaged ({error}). If it was one before, "
            "restore it from a copy; else name another path"
        )
    if tells_damage(error):
        return corrupt(path, str(error))
    if kind in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and descriptors.are_used_up():
        return _unable(path, action, _TOO_MANY, descriptors.advice())
    known = _ADVICE if action == "written" else _ADVICE_WITHOUT_A_WRITE
    advice = known.get(_code(error)) or known.get(kind, "wait a moment")
    return _unable(path, action, str(error), advice)


def _unable(path: str, action: Action, reason: str, advice: str) -> IndexStorageError:
    if action != "written":
        return IndexStorageError(
            f"{path} could not be {action} ({reason}): {advice}, and try again"
        )
    return IndexStorageError(
        f"{path} could not be written ({reason}). What was committed before is intact; {advice}, "
        "and run the same call again: it continues where it stopped"
    )


def _kind(error: sqlite3.Error) -> int:
    return _code(error) & 0xFF  # extended codes keep the kind in their lowest byte


def _code(error: sqlite3.Error) -> int:
    # The module's own errors have none.
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR))


def is_busy(error: BaseException) -> bool:
    """Whether somebody else holds a lock."""
    return isinstance(error, sqlite3.Error) and _kind(error) in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def tells_damage(error: sqlite3.Error) -> bool:
    """Whether what was stored is wrong, and not only what was tried: an operation can fail too."""
    # An intact index has the tables that we ask for, and takes every row that we write.
    missing = str(error).startswith(("no such table", "no such column", "no such index"))
    undecodable = str(error).startswith("Could not decode to UTF-8")
    return missing or undecodable or _kind(error) in _DAMAGE


def check_header(connection: sqlite3.Connection, path: str) -> None:
    """Refuse a file whose header says that nobody may write it, as a flipped bit does.

    Asked by a write that changes nothing, since such a file lets one begin a transaction. Its
    header is not to be read: closing a file lets go of all locks of this process on it.

    Raises:
        IndexCorruptError: it says so.
    """
    try:
        connection.execute("UPDATE settings SET value = value WHERE 0")
    except sqlite3.OperationalError as error:  # such as that somebody is writing
        # Not its kind: a file that was moved has a code of that kind, too.
        if _code(error) == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK):
            raise corrupt(path, "its header forbids to write it") from error


def busy(path: str, timeout: float) -> IndexBusyError:
    """The error of a second writer."""
    return IndexBusyError(
        f"{path} is being written to by another process or thread, and still was after "
        f"{timeout:g} seconds. An index has one writer at a time, and any number of readers: wait "
        "for it to finish, open with a longer busy_timeout, or use QdrantIndex, which takes "
        "several writers"
    )


def corrupt(path: str, reason: str) -> IndexCorruptError:
    """The error of a file that does not hold what was written."""
    return IndexCorruptError(
        f"{path} is damaged, or not an index ({reason}). Restore it from a copy, or build it anew"
    )
