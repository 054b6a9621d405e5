"""Where an option such as `--html` writes to: a file, or standard output, which is called -."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from colbert_rag.cli.options import UsageError
from colbert_rag.cli.output import naming_stdout
from colbert_rag.written import write_whole

STDOUT = "-"


def is_stdout(path: str) -> bool:
    """Whether a name means standard output: `-`, or another name of what that is.

    A file that is opened a second time, as `/dev/stdout` is, would have two places to write at, and
    each would write over what came through the other.
    """
    if path == STDOUT:
        return True
    try:
        return os.path.samestat(Path(path).stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # there is no such file yet, or the output is none of the system
        return False


def spoken(path: str) -> str:
    """What to call it in a message."""
    return "standard output" if is_stdout(path) else path


def check_destination(option: str, path: str) -> None:
    """Refuse what cannot be written to, before the work that is to be written.

    Raises:
        UsageError: the name is empty.
        OSError: it is a folder, lies in none, or may not be written to.
    """
    if not path:
        raise UsageError(f"{option} is '', expected a file, or {STDOUT} for standard output")
    if is_stdout(path):
        return
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file", path)
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(Path(path).parent))
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise PermissionError(errno.EACCES, "may not be written to", path)


def check_page(option: str, path: str) -> None:
    """As `check_destination`, and refuse a file that is no page.

    A page takes the place of the one before it, but never that of an index, or of the documents
    that it is about.

    Raises:
        UsageError: the name is empty.
        OSError: it cannot be written to, or is a file with something else in it.
    """
    check_destination(option, path)
    there = Path(path)
    if is_stdout(path) or not there.is_file():
        return
    with there.open("rb") as file:
        beginning = file.read(64).lstrip().lower()
    if beginning and not beginning.startswith((b"<!doctype html", b"<html")):
        raise FileExistsError(
            errno.EEXIST, f"is there and no page, so that {option} would lose what is in it", path
        )


def check_folder(option: str, path: str) -> None:
    """Refuse what cannot become a folder of files, before the work that is to be written.

    Raises:
        UsageError: it is standard output, or the name is empty.
        OSError: it is a file, or files may not be made there.
    """
    if not path or is_stdout(path):
        raise UsageError(
            f"{option} is {path!r}, expected a folder, since several files are written"
        )
    there = Path(path)
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, expected a folder", str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, "may not be written to", str(there))


@contextmanager
def report_beside(path: str | None) -> Iterator[None]:
    """What is said about a result goes to standard error where the result has standard output.

    As with every log there, one that cannot be written does not end the work.
    """
    if path is None or not is_stdout(path):
        yield
        return
    with suppress(OSError), redirect_stdout(sys.stderr):
        yield


def write_page(path: str, page: str) -> None:
    """Write a page; the name of a file that is not valid Unicode must not make it impossible.

    Raises:
        OSError: it cannot be written; says where.
    """
    if is_stdout(path):
        write_stdout(page)
    else:
        write_whole(path, page, errors="backslashreplace")


def write_stdout(text: str) -> None:
    """Write to standard output in UTF-8, whatever the terminal has, and at once.

    Raises:
        OSError: it cannot be written.
    """
    with naming_stdout():
        sys.stdout.flush()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        else:  # whoever calls this from Python may have put anything there
            sys.stdout.write(text)
        sys.stdout.flush()
