"""Which file an index was opened from, and whether it is still the one at the path."""

from __future__ import annotations

import os
import stat

from colbert_rag.errors import IndexStorageError
from colbert_rag.index.handle import MEMORY


class Place:
    """A path, and the file that was opened there.

    Attributes:
        path: The path as it was given, or `MEMORY`.
        absolute: The same from anywhere: the working directory may change.
        file: Device and inode; None where there is no file, or not yet.
    """

    def __init__(self, path: str) -> None:
        """Look at `path`.

        Raises:
            IndexStorageError: no index can be there.
            TypeError: it is no text.
        """
        if not isinstance(path, str):
            raise TypeError(f"path is {path!r}, expected text or a Path")
        self.path = path
        self.absolute = path if path == MEMORY else os.path.abspath(path)  # noqa: PTH100  # str
        self.file = self._found()

    def settle(self) -> None:
        """The file was opened, and made where there was none.

        Raises:
            IndexStorageError: another one was put there meanwhile.
        """
        if self.file is None:
            self.file = self._found()
        self.check()

    def check(self) -> None:
        """Refuse a file without a name: what is written to it is lost, and its log is shared.

        Raises:
            IndexStorageError: the file that was opened is no longer at the path.
        """
        if self._found() != self.file:
            raise IndexStorageError(
                f"{self.path} was replaced by another file, moved or removed while it was open: "
                "nothing more is read from it or written to it. Close it and open it again. To "
                "replace an index that is in use, publish the new one to its path"
            )

    def _found(self) -> tuple[int, int] | None:
        if self.path == MEMORY:
            return None
        try:
            status = os.stat(self.absolute)  # noqa: PTH116  # at each read: a Path takes longer
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise IndexStorageError(
                f"{self.path!r} cannot be opened ({error}): choose another path"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise IndexStorageError(f"{self.path} is no regular file; choose another path")
        return status.st_dev, status.st_ino
