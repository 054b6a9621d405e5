"""Files that a process may have open at once: how many are left, and what to do where none is.

SQLite does not say why it could not open a file, so it is tried.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys

if sys.platform != "win32":
    import resource

# An index is its file, its log, the memory that its readers share, and the lock of its writer.
_OF_AN_INDEX = 4

_FULL = (errno.EMFILE, errno.ENFILE)


def tells_none_left(error: OSError) -> bool:
    """Whether a file could not be opened because too many are open."""
    return error.errno in _FULL


def are_used_up() -> bool:
    """Whether there are too few for another index."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(_OF_AN_INDEX):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return tells_none_left(error)
    return False


def spare() -> int | None:
    """How many more files may be opened; None where that cannot be known."""
    if sys.platform != "linux":
        return None
    try:
        # Not by `Path`, which makes an object of each.
        opened = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208  # but for that of the folder
    except OSError as error:
        return 0 if tells_none_left(error) else None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - opened


def advice() -> str:
    """What to do about too many open files."""
    known = sys.platform != "win32"
    limit = f" of {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} (ulimit -n)" if known else ""
    return f"raise the limit{limit}, or close indexes and other files that are not needed"
