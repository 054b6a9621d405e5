"""The tables of an index file, and how it is told from other SQLite files."""

# "ColB": how `file`, and we, tell an index from any other SQLite database.
APPLICATION_ID = 0x436F6C42

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
