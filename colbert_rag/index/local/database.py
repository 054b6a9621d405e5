"""The SQLite file behind a `LocalIndex`: opening, transactions, locks, and errors in our words.

The file is in WAL mode with `synchronous=FULL`: a commit survives a killed process and a power
cut, and readers in other processes go on while one process writes. All processes must run on one
machine: SQLite's shared memory does not reach over a network file system.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from colbert_rag.codings import FLOAT16, Coding
from colbert_rag.errors import IndexCorruptError, IndexMismatchError, IndexStorageError
from colbert_rag.forks import no_fork, renewed_after_fork
from colbert_rag.index.handle import MEMORY
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.claim import Claim, seconds
from colbert_rag.index.local.inherited import let_go
from colbert_rag.index.local.log import FORMAT_VERSION, check_log, remove_empty_log, stamp
from colbert_rag.index.local.place import Place
from colbert_rag.index.local.record import Record
from colbert_rag.index.local.schema import (
    APPLICATION_ID,
    LOG_PAGES,
    OLDER_FORMATS,
    SCHEMA,
    UPGRADE,
    lay_out,
    read_mark,
)
from colbert_rag.index.local.translation import Action, busy, check_header, corrupt, translated

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Database:
    """One connection to an index file, usable from any thread of this process."""

    def __init__(self, path: str, *, read_only: bool, create: bool, busy_timeout: float) -> None:
        """Open `path`, or make the file where `create` allows; nothing foreign is written to.

        Raises:
            FileNotFoundError: there is no such file, and `create` is not set.
            IndexCorruptError: the file is no index, or a damaged one.
            IndexStorageError: the file or its folder cannot be opened.
        """
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._open: sqlite3.Connection | None = None
        self.place = Place(path)
        self.path = path
        self.read_only, self._is_asked_to = read_only, read_only
        self.busy_timeout = seconds(busy_timeout)
        self._claim = Claim(self.place, timeout=self.busy_timeout)
        # What `begin` read, and the commit that was seen last.
        self._record: Record | None = None
        self._written: Record | None = None  # by this connection, in a publication
        self._seen = (0, 0)
        if path != MEMORY and self.place.file is None and (read_only or not create):
            raise FileNotFoundError(
                f"there is no index at {path}; pass a model to create one there"
            )
        renewed_after_fork(self)
        with no_fork(), self._translated("opened"):
            self._open = self._connect()
        self.place.settle()

    def _connect(self) -> sqlite3.Connection:
        if self.path == MEMORY:
            return self._connected(MEMORY)
        path = Path(self.place.absolute)
        check_log(path)
        try:
            return self._connected(f"{path.as_uri()}?mode={'ro' if self.read_only else 'rwc'}")
        except sqlite3.OperationalError:
            # A file in WAL mode asks for a writable folder even to be read. Where there is none
            # (an image, a mounted medium) and no log, nobody can be writing: read it as it is.
            if os.access(path.parent, os.W_OK) or Path(f"{path}-wal").exists():
                raise
        self.read_only = True
        return self._connected(f"{path.as_uri()}?mode=ro&immutable=1")

    def _connected(self, target: str) -> sqlite3.Connection:
        # `_lock` serialises the threads; `isolation_level=None` leaves BEGIN and COMMIT to us.
        connection = sqlite3.connect(
            target,
            timeout=self.busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            uri=target != MEMORY,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def coding(self) -> Coding:
        """How vectors are stored, as of the transaction that reads or writes them."""
        return FLOAT16 if self._record is None else self._record.coding

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection.

        Raises:
            ValueError: the index was closed.
        """
        if self._open is None:
            raise ValueError(f"the index {self.path} is closed")
        return self._open

    def _check_process(self) -> None:
        """Before any lock is taken: a fork may have copied it in its locked state."""
        if os.getpid() != self._process:
            # Using an inherited connection corrupts the file: sqlite.org/howtocorrupt.html, 2.6.
            raise RuntimeError(
                f"the index {self.path} was opened before this process was forked; open it again "
                "here"
            )

    def begin(self, info: IndexInfo | None, coding: Coding = FLOAT16) -> IndexInfo:
        """Read who made the index; a new one is made for `info`, with vectors in `coding`.

        Raises:
            FileNotFoundError: the file is empty and `info` is None.
            IndexCorruptError: it holds something else, or was written by a newer version of ours.
        """
        with no_fork():
            if self._is_new():
                if info is None or self.read_only:
                    raise FileNotFoundError(
                        f"{self.path} is empty; pass a model to create an index there"
                    )
                self._create(Record(info, coding))
            self._record = self.read(self._recorded)
            return self._record.info

    def _recorded(self) -> Record:
        found = self.connection.execute("SELECT name, value FROM settings").fetchall()
        return Record.of(dict(found), self.path)

    def record(self, record: Record) -> None:
        """Write which model made the index, and how its vectors are stored; in a write."""
        self._written = record
        self.connection.executemany("REPLACE INTO settings VALUES (?, ?)", record.settings)

    def _is_new(self) -> bool:
        with self._translated("read"):
            application, tables = read_mark(self.connection)
            version = self.format()
        if application == 0 and tables == 0:
            return True
        if application != APPLICATION_ID:
            raise IndexCorruptError(
                f"{self.path} is an SQLite database of another program, with {tables} tables or "
                "indexes. It was left untouched; choose another path"
            )
        if version not in (FORMAT_VERSION, *OLDER_FORMATS):
            hint = "upgrade colbert-rag-components" if version > FORMAT_VERSION else "make it anew"
            raise IndexCorruptError(
                f"{self.path} has format {version}, and this version of colbert_rag reads format "
                f"{FORMAT_VERSION}: {hint}"
            )
        return False

    def _create(self, record: Record) -> None:
        with self._translated("written"):
            lay_out(self.connection, self.busy_timeout)
        self.write(self._create_tables, record)
        # The tag must be in the file before there is a second commit to tell from.
        self.outside("PRAGMA wal_checkpoint")

    def _create_tables(self, record: Record) -> None:
        if not self._is_new():  # another process was faster
            return
        self._run(f"{SCHEMA};{UPGRADE}")
        self.record(record)
        self.connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _run(self, statements: str) -> None:
        for statement in statements.split(";"):
            self.connection.execute(statement)

    def format(self) -> int:
        """The version of the layout of the tables."""
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0]) & 0xFF

    def read(
        self,
        work: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """`work(...)` in a read transaction: all that it reads belongs to one moment of the file.

        A function, and no generator with `contextmanager`: an interrupt while that is entered or
        left would keep the lock and the transaction. The `with` of a lock and of a connection are
        C, and end whatever happens.
        """
        self._check_process()
        with no_fork(), self._lock, self._translated("read"):
            if self.connection.in_transaction:  # a signal's handler, in the middle of a call
                return work(*args, **kwargs)
            with self.connection as connection:
                connection.execute("BEGIN")
                self._check_same(connection)
                result = work(*args, **kwargs)
            self.place.check()
            return result

    def write(
        self,
        work: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """`work(...)` in a write transaction: all of it is committed, or none."""
        self._check_process()
        with no_fork(), self._lock, self._translated("written"):
            if self.connection.in_transaction:
                raise busy(self.path, 0)
            with self.connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                self._check_same(connection)
                if self.format() in OLDER_FORMATS:
                    self._run(UPGRADE)
                result = work(*args, **kwargs)
                stamp(connection)
                self.place.check()
            self.place.check()
            return result

    def _check_same(self, connection: sqlite3.Connection) -> None:
        """Refuse what is no longer the index that was opened here."""
        self.place.check()
        seen = self.version()
        if seen == self._seen or self._record is None:
            return
        found = self._recorded()
        if found.info != self._record.info and found != self._written:
            raise IndexMismatchError(
                f"{self.path} was opened as made by {self._record.text}, and now says "
                f"{found.text}: an index of another model was published there. Open it again, with "
                "that model"
            )
        self._record = found  # vectors may have been converted
        self._seen = seen

    def claimed(self, work: Callable[[], Result]) -> Result:
        """`work()` as the one writer, for longer than a transaction: nothing is encoded twice.

        Raises:
            IndexBusyError: somebody else is the writer.
            IndexStorageError: the index is open for reading only, or its folder is read-only.
        """
        self._check_process()
        self.check_writable()
        self.place.check()
        return self._claim.during(work)

    def check_writable(self) -> None:
        """Refuse to write.

        Raises:
            IndexStorageError: the index is open for reading only, or its folder is read-only.
        """
        if self._is_asked_to:
            raise IndexStorageError(
                f"{self.path} is open for reading only; open it without read_only"
            )
        if self.read_only:
            raise IndexStorageError(
                f"{self.path} is open for reading only, since its folder may not be written to; "
                "make folder and file writable, and open it again"
            )

    def version(self) -> tuple[int, int]:
        """Changes whenever anybody commits to the file."""
        row = self.connection.execute("PRAGMA data_version").fetchone()
        # Counted in C: a number of ours could miss a commit that is followed by an interrupt.
        return int(row[0]), self.connection.total_changes

    def outside(self, statement: str) -> None:
        """A statement that SQLite takes outside of transactions alone."""
        with no_fork(), self._lock, self._translated("written"):
            self.connection.execute(statement).fetchone()

    def size(self) -> int | None:
        """Bytes on disk; None in memory."""
        # What was committed last may still be in the log beside the file.
        files = (Path(self.place.absolute), Path(f"{self.place.absolute}-wal"))
        found = sum(file.stat().st_size for file in files if file.exists())
        return None if self.path == MEMORY else found

    def check_pages(self) -> None:
        """Let SQLite check its own structures.

        Raises:
            IndexCorruptError: it found damage.
        """
        query = "PRAGMA integrity_check(3)"
        found = self.read(lambda: [row[0] for row in self.connection.execute(query)])
        if found != ["ok"]:
            raise corrupt(self.path, "; ".join(map(str, found)))
        with no_fork(), self._lock:
            if not (self.read_only or self.connection.in_transaction):
                check_header(self.connection, self.path)

    def close(self) -> None:
        """Close the connection; the last one out folds the log into the file."""
        if os.getpid() != self._process:  # and no lock, which a fork may have copied as taken
            self.renew()
            return
        with no_fork(), self._lock:
            connection, self._open = self._open, None
            if connection is not None:
                self._claim.close()
                connection.close()
                if self._is_asked_to:
                    remove_empty_log(self.place)

    def renew(self) -> None:
        """In a forked child, which must open the index for itself: let go of the parent's."""
        connection, self._open = self._open, None
        if connection is not None:
            # Giving memory back page by page would first copy it.
            let_go(connection, keep=self.path == MEMORY or connection.in_transaction)

    def __del__(self) -> None:
        """Close what was forgotten, so that no log is left beside the file."""
        self.close()

    def _translated(self, action: Action) -> contextlib.AbstractContextManager[None]:
        return translated(self.path, self.busy_timeout, action)
