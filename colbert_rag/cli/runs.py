"""Rankings of many queries in a file that grows query by query, and goes on where it stopped."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from colbert_rag.cli.destination import is_stdout, write_stdout
from colbert_rag.cli.output import json_line
from colbert_rag.errors import ReadingError
from colbert_rag.written import named

JSON_SUFFIXES = (".jsonl", ".ndjson")

FAR = 2**31 - 2
"""A byte of a file that no run reaches."""

RESERVED = "\t\n\v\f\r "
"""What separates the columns of a TREC run, and so cannot be in an id."""


@dataclass(frozen=True, slots=True)
class Found:
    """A document in a ranking.

    Attributes:
        id: Its id.
        score: Its score; never above that of the place before.
        span: Where the part that was scored lies in its text, or None for all of it.
    """

    id: str
    score: float
    span: tuple[int, int] | None = None


Write: TypeAlias = Callable[[str, Sequence[Found]], None]
"""Appends the ranking of a query."""


class Form(Protocol):
    """How rankings are written."""

    def written(self, query: str, text: str, found: Sequence[Found], tag: str) -> str:
        """The lines of one query."""

    def read(self, line: str) -> tuple[str, str, int]:
        """The query that a line is of, its run's tag, and how many documents it holds.

        Raises:
            ValueError: it is no such line.
        """

    def begins(self, line: bytes, queries: Mapping[str, str]) -> bool:
        """Whether a line that was cut off may be the beginning of such a line."""


class Trec:
    """A line for each document: query, Q0, document, rank, score, tag."""

    def written(self, query: str, text: str, found: Sequence[Found], tag: str) -> str:
        """A line for each document."""
        return "".join(
            f"{query} Q0 {one.id} {rank} {one.score!r} {tag}\n"
            for rank, one in enumerate(found, start=1)
        )

    def read(self, line: str) -> tuple[str, str, int]:
        """One document of a query."""
        query, _, _, rank, score, tag = line.split()
        int(rank), float(score)
        return query, tag, 1

    def begins(self, line: bytes, queries: Mapping[str, str]) -> bool:
        """Whether it begins with a query's id, as far as it goes."""
        return any(
            f"{query} Q0 ".encode().startswith(line[: len(query.encode()) + 4]) for query in queries
        )


class JsonLines:
    """A line for each query, with all its documents."""

    def written(self, query: str, text: str, found: Sequence[Found], tag: str) -> str:
        """One line."""
        ranked = [
            {"rank": rank, "id": one.id, "score": one.score, "span": one.span}
            for rank, one in enumerate(found, start=1)
        ]
        return f"{json_line({'query_id': query, 'run': tag, 'query': text, 'ranked': ranked})}\n"

    def read(self, line: str) -> tuple[str, str, int]:
        """A query with its documents."""
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("no object")
        query, tag, ranked = (record.get(name) for name in ("query_id", "run", "ranked"))
        if not (isinstance(query, str) and isinstance(tag, str) and isinstance(ranked, list)):
            raise ValueError("not the fields of a ranking")
        return query, tag, len(ranked)

    def begins(self, line: bytes, queries: Mapping[str, str]) -> bool:
        """Whether it begins with the first field, as far as it goes."""
        first = b'{"query_id": "'
        return first.startswith(line[: len(first)])


class RunFile:
    """Rankings in a file, each written as a whole when it is there.

    A process may be killed while it writes. What was cut off is removed when the file is opened
    again: the lines of one query count only together. Where there is no file, but standard output,
    a pipe or a device, nothing is read, and nothing can be gone on with.
    """

    def __init__(self, path: str, tag: str, queries: Mapping[str, str]) -> None:
        """Name the file; nothing is read or written yet.

        Args:
            path: JSON Lines if it ends in .jsonl, else a TREC run; `-` is standard output.
            tag: Stands in every line, and says what made it.
            queries: Text by id.
        """
        self.path = path
        self.form: Form = JsonLines() if path.lower().endswith(JSON_SUFFIXES) else Trec()
        self._tag = tag
        self._queries = queries

    @property
    def resumable(self) -> bool:
        """Whether what is written can be read again."""
        there = Path(self.path)
        return not is_stdout(self.path) and (there.is_file() or not there.exists())

    def check_ids(self, ids: Mapping[str, object]) -> None:
        """Refuse ids that the file cannot hold.

        Raises:
            ReadingError: one has a space, or is no Unicode text, and this is a TREC run.
        """
        if isinstance(self.form, JsonLines):
            return
        for name in ids:
            if not name or any(mark in name for mark in RESERVED):
                reason = "holds a space or nothing, and a TREC run has spaces between its columns"
            elif name.encode("utf-8", "replace").decode() != name:  # such as a file's name
                reason = "is no Unicode text, and a TREC run is"
            else:
                continue
            raise ReadingError(
                f"the id {name!r} {reason}. Write JSON Lines instead, as with --to "
                f"{self.path}.jsonl"
            )

    @contextmanager
    def resumed(self, expected: Mapping[str, int]) -> Iterator[tuple[set[str], Write]]:
        """The queries that are finished, and what appends another; what was cut off is removed.

        Args:
            expected: How many documents each query has, once it is finished.

        Raises:
            ReadingError: the file is something else, or was made by another model, with other
                options or of other files, or is being written.
        """
        if is_stdout(self.path):
            yield set(), lambda query, found: write_stdout(self._lines(query, found))
            return
        # Without a buffer: what a full disk refuses must not be tried again when it is closed.
        with Path(self.path).open("ab", buffering=0) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            if regular and not _claimed(file):
                raise ReadingError(
                    f"{self.path} is being written by another process: wait until it ends, or name "
                    "another file with --to"
                )
            # Read only now: until it was claimed, somebody else could have added to it. And a pipe
            # would be waited for, which ends when we do.
            finished: set[str] = set()
            if regular:
                finished, end = self._finished(expected)
                file.truncate(end)

            def write(query: str, found: Sequence[Found]) -> None:
                lines = self._lines(query, found).encode()
                try:
                    while lines:
                        lines = lines[file.write(lines) :]
                except OSError as error:
                    raise named(error, self.path) from error

            yield finished, write

    def _lines(self, query: str, found: Sequence[Found]) -> str:
        return self.form.written(query, self._queries[query], found, self._tag)

    def _finished(self, expected: Mapping[str, int]) -> tuple[set[str], int]:
        """The queries that are there as a whole, and the byte where the last of them ends."""
        finished: set[str] = set()
        blocks, whole = self._blocks(), 0
        for number, (query, count, end) in enumerate(blocks, start=1):
            if count == expected.get(query) and query not in finished:
                finished.add(query)
                whole = end
            elif number < len(blocks):  # the last one may have been cut off
                raise self._other(f"it has {count} documents for {query!r}")
        return finished, whole

    def _blocks(self) -> list[tuple[str, int, int]]:
        """Each query, its number of documents, and the byte where its lines end."""
        blocks: list[tuple[str, int, int]] = []
        end = 0
        with Path(self.path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):  # cut off, and the last one
                    if not blocks and not self.form.begins(line, self._queries):
                        raise self._other(f"{line[:40]!r} stands there")
                    break
                query, count = self._read(number, line)
                end += len(line)
                if blocks and blocks[-1][0] == query:
                    count += blocks.pop()[1]
                blocks.append((query, count, end))
        return blocks

    def _read(self, number: int, line: bytes) -> tuple[str, int]:
        try:
            query, tag, count = self.form.read(line.decode())
        except ValueError as error:
            raise self._other(f"line {number} is no line of such a file") from error
        if tag != self._tag:
            raise self._other(
                f"its rankings are called {tag!r}, and these would be {self._tag!r}: made by "
                "another model, with other options, or of other files"
            )
        return query, count

    def _other(self, why: str) -> ReadingError:
        return ReadingError(
            f"{self.path} is there, and is not the beginning of this run: {why}. Name another file "
            "with --to, or remove this one"
        )


def _claimed(file: BinaryIO) -> bool:
    """Whether nobody else writes this file; until it is closed, or the process ends, we do."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Locked is a byte far behind the end, since nobody can read what is locked there.
            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks, as some that are mounted over a network, refuses nobody.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True
