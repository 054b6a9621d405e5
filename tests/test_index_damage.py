"""Damage anywhere in a file: the right answer or `IndexCorruptError`, and never anything else."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_index.core.schema import TextNode

from colbert_rag.adapter.retrieving import NODE_KEY
from colbert_rag.errors import IndexCorruptError, IndexMismatchError
from colbert_rag.index import Changes, Document, LocalIndex
from colbert_rag.llama_index.nodes import to_node
from tests.helpers.index_fakes import WordEncoder, sentences

TEXTS = sentences(24)
DOCUMENTS = [Document(f"d{at}", text, {"n": at % 3}) for at, text in enumerate(TEXTS)]
HELD = {document.id: document for document in DOCUMENTS}
TOKENS = sum(len(text.split()) + 1 for text in TEXTS)
QUERY = WordEncoder().encode_queries(["red storm on mars"])


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intact") / "index.sqlite"
    with LocalIndex(path, WordEncoder()) as index:
        index.add(DOCUMENTS, batch_size=7)
    return path


@pytest.fixture(scope="module")
def hits(intact: Path) -> list[tuple[str, float]]:
    with LocalIndex(intact) as index:
        return [(hit.id, hit.score) for hit in index.search_embeddings(QUERY, 100)[0]]


READS: dict[str, Callable[[LocalIndex], object]] = {
    "count": lambda index: index.count() == len(DOCUMENTS),
    "stats": lambda index: (index.stats().documents, index.stats().tokens) == (24, TOKENS),
    "iteration": lambda index: {d.id: d for d in index} == HELD,
    "filter": lambda index: (
        {hit.id for hit in index.search_embeddings(QUERY, 100, {"n": 1})[0]}
        == {d.id for d in DOCUMENTS if d.metadata["n"] == 1}
    ),
    "embeddings for": lambda index: set(index.embeddings_for(TEXTS)) <= set(TEXTS),
    "info": lambda index: index.info.checkpoint == "tests/words" and index.info.dim == 16,
}


def check(path: Path, hits: list[tuple[str, float]]) -> set[str]:
    """Each use of a damaged file is right or says that it is damaged; which of them did."""
    told = set()
    told |= noticed(path, "verify", LocalIndex.verify)
    verified = not told
    for name, right in READS.items():
        told |= noticed(path, name, lambda index, right=right: right_or_fail(right(index)))
    told |= noticed(
        path,
        "search",
        lambda index: right_or_fail(
            [(hit.id, hit.score) for hit in index.search_embeddings(QUERY, 100)[0]] == hits
        ),
    )
    # These look ids up, and one that is nowhere cannot be told from one that never was.
    for name, write, expected in (
        ("get", lambda index: index.get(list(HELD)), DOCUMENTS),
        ("add", lambda index: index.add(DOCUMENTS[:3]), Changes(unchanged=3)),
        ("delete", lambda index: index.delete(["d3", "d20"]), 2),
    ):
        told |= noticed(
            path,
            name,
            lambda index, write=write, expected=expected: right_or_fail(
                write(index) == expected or not verified
            ),
        )
    assert not (told and verified)
    return told


def right_or_fail(right: bool) -> None:
    assert right, "a wrong answer"


def noticed(path: Path, name: str, use: Callable[[LocalIndex], object]) -> set[str]:
    """The name, where a use of the file said that it is damaged."""
    told: Exception
    try:
        with LocalIndex(path, WordEncoder()) as index:
            use(index)
        return set()
    except (KeyError, IndexCorruptError, IndexMismatchError) as error:
        told = error
    assert str(path) in str(told)
    if isinstance(told, KeyError):
        assert "holds no document" in str(told)
        return {"missing"}
    return {name}


@pytest.mark.parametrize("seed", [0, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2))])
def test_a_flipped_bit_anywhere_gives_the_right_answer_or_is_named(
    intact: Path, hits: list[tuple[str, float]], tmp_path: Path, seed: int
):
    content = intact.read_bytes()
    moments = random.Random(seed)
    told = 0
    for number in range(40):
        at = moments.randrange(len(content)) if number % 2 else moments.randrange(4096)
        damaged = bytearray(content)
        damaged[at] ^= 1 << moments.randrange(8)
        path = tmp_path / f"{number}-{at}.sqlite"
        path.write_bytes(damaged)
        told += bool(check(path, hits))
    assert told >= 3


WRITE_VERSION = 18
"""Byte of the header of SQLite's files: above 2, nobody may write (sqlite.org/fileformat2)."""


def test_a_header_that_forbids_to_write_is_damage(intact: Path, tmp_path: Path) -> None:
    content = bytearray(intact.read_bytes())
    assert content[WRITE_VERSION] == 2
    content[WRITE_VERSION] ^= 4
    path = tmp_path / "damaged.sqlite"
    path.write_bytes(content)

    with LocalIndex(path, WordEncoder()) as index:
        assert index.count() == len(DOCUMENTS)
        with pytest.raises(IndexCorruptError, match="its header forbids to write it"):
            index.verify()


def test_an_index_is_verified_while_somebody_writes(intact: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    shutil.copy(intact, path)
    with LocalIndex(path, WordEncoder(), busy_timeout=0.1) as index:
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")

        index.verify()

        writer.execute("ROLLBACK")
        writer.close()
        index.add([Document("new", "a new text")])


ALTERATIONS = [
    *(
        f"UPDATE documents SET {column} = {value} WHERE position = 3"
        for column in ("id", "rows", "text_digest", "checksum", "metadata", "text")
        for value in ("'x'", "x'00ff'", "-1", "9223372036854775807", "1.5", "''")
    ),
    *(
        f"UPDATE vectors SET {column} = {value} WHERE position = 3"
        for column in ("checksum", "embeddings")
        for value in ("'x'", "x'00ff'", "-1", "9223372036854775807", "1.5", "''", "x''")
    ),
    *(
        f"UPDATE settings SET value = {value} WHERE name = '{name}'"
        for name in ("model", "checksum", "removals", "edits", "documents", "tokens")
        for value in ("'x'", "x'00ff'", "'[1]'", "'null'", "'1e400'", "''", "x'3234'", "'-1'")
    ),
    f"UPDATE settings SET value = '{2**63 - 1}' WHERE name = 'removals'",  # no room for one more
    "UPDATE documents SET position = -5 WHERE position = 3",
    "UPDATE vectors SET position = 99 WHERE position = 3",
    "UPDATE vectors SET embeddings = (SELECT embeddings FROM vectors WHERE position = 4), "
    "checksum = (SELECT checksum FROM vectors WHERE position = 4) WHERE position = 3",
    "UPDATE documents SET metadata = '[' || metadata || ']' WHERE position = 3",
    "UPDATE documents SET text = CAST(x'ff' AS TEXT) WHERE position = 3",
    "UPDATE documents SET id = CAST(x'ff' AS TEXT) WHERE position = 3",
    "DELETE FROM documents WHERE position = 3",
    "DELETE FROM vectors WHERE position = 3",
    "DROP TABLE vectors",
    "DROP TABLE settings",
]


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2, 3))]
)
def test_values_that_were_never_written_are_named(
    intact: Path, hits: list[tuple[str, float]], tmp_path: Path, part: int
):
    for number, statement in enumerate(ALTERATIONS[part::4]):
        path = Path(shutil.copy(intact, tmp_path / f"{number}.sqlite"))
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()

        assert check(path, hits), statement


@pytest.mark.parametrize(
    "stored",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"class": 1, "node": {}}',
        '{"class": "llama_index.core.schema.TextNode", "node": []}',
        '{"class": "llama_index.core.schema.TextNode", "node": {"text": 5, "metadata": "x"}}',
        "[" * 100_000,
    ],
)
def test_a_malformed_node_is_named(stored: str):
    with pytest.raises(IndexCorruptError, match="node 'n1'"):
        to_node(Document("n1", "mars", {NODE_KEY: stored}))


def test_a_whole_node_is_read():
    node = TextNode(id_="n1", text="mars")
    stored = f'{{"class": "llama_index.core.schema.TextNode", "node": {node.to_json()}}}'

    assert to_node(Document("n1", "mars", {NODE_KEY: stored})) == node
