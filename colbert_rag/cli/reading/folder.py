"""Which files of a folder are read: whoever filled it may not be who reads it."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path

from colbert_rag.cli.reading.document import ReadingOptions

NAMED = 3
"""Files that a note about many names."""


class _LeftOut:
    """What is left out: how many files for each reason, and the first names."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, list[Path]]] = {}

    def add(self, path: Path, reason: str) -> None:
        count, first = self._files.get(reason, (0, []))
        self._files[reason] = count + 1, first if len(first) == NAMED else [*first, path]

    def notes(self) -> Iterator[str]:
        for reason, (count, first) in self._files.items():
            more = f" and {count - len(first):,} more" if count > len(first) else ""
            yield f"{count:,} left out, {reason}: {', '.join(map(str, first))}{more}"


def files_in(folder: Path, suffixes: Container[str], options: ReadingOptions) -> Iterator[Path]:
    """The files to read, with all sub-folders in alphabetical order; then says what is left out.

    Args:
        folder: Where they are.
        suffixes: How their names may end, in lower case.
        options: Whether links are followed, and who is told.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    top = Path(os.path.realpath(folder))
    seen = {top}
    left_out = _LeftOut()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=options.follow_links):
        inner = [Path(root, name) for name in sorted(folders) if not name.startswith(".")]
        folders[:] = [
            path.name
            for path in inner
            if _is_new(path, top, seen) and _stays(path, top, options, left_out)
        ]
        seen.update(Path(os.path.realpath(Path(root, name))) for name in folders)
        for name in sorted(files):
            file = Path(root, name)
            if name.startswith("."):
                continue
            if file.suffix.lower() not in suffixes:
                left_out.add(file, "not of a kind that is read")
            elif not file.is_file():  # a pipe would hang, and a device never end
                left_out.add(file, "not regular files")
            elif _stays(file, top, options, left_out):
                yield file
    for note in left_out.notes():
        options.skipped(note)


def _is_new(folder: Path, top: Path, seen: set[Path]) -> bool:
    """Whether a sub-folder is not read anyway: a link may lead to it, or back to one above."""
    real = Path(os.path.realpath(folder))
    return real not in seen and not (folder.is_symlink() and real.is_relative_to(top))


def _stays(path: Path, top: Path, options: ReadingOptions, left_out: _LeftOut) -> bool:
    """Whether a path is not a link that shows what only the reader may see."""
    if options.follow_links or Path(os.path.realpath(path)).is_relative_to(top):
        return True
    left_out.add(path, "leading out of the folder, which --follow-links reads")
    return False
