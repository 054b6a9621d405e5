"""Where an index file says which effort was chosen for it."""

from __future__ import annotations

import json
from dataclasses import asdict

from colbert_rag.index.choice import Choice
from colbert_rag.index.local.database import Database

_NAME = "effort"


def read_choice(database: Database) -> Choice:
    """What the index records; in a transaction."""
    query = "SELECT value FROM settings WHERE name = ?"
    row = database.connection.execute(query, (_NAME,)).fetchone()
    try:
        return Choice() if row is None else Choice.recorded(json.loads(row[0]))
    except (TypeError, ValueError):  # no JSON
        return Choice()


def write_choice(database: Database, choice: Choice) -> None:
    """Record it; in a write."""
    record = json.dumps(asdict(choice))
    database.connection.execute("REPLACE INTO settings VALUES (?, ?)", (_NAME, record))
