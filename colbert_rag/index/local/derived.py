"""A file beside the index that is derived from it: mapped by all who read it, and never changed.

SQLite stays the truth. Such a file can be lost, torn or replaced at any time: it is made again. It
is written aside, synced and renamed, since a page that vanishes under a mapping kills the process
(SIGBUS): so it can be read, but not written, by those who may read the index, and is looked at anew
before each search.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import re
import secrets
import stat
from collections.abc import Callable
from io import BufferedRandom
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.descriptors import tells_none_left
from colbert_rag.written import private, sync

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]


class DerivedFile:
    """A file with a name of its own behind that of the index; it may be there or not."""

    def __init__(
        self, path: str, info: IndexInfo, *, ending: str, magic: bytes, purpose: str
    ) -> None:
        """Name the file for the index at `path` that `info` describes; nothing is opened.

        Args:
            path: The index.
            info: Which model made it.
            ending: What follows the name of the index.
            magic: How the file begins.
            purpose: What the name is for, and what goes on without the file; for a warning.
        """
        # A process may change its folder later; a link's target is where all links meet.
        self._index = Path(path).resolve()
        self.path = Path(f"{self._index}-{ending}")
        self._magic, self._purpose = magic, purpose
        self._dim = info.dim
        record = json.dumps(info.to_json(), sort_keys=True)
        self._model = hashlib.sha256(record.encode()).digest()

    def stamp(self) -> Stamp | None:
        """Changes whenever the file is replaced or tampered with; None if it is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for ever
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def size(self) -> int | None:
        """Its bytes; None if it is not there."""
        stamp = self.stamp()
        return None if stamp is None or self._is_in_the_way() else stamp[2]

    def _is_in_the_way(self) -> bool:
        """Whether something else has the name; an empty file is nobody's loss."""
        if self.stamp() is None:
            return os.path.lexists(self.path) and not self.path.is_symlink()
        try:
            with self.path.open("rb") as file:
                return file.read(len(self._magic)) not in (self._magic, b"")
        except OSError as error:  # not ours to read, just removed, or too many files are open
            return self.path.exists() and not tells_none_left(error)

    def leaves_alone(self) -> bool:
        """Say what is in the way, and that it was left."""
        if not self._is_in_the_way():
            return False
        logger.warning(
            "%s is in the way: %s. This is something else, and was left untouched. Move or delete "
            "it, and open the index again",
            self.path,
            self._purpose,
        )
        return True

    def _mapped(self) -> mmap.mmap | None:
        """The whole file; None if there is none that could be read.

        Raises:
            OSError: too many files are open. What is there would be passed over until it changes.
        """
        if self.stamp() is None:
            return None
        try:
            with self.path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:  # not ours to read, or just removed
            if tells_none_left(error):
                raise
        except ValueError:  # it is empty
            pass
        return None

    def aside(self, name: str | None = None) -> Path:
        """Where the file is written, under 16 hexadecimal digits of its own or those given.

        Even two makers at once do not write to one file.
        """
        return Path(f"{self.path}-{name or secrets.token_hex(8)}")

    def write(self, fill: Callable[[BufferedRandom], object]) -> None:
        """Make the file by `fill`, and put it in the place of the one that is there.

        Whatever goes wrong, what was written aside is removed.
        """
        aside = self.aside()
        try:
            with open(aside, "x+b", opener=private) as file:
                fill(file)
                sync(file)
            self.publish(aside)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise

    def publish(self, aside: Path) -> None:
        """Put what was written aside, and synced, in place of the file."""
        # Text can be guessed from vectors: whoever may not read the index may not read these.
        if os.name == "posix":  # Windows inherits rights, and replaces nothing read-only
            aside.chmod(stat.S_IMODE(self._index.stat().st_mode) & 0o444)
        aside.replace(self.path)

    def remove_leftovers(self, but: Path | None = None) -> None:
        """Remove what makers that were killed had begun, and nothing that is only named alike."""
        begun = re.compile(re.escape(self.path.name) + "-[0-9a-f]{16}")
        with os.scandir(self.path.parent) as entries:
            found = [Path(entry.path) for entry in entries if begun.fullmatch(entry.name)]
        for path in found:
            if path != but:
                with contextlib.suppress(OSError):
                    path.unlink()

    def remove(self) -> None:
        """Give its space back; those who have it mapped let go at their next search."""
        if self.leaves_alone():
            return
        with contextlib.suppress(OSError):  # Windows keeps what is mapped
            self.path.unlink(missing_ok=True)


class _Readable:
    """Shows a mapping to numpy as if it could be written to, since torch warns of others.

    A mapping that could be written to (copy on write) is no way out: Linux counts it as memory, and
    refuses one that is larger than what there is.
    """

    def __init__(self, mapped: mmap.mmap) -> None:
        array = np.frombuffer(mapped, np.uint8)
        self._array = array  # keeps the mapping as long as any view of it lives
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def readable(mapped: mmap.mmap) -> Tensor:
    """All bytes of a mapping, `(bytes,)`, uint8; nothing is copied."""
    return torch.from_numpy(np.asarray(_Readable(mapped)))
