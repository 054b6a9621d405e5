"""The pages and tables of an index file, and how it is told from other SQLite files."""

from __future__ import annotations

import sqlite3
import time

from colbert_rag.index.local.translation import is_busy

# "ColB": how `file`, and we, tell an index from any other SQLite database.
APPLICATION_ID = 0x436F6C42

PAGE = 1024
"""Bytes of a page. A quarter of a page is empty at the end of each document's vectors, which with
the 4 KiB of SQLite is 6 % of an index with int8; a page more or less costs a search nothing."""

LOG_PAGES = 4 * 2**20 // PAGE
"""Pages of the log at which SQLite folds it into the file: 4 MiB, as by its default, which counts
pages of 4 KiB."""

# `vectors` is a table of its own so that reading texts and metadata never walks over vectors.
# AUTOINCREMENT: a position is never used twice, so it names one version of one document for ever.
SCHEMA = """
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
INSERT INTO settings VALUES ('removals', '0'), ('edits', '0'), ('documents', '0'), ('tokens', '0');
"""

OLDER_FORMATS = (2,)
"""Formats that are read as they are, and become the present one with the first write."""

# Format 3. A write by an older version of ours, which notes nothing, makes the file one of format 2
# again: what was noted is worth nothing then.
UPGRADE = """
DROP TABLE IF EXISTS levels;
DROP TABLE IF EXISTS removed;
CREATE TABLE levels (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    token BLOB NOT NULL,
    last INTEGER NOT NULL
);
CREATE TABLE removed (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    position INTEGER NOT NULL
);
"""

# Every document goes, and with them what was made and measured of them; positions go on rising.
CLEAR = (
    "DELETE FROM vectors",
    "DELETE FROM documents",
    "DELETE FROM levels",
    "DELETE FROM removed",
    "DELETE FROM settings WHERE name = 'effort'",
    "UPDATE settings SET value = '0' WHERE name IN ('documents', 'tokens')",
)

# For the levels that were made from the index, if there are any; see `level.record`.
NOTE_REMOVED = """
INSERT INTO removed (position) SELECT value FROM json_each(?)
WHERE EXISTS (SELECT 1 FROM levels)
"""


def lay_out(connection: sqlite3.Connection, timeout: float) -> None:
    """Give a new file its pages and its log, within `timeout` seconds.

    Of two that do so at once SQLite fails one, and does not let it wait as at other locks.
    """
    connection.execute(f"PRAGMA page_size = {PAGE}")
    end = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= end:
                raise
        time.sleep(0.01)


def read_mark(connection: sqlite3.Connection) -> tuple[int, int]:
    """The application that a file is of, and how many tables and indexes it has.

    One statement sees one moment: two would take a file for a foreign one that has got its tables
    and its mark between them.
    """
    query = "SELECT (SELECT application_id FROM pragma_application_id), count(*) FROM sqlite_master"
    application, tables = connection.execute(query).fetchone()
    return application, tables
