"""Damaged levels and coded vectors: a search gives right scores, all that it should, or words."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, LocalIndex
from tests.fuzz import index_file
from tests.fuzz.index_file import ALLOWED, Step, sharing
from tests.helpers.index_levels import INFO, ROWS, documents, make_small

CODINGS = ("float16", "int8", "int4")
COUNT, LATER, REMOVED = 300, 20, (7, 8, 299)
ASKED = (0, 150, 298, COUNT, COUNT + LATER - 1)
"""Numbers of documents that are asked for by their own vectors: of the level, and behind it."""

STATEMENTS = (
    "DELETE FROM levels",
    "UPDATE levels SET token = zeroblob(8)",
    "UPDATE levels SET token = 'x'",
    "UPDATE levels SET token = NULL",
    "UPDATE levels SET last = last + 1000",
    "UPDATE levels SET last = 'x'",
    "UPDATE levels SET last = -1",
    "DELETE FROM removed",
    "UPDATE removed SET position = position + 50",
    "UPDATE removed SET position = 'x'",
    "UPDATE removed SET number = number + 9223372036854770000",
    "INSERT INTO removed (position) VALUES (1), (1), (2)",
    "DROP TABLE levels",
    "DROP TABLE removed",
    "PRAGMA user_version = 2",
    "UPDATE settings SET value = 'x' WHERE name = 'effort'",
    "INSERT OR REPLACE INTO settings (name, value) VALUES ('choice', '[')",
)


@dataclass(frozen=True)
class Case:
    """What is done to the files of an index with a level.

    Attributes:
        coding: How its vectors are stored.
        level: Steps on the level.
        file: Steps on the index.
        copy: Steps on the copy of its vectors that processes share; None is no copy.
        begun: What a maker that was killed has left: "" for nothing.
        to: The coding that it is converted to in the end, perhaps the same.
    """

    coding: str
    level: tuple[Step, ...] = ()
    file: tuple[Step, ...] = ()
    copy: tuple[Step, ...] | None = None
    begun: str = ""
    to: str = "float16"


def prepare() -> None:
    torch.set_num_threads(1)
    make_small()
    logging.disable(logging.WARNING)  # of a level that something is in the way of
    with tempfile.TemporaryDirectory() as folder:
        for coding in CODINGS:
            for copied in (None, ()):
                path = Path(folder) / f"{coding} {copied}"
                path.mkdir()
                run(Case(coding, copy=copied), path)


@functools.cache
def truth() -> tuple[dict[str, Document], dict[str, Tensor]]:
    """All documents, and their vectors before they are stored."""
    first, later = documents(COUNT), documents(LATER, seed=5, prefix="later-")
    listed = [*first[0], *later[0]]
    vectors = [*first[1], *later[1]]
    names = [document.id for document in listed]
    return dict(zip(names, listed, strict=True)), dict(zip(names, vectors, strict=True))


def names() -> list[str]:
    return list(truth()[0])


@functools.cache
def gone() -> frozenset[str]:
    return frozenset(names()[at] for at in REMOVED)


@functools.cache
def originals(coding: str) -> Mapping[str, bytes]:
    """The bytes of a sound file, its level and its copy, and of an older level."""
    found = {}
    held, vectors = truth()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        with LocalIndex(path, like=INFO, vectors=coding) as index:  # type: ignore[arg-type]
            _add(index, names()[: COUNT // 2])
            index.optimize()
            found["older level"] = level_of(path).read_bytes()
            _add(index, names()[COUNT // 2 : COUNT])
            index.optimize()
            _add(index, names()[COUNT:])
            assert index.delete(gone()) == len(REMOVED)
            with sharing():
                index.search_embeddings(TokenEmbeddings.from_list([vectors["d0"]]), 1, exact=True)
        found |= {
            "file": path.read_bytes(),
            "level": level_of(path).read_bytes(),
            "copy": index_file.copy_of(path).read_bytes(),
        }
    assert set(held) == set(vectors)
    return found


@functools.cache
def stored(coding: str) -> dict[str, Tensor]:
    """Vectors as a sound file gives them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        path.write_bytes(originals(coding)["file"])
        with LocalIndex(path) as index:
            there = [name for name in names() if name not in gone()]
            found = index.embeddings(there)
        return {name: rows.double() for name, rows in zip(there, found, strict=True)}


def _add(index: LocalIndex, some: list[str]) -> None:
    held, vectors = truth()
    encoded = TokenEmbeddings.from_list([vectors[name] for name in some])
    index.add_encoded([held[name] for name in some], encoded)


def level_of(path: Path) -> Path:
    """Where the level is."""
    return Path(f"{path}-level")


# Drawing


def draw(rng: random.Random) -> Case:
    place = rng.choice(("level", "level", "level", "file", "copy", "sql", "begun", "several"))
    several = place == "several"
    return Case(
        rng.choice(CODINGS),
        level=_steps(rng, LEVEL_STEPS) if place == "level" or several else (),
        file=_steps(rng, FILE_STEPS)
        if place == "file"
        else (("execute", (rng.choice(STATEMENTS),)),)
        if place == "sql" or (several and rng.random() < 0.5)
        else (),
        copy=_steps(rng, index_file.COPY_STEPS) if place == "copy" else rng.choice((None, ())),
        begun=rng.choice(BEGUN) if place == "begun" or several else "",
        to=rng.choice(CODINGS),
    )


def _steps(rng: random.Random, kinds: Mapping[str, Drawn]) -> tuple[Step, ...]:
    chosen = rng.choices(list(kinds), k=rng.choice((1, 1, 1, 2, 3)))
    return tuple((kind, tuple(kinds[kind][0](rng))) for kind in chosen)


Drawn = tuple[Callable[[random.Random], Iterator[object]], Callable[..., None]]


def _become(path: Path, coding: str, what: str, size: int) -> None:
    if what == "folder":
        path.unlink()
        path.mkdir()
    elif what == "gone":
        path.unlink()
    elif what == "link":
        path.unlink()
        path.symlink_to("nowhere")
    else:
        content = originals(coding).get(what)
        path.write_bytes(random.Random(size).randbytes(size) if content is None else content)


BYTE_STEPS = {kind: index_file.STEPS[kind] for kind in ("flip", "overwrite", "truncate", "swap")}
FILE_STEPS = BYTE_STEPS
LEVEL_STEPS: dict[str, Drawn] = {
    **BYTE_STEPS,
    "become": (
        lambda rng: iter(
            (
                rng.choice(CODINGS),
                rng.choice(
                    ("older level", "level", "file", "copy", "noise", "folder", "gone", "link")
                ),
                rng.choice((0, 1, 7, 8, 79, 80, rng.randrange(9000))),
            )
        ),
        _become,
    ),
}
BEGUN = ("level", "half", "flipped", "noise", "older level", "folder")


# Using


def run(case: Case, folder: Path) -> None:
    with sharing(2**60 if case.copy is None else 0):
        _run(case, folder)


def _run(case: Case, folder: Path) -> None:
    path = folder / "index"
    path.write_bytes(originals(case.coding)["file"])
    level_of(path).write_bytes(originals(case.coding)["level"])
    if case.copy is not None:
        index_file.copy_of(path).write_bytes(originals(case.coding)["copy"])
    for kind, arguments in case.level:
        if level_of(path).is_file() or kind == "become":
            with contextlib.suppress(OSError):  # of what an earlier step made of it
                LEVEL_STEPS[kind][1](level_of(path), *arguments)
    for kind, arguments in case.file:
        index_file.STEPS[kind][1](path, *arguments)
    for kind, arguments in case.copy or ():
        index_file.COPY_STEPS[kind][1](index_file.copy_of(path), *arguments)
    if case.begun:
        _leave(path, case)
    with contextlib.ExitStack() as stack:
        try:
            index = stack.enter_context(LocalIndex(path, busy_timeout=0.1))
        except (*ALLOWED, FileNotFoundError):  # an empty file is none
            assert case.file, "an intact file was refused"
            return
        _use(index, path, case)


def _leave(path: Path, case: Case) -> None:
    """Leave what a killed maker had begun, under the name of the level that is there."""
    original = originals(case.coding)
    token = _token(path)
    begun = Path(f"{level_of(path)}-{token}")
    content = original.get(case.begun) or original["level"]
    if case.begun == "folder":
        begun.mkdir()
        return
    if case.begun == "half":
        content = content[: len(content) // 2]
    if case.begun == "noise":
        content = random.Random(3).randbytes(5000)
    if case.begun == "flipped":
        flipped = bytearray(content)
        flipped[len(flipped) * 2 // 3] ^= 4
        content = bytes(flipped)
    begun.write_bytes(content)


def _token(path: Path) -> str:
    with index_file._sql(path) as connection:
        row = connection.execute("SELECT token FROM levels ORDER BY number DESC").fetchone()
        if row is not None and isinstance(row[0], bytes):
            return row[0].hex()
    return "0" * 16


def _use(index: LocalIndex, path: Path, case: Case) -> None:
    intact = not case.file
    damaged_copy = bool(case.copy)
    for number in ASKED:
        with _words(allowed=not intact):
            _search(index, number, case.coding, found=intact, scored=not damaged_copy)
    _mend(index, path)
    with _words(allowed=not intact):
        index.optimize()
        for number in ASKED:
            _search(index, number, case.coding, found=intact)
    with _words(allowed=not intact):
        index.convert(case.to)  # type: ignore[arg-type]
        assert index.vectors == case.to
        index.optimize()
        for number in ASKED:
            _search(index, number, "", found=intact)
    if intact:
        _mend(index, path)
        index.verify()
        held, _ = truth()
        assert [document.id for document in index] == [n for n in names() if n not in gone()]
        assert all(document == held[document.id] for document in index)
    with _words(allowed=not intact):
        index.delete(["d0"])
        assert all(hit.id != "d0" for hit in _hits(index, 0, exact=False))


@contextlib.contextmanager
def _words(*, allowed: bool) -> Iterator[None]:
    """Only where the index itself is damaged, a call may refuse."""
    try:
        yield
    except ALLOWED:
        if not allowed:
            raise


def _mend(index: LocalIndex, path: Path) -> None:
    """Do as `verify` says of what lies beside the index."""
    index_file.mend(index, level_of(path), "delete")
    index_file.mend(index, index_file.copy_of(path), "delete the copy")


def _hits(index: LocalIndex, number: int, *, exact: bool | None) -> list[object]:
    query = truth()[1][names()[number]]
    found = index.search_embeddings(TokenEmbeddings.from_list([query]), 5, exact=exact)
    return list(found[0])


def _search(
    index: LocalIndex, number: int, coding: str, *, found: bool, scored: bool = True
) -> None:
    """Scores are those of what is stored, and a document is found by its own vectors."""
    name = names()[number]
    query = truth()[1][name].double()
    for exact in (False, True):
        hits = _hits(index, number, exact=exact)
        for hit in hits:
            assert hit.document == truth()[0][hit.id]  # type: ignore[attr-defined]
            assert hit.id not in gone() or not found, "a document that was removed"
            if scored and coding:
                expected = (query @ stored(coding)[hit.id].T).max(1).values.sum()
                assert abs(hit.score - expected) < 1e-2, f"a score, exact={exact}"
        scores = [hit.score for hit in hits]
        assert not scored or scores == sorted(scores, reverse=True)
        if found and scored:
            assert len(hits) == 5
            assert hits[0].id == name, f"not found, exact={exact}"
            assert abs(hits[0].score - ROWS) < 0.2


CORPUS = tuple(Case("float16", file=(("execute", (one,)),), to="int8") for one in STATEMENTS)
