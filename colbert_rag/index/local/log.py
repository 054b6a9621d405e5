"""Which log belongs to which file: a log that is left beside another file must never be replayed.

SQLite finds a log by its name alone. Put one file in place of another (`os.replace`, `cp`) while a
log is there, and it writes the pages of the old file over the new one, without an error.

So each commit writes a random tag into page 1 of the file, and beside it the tag of the commit
before. Page 1 is thereby part of every commit, and a log fits a file exactly where the file's tag
is that of a commit in the log, or of the commit before its first.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from colbert_rag.errors import IndexStorageError
from colbert_rag.index.local.place import Place

FORMAT_VERSION = 3

# A tag takes the upper three bytes of `user_version`, and the lowest is the format. The tag before
# is the schema cookie, which SQLite compares with what it was and nothing else.
_TAGS = 1 << 24

# The tag before that of the first commit. Not 0, which is the cookie of an empty file: a process
# that has opened one would not see that it holds tables by now.
_NONE_BEFORE = 1

# sqlite.org/fileformat2.html, 4.1: headers of the log and of a frame, and of page 1 in a frame.
_LOG_HEADER, _FRAME_HEADER, _PAGE_HEADER = 32, 24, 100
_COOKIE, _USER_VERSION = slice(40, 44), slice(60, 64)

# Another process may be folding the log into the file while it is looked at.
_LOOKS, _PAUSE = 6, 0.05


def stamp(connection: sqlite3.Connection) -> None:
    """Give the commit that is being written a tag of its own."""
    before = _tag_of(_pragma(connection, "user_version")) or _NONE_BEFORE
    connection.execute(f"PRAGMA schema_version = {before}")
    # A library in its defensive mode ignores that, and then nothing can be proven: no tag.
    linked = _pragma(connection, "schema_version") == before
    tag = _NONE_BEFORE + 1 + secrets.randbelow(_TAGS - _NONE_BEFORE - 1)
    value = (tag if linked else 0) << 8 | FORMAT_VERSION
    connection.execute(f"PRAGMA user_version = {value - (1 << 32) if value >> 31 else value}")


def check_log(path: Path) -> None:
    """Before `path` is opened: refuse a log beside it that was written for another file.

    Raises:
        IndexStorageError: there is one; nothing was changed.
    """
    for _ in range(_LOOKS):
        if not _has_foreign_log(path):
            return
        time.sleep(_PAUSE)
    raise IndexStorageError(
        f"{path} was put in place of another index, whose log is still beside it: "
        "opening would mix the two. Nothing was changed. Close the index that was here wherever it "
        f"is open, remove {path.name}-wal, {path.name}-shm and {path.name}-journal, and open it "
        "again. To replace an index that is in use, publish the new one to its path"
    )


def _has_foreign_log(path: Path) -> bool:
    """Whether a log beside `path` is that of another file, as far as it can be proven."""
    log, journal = (Path(f"{path}-{kind}") for kind in ("wal", "journal"))
    if not (_filled(log) or _filled(journal)):
        return False
    tag, before = _stored(path)
    # Without a tag the file was never folded into since it was made, so that nothing is known.
    if not tag:
        return False
    # Only the very first commit is made with a journal.
    if before > _NONE_BEFORE and _filled(journal):
        return True
    commits = _commits(log)
    first = next(commits, None)
    # A log without a whole commit holds nothing to replay; one without tags, nothing to tell.
    return first is not None and not any(
        tag in found or not found[0] for found in chain([first], commits)
    )


def remove_empty_log(place: Place) -> None:
    """Behind a connection for reading only, which makes a log and an index of it, and leaves both.

    Through a connection that may write SQLite removes them, if nobody else has the file open: by
    its own locks, so that no reader or writer loses a log that it uses. A log that holds commits is
    left to the next writer. To fold it in is a write, and one that `check_log` cannot tell from a
    foreign log would be mixed into the file by somebody who only reads.
    """
    path = Path(place.absolute)
    with contextlib.suppress(IndexStorageError, OSError, sqlite3.Error):
        place.check()
        if Path(f"{path}-wal").stat().st_size == 0:
            target = f"{path.as_uri()}?mode=rw"
            with contextlib.closing(sqlite3.connect(target, uri=True, timeout=0)) as connection:
                _pragma(connection, "user_version")  # the log is opened by the first read


def _filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _stored(path: Path) -> tuple[int, int]:
    """The tag in the file itself, whatever is in the log, and the one before it."""
    # Through SQLite, and never with `open`: closing a file drops the locks that this process has
    # on it through other connections (sqlite.org/howtocorrupt.html, 2.2).
    with contextlib.suppress(sqlite3.Error):
        target = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(target, uri=True)) as connection:
            tag = _tag_of(_pragma(connection, "user_version"))
            return tag, _pragma(connection, "schema_version")
    return 0, 0


def _commits(log: Path) -> Iterator[tuple[int, int]]:
    """The tag of each commit in the log, and of the one before it."""
    with contextlib.suppress(FileNotFoundError), log.open("rb") as stream:
        header = stream.read(_LOG_HEADER)
        page = int.from_bytes(header[8:12])
        while page:
            frame = stream.read(_FRAME_HEADER + _PAGE_HEADER)
            # What an earlier round left behind the end has other salts.
            if len(frame) < _FRAME_HEADER + _PAGE_HEADER or frame[8:16] != header[16:24]:
                return
            content = frame[_FRAME_HEADER:]
            if frame[:4] == b"\0\0\0\1" and content.startswith(b"SQLite format 3\0"):
                tag = _tag_of(int.from_bytes(content[_USER_VERSION]))
                yield tag, int.from_bytes(content[_COOKIE])
            stream.seek(page - _PAGE_HEADER, 1)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _tag_of(user_version: int) -> int:
    return user_version >> 8 & (_TAGS - 1)
