"""Connections that a forked process has from its parent."""

from __future__ import annotations

import sqlite3
import sys

from colbert_rag.forks import is_torn

# Those that not even SQLite may close.
_kept: list[sqlite3.Connection] = []


def let_go(connection: sqlite3.Connection, *, keep: bool = False) -> None:
    """In a forked child, close a connection of the parent without a trace in the file.

    SQLite lists the locks of a process by file. In the child that list tells of locks which only
    the parent has: the child would commit into a log that the parent takes for unused and removes,
    and wait for ever for a writer that ended long ago. It forgets them with the last connection.

    The locks themselves stay, since those of a process are not in its child. What sqlite.org warns
    of (howtocorrupt.html, 2.6) is what closing writes: a rollback, and the log into the file.

    Args:
        connection: One that no other thread was using, see `no_fork`; or it is kept as it is.
        keep: Whether closing would do more than that, as in the middle of a transaction.
    """
    if keep or is_torn():
        _kept.append(connection)
        return
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
    # Before, SQLite folds the log if nobody has the file open any more; the parent has.
    connection.close()
