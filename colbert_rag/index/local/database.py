"""The SQLite file behind a `LocalIndex`: opening, transactions, locks, and errors in our words.

The file is in WAL mode with `synchronous=FULL`: a commit survives a killed process and a power
cut, and readers in other processes go on while one process writes. All processes must run on one
machine: SQLite's shared memory does not reach over a network file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from colbert_rag.errors import ColBERTRagError, IndexCorruptError, IndexStorageError
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.translation import Action, busy, corrupt, translated

MEMORY = ":memory:"

# "ColB": how `file`, and we, tell an index from any other SQLite database.
APPLICATION_ID = 0x436F6C42
FORMAT_VERSION = 1

# `vectors` is a table of its own so that reading texts and metadata never walks over vectors.
# AUTOINCREMENT: a position is never used twice, so it names one version of one document for ever.
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    rows INTEGER NOT NULL,
    text_digest BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX documents_by_text ON documents (text_digest);
CREATE TABLE vectors (
    position INTEGER PRIMARY KEY,
    checksum INTEGER NOT NULL,
    embeddings BLOB NOT NULL
);
INSERT INTO settings VALUES ('removals', '0'), ('edits', '0');
"""

# Connections that a forked process received from its parent: even closing one there could release
# the parent's locks, so they are kept until the process ends.
_inherited: list[sqlite3.Connection] = []


class Database:
    """One connection to an index file, usable from any thread of this process."""

    def __init__(self, path: str, *, read_only: bool, create: bool, busy_timeout: float) -> None:
        """Open `path`, or make the file where `create` allows; nothing foreign is written to.

        Raises:
            FileNotFoundError: there is no such file, and `create` is not set.
            IndexCorruptError: the file is no index, or a damaged one.
            IndexStorageError: the file or its folder cannot be opened.
        """
        self.path = path
        self.read_only = read_only
        self.busy_timeout = busy_timeout
        # Commits of this connection; `PRAGMA data_version` counts those of all others.
        self._commits = 0
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._writer = threading.Lock()
        self._open: sqlite3.Connection | None = None
        if path != MEMORY and not Path(path).exists() and (read_only or not create):
            raise FileNotFoundError(
                f"there is no index at {path}; pass a model to create one there"
            )
        with self._translated("opened"):
            self._open = self._connect()

    def _connect(self) -> sqlite3.Connection:
        if self.path == MEMORY:
            return self._connected(MEMORY)
        path = Path(self.path).absolute()
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
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

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

    def begin(self, info: IndexInfo | None) -> IndexInfo:
        """Read who made the index; a new one is made for `info`.

        Raises:
            FileNotFoundError: the file is empty and `info` is None.
            IndexCorruptError: it holds something else, or was written by a newer version of ours.
        """
        if self._is_new():
            if info is None or self.read_only:
                raise FileNotFoundError(
                    f"{self.path} is empty; pass a model to create an index there"
                )
            self._create(info)
        with self.reading() as connection:
            rows = connection.execute("SELECT name, value FROM settings").fetchall()
        settings = dict(rows)
        try:
            record = json.loads(settings["model"])
            return IndexInfo.from_json(record, self.path)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ColBERTRagError):
                raise
            raise corrupt(self.path, f"its settings are unreadable: {error!r}") from error

    def _is_new(self) -> bool:
        with self._translated("read"):
            connection = self.connection
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application == 0 and tables == 0:
            return True
        if application != APPLICATION_ID:
            raise IndexCorruptError(
                f"{self.path} is an SQLite database of another program, with {tables} tables or "
                "indexes. It was left untouched; choose another path"
            )
        if version != FORMAT_VERSION:
            raise IndexCorruptError(
                f"{self.path} has format {version}, and this version of colbert_rag reads format "
                f"{FORMAT_VERSION}: upgrade colbert-rag-components"
            )
        return False

    def _create(self, info: IndexInfo) -> None:
        with self._translated("written"):
            self.connection.execute("PRAGMA journal_mode = WAL")
        with self.writing() as connection:
            if not self._is_new():  # another process was faster
                return
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO settings VALUES ('model', ?)", (json.dumps(info.to_json()),)
            )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: everything read inside belongs to one moment of the file."""
        self._check_process()
        with self._lock, self._translated("read"):
            connection = self.connection
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it is committed, or none."""
        self._check_process()
        with self._lock, self._translated("written"):
            connection = self.connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
            self._commits += 1

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the one writer for longer than a transaction, so that nothing is encoded twice.

        The claim is a lock on an empty database beside the file. It goes with the process, however
        that ends; the index itself is safe without it.

        Raises:
            IndexBusyError: somebody else is the writer.
            IndexStorageError: the index is open for reading only, or its folder is read-only.
        """
        self._check_process()
        if self.read_only:
            raise IndexStorageError(
                f"{self.path} is open for reading only; open it without read_only, from a folder "
                "and file that are writable"
            )
        if not self._writer.acquire(timeout=self.busy_timeout):
            raise busy(self.path, self.busy_timeout)
        try:
            with contextlib.ExitStack() as stack:
                if self.path != MEMORY:
                    with self._translated("written"):
                        stack.enter_context(self._claim())
                yield
        finally:
            self._writer.release()

    @contextlib.contextmanager
    def _claim(self) -> Iterator[None]:
        beside = Path(f"{self.path}-writer")
        claim = sqlite3.connect(beside, timeout=self.busy_timeout, isolation_level=None)
        try:
            claim.execute("PRAGMA journal_mode = MEMORY")
            claim.execute("BEGIN EXCLUSIVE")
            yield
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
        finally:
            claim.close()

    def version(self) -> tuple[int, int]:
        """Changes whenever anybody commits to the file."""
        row = self.connection.execute("PRAGMA data_version").fetchone()
        return int(row[0]), self._commits

    def compact(self) -> None:
        """Give freed pages back to the file system; needs as much free space as the index."""
        with self._lock, self._translated("written"):
            self.connection.execute("VACUUM")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def check_pages(self) -> None:
        """Let SQLite check its own structures.

        Raises:
            IndexCorruptError: it found damage.
        """
        with self.reading() as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise corrupt(self.path, "; ".join(found))

    def close(self) -> None:
        """Close the connection; the last one out folds the log into the file."""
        with self._lock:
            connection, self._open = self._open, None
        if connection is None:
            return
        if os.getpid() == self._process:
            connection.close()
        else:
            _inherited.append(connection)

    def __del__(self) -> None:
        """Close what was forgotten, so that no log is left beside the file."""
        self.close()

    def _translated(self, action: Action) -> contextlib.AbstractContextManager[None]:
        return translated(self.path, self.busy_timeout, action)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # a full disk or a failed read has rolled back already
        connection.execute("ROLLBACK")
