"""Files that are not there, and the one beside them that was probably meant."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

MOST_NAMES = 1000
"""Names of a folder that are looked at: a slip of the pen is not worth reading a huge one."""

ALIKE = 0.75
"""How alike two names are, as difflib counts; with its 0.6, a common suffix nearly suffices."""


def no_such(path: str, *, folders: bool = False) -> FileNotFoundError:
    """The error for a file that is not there, with the name that was probably meant.

    Args:
        path: As the user named it.
        folders: Whether a folder would do as well.
    """
    near = nearby(path, Path.exists if folders else Path.is_file)
    found = "no such file or folder" if folders else "no such file"
    hint = f"; did you mean {near!r}?" if near else ""
    return FileNotFoundError(errno.ENOENT, f"{found}{hint}", path)


def nearby(path: str, fits: Callable[[Path], bool]) -> str:
    """What lies beside a path under a name much like its own; "" if nothing does.

    Args:
        path: What is not there, or not of that kind.
        fits: Whether a file or folder is of the kind that is looked for.
    """
    wanted = Path(path)
    try:
        with os.scandir(wanted.parent) as entries:
            found = [entry.name for entry in islice(entries, MOST_NAMES)]
        names = {Path(name).stem.lower(): name for name in found}  # a suffix may be left out
        names |= {name.lower(): name for name in found}
        near = get_close_matches(wanted.name.lower(), names, cutoff=ALIKE)
        beside = (wanted.parent / names[name] for name in near)
        return next((str(file) for file in beside if file != wanted and fits(file)), "")
    except (OSError, ValueError):  # no folder, or no name that a file can have
        return ""
