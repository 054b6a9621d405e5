"""Files that are written as a whole or not at all; errors say which file, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import IO

_WANTS_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: str | os.PathLike[str], text: str, *, errors: str = "strict") -> None:
    """Write UTF-8 aside, and put it in place of what is at `path`, which a failure leaves there.

    What is no regular file, such as a pipe, has other names, or lies where no file can be made or
    others have files (`/tmp`) is written to itself.

    Args:
        path: The file; a link's target is what is written.
        text: All of it.
        errors: What becomes of characters that UTF-8 cannot hold, as `str.encode` takes it.

    Raises:
        OSError: it cannot be written; names the file.
    """
    content = text.encode("utf-8", errors)
    try:
        target = Path(os.path.realpath(path))
        if _replaceable(Path(path), target):
            _replace(target, content)
        else:
            Path(path).write_bytes(content)
    except OSError as error:
        raise named(error, path) from error


def _replaceable(path: Path, target: Path) -> bool:
    """Whether another file may take the place of what is there, which then is one of one name."""
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):  # somebody's open file, or a pipe
        return False
    if not os.access(target.parent, os.W_OK) or target.parent.stat().st_mode & stat.S_ISVTX:
        return False
    try:
        there = path.stat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(there.st_mode) and there.st_nlink == 1 and os.access(target, os.W_OK)


def _replace(target: Path, content: bytes) -> None:
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    known = target.exists()
    try:
        # What replaces a file must not be open to more people before it has its mode.
        with open(aside, "xb", opener=private if known else None) as file:
            file.write(content)
            sync(file)
        if known:
            shutil.copymode(target, aside)
        aside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def sync(file: IO[bytes]) -> None:
    """Have on disk what was written, or a power cut leaves the name without the content."""
    file.flush()
    os.fsync(file.fileno())


def private(path: str, flags: int) -> int:
    """Open a file that nobody else may read while it is written."""
    return os.open(path, flags, 0o600)


def named(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """The same error, with the file that it is of, which those of a write lack, and with advice."""
    reason = error.strerror or str(error)
    if error.errno in _WANTS_SPACE:
        reason += ": free some space, and try again"
    return OSError(error.errno, reason, os.fspath(path))
