"""Index files that were damaged: the right answer, or words."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import (
    IndexBusyError,
    IndexCorruptError,
    IndexMismatchError,
    IndexStorageError,
)
from colbert_rag.index import Document, LocalIndex
from colbert_rag.index.local import snapshot
from tests.helpers.index_fakes import WordEncoder, naive_maxsim, sentences

Step = tuple[str, tuple[object, ...]]
ALLOWED = (IndexBusyError, IndexCorruptError, IndexMismatchError, IndexStorageError)
PAGE = 4096
DOCUMENTS = {
    f"d{at}": Document(f"d{at}", text, {"n": at, "source": f"s{at % 3}"})
    for at, text in enumerate(sentences(120))
}
LATER = {f"e{at}": Document(f"e{at}", f"later {at} {at}", {"n": at}) for at in range(8)}
FOREIGN = {f"f{at}": Document(f"f{at}", f"foreign {at}", {}) for at in range(60)}
TRUTH = DOCUMENTS | LATER | FOREIGN
ODD_NUMBERS = (None, -1, 0, 1, 2**31, 2**62, -(2**63), 1.5, float("inf"), "x", "1" * 5000, b"\0")
ODD_TEXTS = (
    None,
    0,
    2.5,
    b"\xff\xfe",
    b"",
    "",
    "x\0y",
    "null",
    "[]",
    "{}",
    "NaN",
    '"\\ud800"',
    "1" * 5000,
    '{"a":',
    '{"n": {"n": [1, null, true, 1e999]}}',
    "[" * 100_000,
    '{"n":' * 100_000,
    "ä" * 100_000,
)
ODD_JSON = (None, True, -1, 0, 10**9, 10**400, 0.5, float("nan"), "", "x", [], {}, [[1]], {"a": {}})
COLUMNS = {
    "documents": ("id", "metadata", "text", "rows", "text_digest", "checksum"),
    "vectors": ("checksum", "embeddings"),
    "settings": ("value", "name"),
}
STATEMENTS = (
    "DROP TABLE vectors",
    "DROP TABLE settings",
    "DROP TABLE documents",
    "DROP INDEX documents_by_text",
    "DELETE FROM settings",
    "DELETE FROM settings WHERE name = 'removals'",
    "DELETE FROM vectors WHERE position = 5",
    "DELETE FROM documents WHERE position = 5",
    "DELETE FROM vectors",
    "DELETE FROM sqlite_sequence",
    "UPDATE sqlite_sequence SET seq = 9223372036854775807",
    "UPDATE sqlite_sequence SET seq = 'x'",
    "UPDATE documents SET position = -position WHERE position = 7",
    "UPDATE vectors SET position = 9223372036854775807 WHERE position = 7",
    "INSERT INTO vectors SELECT position + 1000, checksum, embeddings FROM vectors",
    "INSERT INTO settings VALUES ('unknown', 'x')",
    "ALTER TABLE documents RENAME TO d",
    "ALTER TABLE documents RENAME COLUMN text TO t",
    "ALTER TABLE documents ADD COLUMN more",
    "ALTER TABLE vectors ADD COLUMN more NOT NULL DEFAULT 1",
    "CREATE TABLE more (x)",
    "PRAGMA user_version = 2",
    "PRAGMA application_id = 0",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA auto_vacuum = FULL; VACUUM",
    "PRAGMA page_size = 512; PRAGMA journal_mode = DELETE; VACUUM; PRAGMA journal_mode = WAL",
)


@dataclass(frozen=True)
class Case:
    """What is done to a sound file, in order.

    Attributes:
        logged: The last documents are in a log beside the file.
        shared: What is done to the copy of its vectors, which is searched however small it is;
            None is no copy, and none is made.
    """

    steps: tuple[Step, ...]
    logged: bool = False
    shared: tuple[Step, ...] | None = None


def prepare() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # an index of 2**62 rows would say that it does not fit
    with tempfile.TemporaryDirectory() as folder:
        for number, shared in enumerate((None, ())):
            (Path(folder) / f"{number}").mkdir()
            run(Case((), shared=shared), Path(folder) / f"{number}")


@functools.cache
def originals() -> Mapping[str, bytes]:
    """The bytes of a sound file, its log and its copy, and of others', by what they are."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "index"
        with LocalIndex(path, WordEncoder()) as index:
            index.add(DOCUMENTS.values())
            with sharing():
                _search(index)
        found["file"] = path.read_bytes()
        found["copy"] = copy_of(path).read_bytes()
        with LocalIndex(path, WordEncoder()) as index:
            index.add(LATER.values())
            found["log"] = Path(f"{path}-wal").read_bytes()
        other = Path(name) / "other"
        with LocalIndex(other, WordEncoder()) as index:
            index.add(FOREIGN.values())
            with sharing():
                _search(index)
            found["foreign copy"] = copy_of(other).read_bytes()
            found["foreign log"] = Path(f"{other}-wal").read_bytes()
    return found


def copy_of(path: Path) -> Path:
    """Where the vectors are that processes share."""
    return Path(f"{path}-vectors")


@contextlib.contextmanager
def sharing(least: int = 0) -> Iterator[None]:
    """Let an index of `least` bytes have a copy."""
    before, snapshot.SHARED_FROM = snapshot.SHARED_FROM, least
    try:
        yield
    finally:
        snapshot.SHARED_FROM = before


# Drawing


def draw(rng: random.Random) -> Case:
    steps = _steps(rng, list(STEPS), (1, 1, 1, 2, 3))
    logged = rng.random() < 0.3
    if rng.random() < 0.5:
        return Case(steps, logged)
    some = steps if rng.random() < 0.3 else ()
    return Case(some, logged, shared=_steps(rng, list(COPY_STEPS), (0, 1, 1, 1, 2)))


def _steps(rng: random.Random, kinds: list[str], counts: tuple[int, ...]) -> tuple[Step, ...]:
    return tuple(
        (kind, tuple((STEPS | COPY_STEPS)[kind][0](rng)))
        for kind in rng.choices(kinds, k=rng.choice(counts))
    )


def _flips(rng: random.Random) -> Iterator[object]:
    # Half of them in the header and the schema, which are a small part of the file.
    top = rng.choice((1.0, 1.0, 100.0))
    yield tuple(
        (rng.random() / top, rng.randrange(1, 256)) for _ in range(rng.choice((1, 1, 2, 20)))
    )


def _column(rng: random.Random) -> Iterator[object]:
    table = rng.choice(list(COLUMNS))
    column = rng.choice(COLUMNS[table])
    yield table
    yield column
    yield rng.choice(
        ODD_NUMBERS if column in ("rows", "checksum") else (*ODD_TEXTS, *ODD_NUMBERS[:4])
    )
    yield rng.choice((1, 5, 120)) if table != "settings" else rng.randrange(3)


def _record(rng: random.Random) -> Iterator[object]:
    yield rng.choice(("checkpoint", "fingerprint", "dim", "recipe", "token_pooling"))
    yield rng.choice((*ODD_JSON, 8, 15, 32, "16"))


# Applying


def _flip(path: Path, flips: tuple[tuple[float, int], ...]) -> None:
    content = bytearray(path.read_bytes())
    for place, value in flips if content else ():
        content[int(place * len(content))] ^= value
    path.write_bytes(content)


def _overwrite(path: Path, place: float, size: int, value: int) -> None:
    content = bytearray(path.read_bytes())
    start = int(place * len(content))
    size = min(size, len(content) - start)
    content[start : start + size] = random.Random(value).randbytes(size) if value else bytes(size)
    path.write_bytes(content)


def _truncate(path: Path, place: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(place * len(content))])


def _swap(path: Path, first: float, second: float) -> None:
    content = path.read_bytes()
    pages = [content[start : start + PAGE] for start in range(0, len(content), PAGE)]
    if pages:
        one, other = int(first * len(pages)), int(second * len(pages))
        pages[one], pages[other] = pages[other], pages[one]
    path.write_bytes(b"".join(pages))


def _beside(path: Path, suffix: str, content: str, value: int) -> None:
    data = originals().get(content) or random.Random(value).randbytes(value)
    Path(f"{path}{suffix}").write_bytes(data)


def _alter(path: Path, table: str, column: str, value: object, row: int) -> None:
    with _sql(path) as connection:  # the schema is read anew by the next connection
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
    with _sql(path) as connection:
        key = "name" if table == "settings" else "position"
        where = ("edits", "model", "removals")[row] if table == "settings" else row
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, where))


def _rewrite_record(path: Path, key: str, value: object) -> None:
    with _sql(path) as connection:
        query = "SELECT value FROM settings WHERE name = 'model'"
        try:
            record = json.loads(connection.execute(query).fetchone()[0])
        except RecursionError:  # an earlier step has altered it
            return
        connection.execute(
            "UPDATE settings SET value = ? WHERE name = 'model'",
            (json.dumps({**record, key: value}),),
        )


def _execute(path: Path, statements: str) -> None:
    with _sql(path) as connection:
        for statement in statements.split(";"):
            connection.execute(statement)


@contextlib.contextmanager
def _sql(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection; what an earlier step made unreadable stays as it is."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        with contextlib.suppress(sqlite3.Error, TypeError, ValueError, OverflowError):
            yield connection
    finally:
        connection.close()


STEPS: dict[str, tuple[Callable[[random.Random], Iterator[object]], Callable[..., None]]] = {
    "flip": (_flips, _flip),
    "overwrite": (
        lambda rng: iter((rng.random(), rng.choice((4, 64, PAGE, 5 * PAGE)), rng.randrange(9))),
        _overwrite,
    ),
    "truncate": (lambda rng: iter((rng.choice((0.0, rng.random(), 0.999)),)), _truncate),
    "swap": (lambda rng: iter((rng.random(), rng.random())), _swap),
    "beside": (
        lambda rng: iter(
            (
                rng.choice(("-wal", "-wal", "-shm", "-journal", "-writer")),
                rng.choice(("log", "foreign log", "file", "noise")),
                rng.randrange(1, 9000),
            )
        ),
        _beside,
    ),
    "alter": (_column, _alter),
    "record": (_record, _rewrite_record),
    "execute": (lambda rng: iter((rng.choice(STATEMENTS),)), _execute),
}
COPY_STEPS = {
    **{kind: STEPS[kind] for kind in ("flip", "overwrite", "truncate", "swap")},
    "become": (
        lambda rng: iter(
            (
                "",
                rng.choice(("log", "file", "copy", "foreign copy", "foreign copy", "noise")),
                rng.choice((0, 1, 7, 8, 79, 80, rng.randrange(9000))),
            )
        ),
        _beside,
    ),
}
BYTES = {"flip", "overwrite", "swap"}
"""Steps that are no program's work: `verify` must miss whatever they take away."""


# Using


def run(case: Case, folder: Path) -> None:
    with sharing(2**60 if case.shared is None else 0):
        _run(case, folder)


def _run(case: Case, folder: Path) -> None:
    path = folder / "index"
    path.write_bytes(originals()["file"])
    if case.logged:
        Path(f"{path}-wal").write_bytes(originals()["log"])
    if case.shared is not None:
        copy_of(path).write_bytes(originals()["copy"])
    for kind, arguments in case.steps:
        STEPS[kind][1](path, *arguments)
    for kind, arguments in case.shared or ():
        COPY_STEPS[kind][1](copy_of(path), *arguments)
    with contextlib.ExitStack() as stack:
        try:
            index = stack.enter_context(LocalIndex(path, WordEncoder(), busy_timeout=0.1))
        except ALLOWED:
            return
        expected = None
        if {kind for kind, _ in case.steps} <= BYTES and not case.logged:
            expected = DOCUMENTS
        _read(index, scored=not case.shared)
        mend(index, copy_of(Path(index.name)), "delete the copy")
        sound = _verified(index, expected)
        # What another program made of the schema may be in the way of a write, and is no damage.
        _write(index, sound and all(kind != "execute" for kind, _ in case.steps))


def mend(index: LocalIndex, beside: Path, advice: str) -> None:
    """Only `verify` reads all of what lies beside an index; do as it says then."""
    damage = ""
    try:
        index.verify()
    except ALLOWED as error:
        damage = str(error)
    if damage.startswith(f"{beside} is damaged"):
        assert advice in damage
        beside.unlink()


def _read(index: LocalIndex, *, scored: bool) -> None:
    """Whatever a read gives is what was written; scores, where no vector was changed."""
    with contextlib.suppress(*ALLOWED):
        assert index.count() >= 0
    with contextlib.suppress(*ALLOWED):
        for document in index:
            assert document == TRUTH[document.id]
    with contextlib.suppress(*ALLOWED, KeyError):
        assert index.get(["d3"]) == [TRUTH["d3"]]
    with contextlib.suppress(*ALLOWED):
        index.stats()
    with contextlib.suppress(*ALLOWED):
        for hit in index.search("mars storm", 5, {"source": "s1"}):
            assert hit.document == TRUTH[hit.id]
    with contextlib.suppress(*ALLOWED):
        _search(index, scored=scored)
    with contextlib.suppress(*ALLOWED):
        texts = [document.text for document in TRUTH.values()]
        for text, vectors in index.embeddings_for(texts).items():
            assert torch.equal(vectors, expected_vectors()[text]), f"other vectors for {text!r}"


def _search(index: LocalIndex, count: int = 5, *, scored: bool = True) -> None:
    query = query_rows()
    hits = index.search_embeddings(TokenEmbeddings.from_list([query]), count)[0]
    for hit in hits:
        assert hit.document == TRUTH[hit.id]
        rows = expected_vectors()[hit.text].float()
        assert not scored or abs(hit.score - naive_maxsim(query, rows)) < 1e-4, (
            f"the score of {hit.id}"
        )
    assert not scored or [hit.score for hit in hits] == sorted(
        (hit.score for hit in hits), reverse=True
    )


@functools.cache
def query_rows() -> torch.Tensor:
    return WordEncoder().encode_queries(["mars storm"])[0]


@functools.cache
def expected_vectors() -> dict[str, torch.Tensor]:
    texts = [document.text for document in TRUTH.values()]
    return dict(
        zip(texts, WordEncoder().encode_documents(texts).to(dtype=torch.float16), strict=True)
    )


def _verified(index: LocalIndex, expected: Mapping[str, Document] | None) -> bool:
    """Whether `verify` found the file sound; then everything fits together."""
    try:
        index.verify()
    except ALLOWED:
        return False
    held = {document.id: document for document in index}
    assert expected is None or held == expected, f"{len(held)} of {len(expected)} documents"
    assert index.count() == len(held)
    assert index.get(list(held)) == list(held.values())
    tokens = sum(len(expected_vectors()[document.text]) for document in held.values())
    assert index.stats().tokens == tokens, "the number of vectors"
    _search(index)
    texts = [document.text for document in held.values()]
    assert len(index.embeddings_for(texts)) == len(held), "vectors by text"
    return True


def _write(index: LocalIndex, sound: bool) -> None:
    """What was written is there afterwards; without damage, everything else is, too."""
    added = Document("new", "a new text", {"n": 1, "source": "s1"})
    try:
        before = index.count()
        index.add([added, Document("d3", DOCUMENTS["d3"].text, {"n": 2})])
        assert index.get(["new"]) == [added]
        assert index.delete(["new", "d3"]) == 2
        index.delete(filter={"source": "s0"})
        index.compact()
    except ALLOWED as error:
        claim = Path(f"{index.name}-writer")
        if sound and str(error).startswith(f"{claim} is in the way"):
            assert claim.stat().st_size
            claim.unlink()  # as it says
            _write(index, sound)
            return
        assert not sound, "a file that `verify` passed took no writes"
        return
    if sound:
        left = {document.id for document in index}
        assert "new" not in left
        assert before - len(left) <= 41
        index.verify()


CORPUS = tuple(
    Case((step,))
    for step in (
        ("alter", ("documents", "rows", None, 5)),
        ("alter", ("documents", "rows", 0, 5)),
        ("alter", ("documents", "rows", 2**62, 5)),
        ("alter", ("documents", "rows", "1" * 5000, 5)),
        ("alter", ("documents", "text", 0, 5)),
        ("alter", ("documents", "text", None, 5)),
        ("alter", ("documents", "metadata", "[" * 100_000, 5)),
        ("alter", ("documents", "text_digest", "x", 5)),
        ("alter", ("vectors", "embeddings", None, 5)),
        ("alter", ("vectors", "embeddings", "", 5)),
        ("alter", ("settings", "value", "x", 0)),
        ("alter", ("settings", "value", str(2**63 - 1), 2)),
        ("alter", ("settings", "value", '{"n":' * 100_000, 1)),
        ("record", ("token_pooling", 0)),
        ("record", ("dim", 0)),
        ("execute", ("UPDATE documents SET position = -position WHERE position = 7",)),
        ("execute", ("DELETE FROM documents WHERE position = 5",)),
        ("swap", (0.7872688187042143, 0.5683196565743858)),
        ("swap", (0.6132248979962825, 0.8413409806893333)),
        ("flip", (((0.18637663203527366, 73),),)),  # an id that `delete` did not find
        ("beside", ("-writer", "noise", 100)),
        ("beside", ("-writer", "noise", 512)),
        ("beside", ("-writer", "file", 1)),
    )
)
CORPUS += tuple(Case((), shared=(("become", ("", content, 8)),)) for content in ("noise", "file"))
