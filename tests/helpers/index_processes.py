"""What the processes of the crash tests do, and the server they are forked from.

A module of its own, because the server imports it before it forks. Nothing in it may start torch's
threads: OpenMP's pool does not survive a fork, and the first large product in a child would wait
for it for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from colbert_rag.codings import CodedEmbeddings
from colbert_rag.errors import IndexStorageError
from colbert_rag.index import Document, LocalIndex
from colbert_rag.index.local.rows import Rows
from tests.helpers.index_fakes import WordEncoder, sentences

BATCH = 8
TEXTS = sentences(600)
DOCUMENTS = [Document(f"d{at}", text, {"n": at}) for at, text in enumerate(TEXTS)]


def fork_server() -> ForkServerContext:
    """Forks processes from one that has imported torch once, so that fifty take seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def started(
    processes: ForkServerContext, target: Callable[..., None], *arguments: object
) -> tuple[ForkServerProcess, Connection]:
    """A process that runs `target(*arguments, pipe)`, and our end of the pipe."""
    ours, theirs = processes.Pipe()
    process = processes.Process(target=_run, args=(target, *arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _run(target: Callable[..., None], *arguments: object) -> None:
    torch.set_num_threads(1)
    target(*arguments)


def answer(pipe: Connection, *, within: float = 120) -> Any:
    """The next thing the process has to say; one that says nothing fails instead of hanging."""
    assert pipe.poll(within), f"no answer within {within} seconds"
    return pipe.recv()


def add_everything(path: Path, pipe: Connection) -> None:
    model = WordEncoder()
    index = LocalIndex(path, model, busy_timeout=120)
    pipe.send("begun")
    index.add(DOCUMENTS, batch_size=BATCH)
    pipe.send(len(model.encoded))


def stop_while_converting(path: Path, pages: int, pipe: Connection) -> None:
    """Convert to int8, and wait for ever once some pages of documents are written."""
    written = 0
    original = Rows.set_vectors

    def write(self: Rows, positions: torch.Tensor, vectors: CodedEmbeddings) -> None:
        nonlocal written
        original(self, positions, vectors)
        written += 1
        if written == pages:
            pipe.send("written")
            time.sleep(600)

    Rows.set_vectors = write
    LocalIndex(path).convert("int8")


def write_and_delete(path: Path, seconds: float, pipe: Connection) -> None:
    """Commit groups of eight documents, and remove whole groups again."""
    end = time.monotonic() + seconds
    with LocalIndex(path, WordEncoder()) as index:
        group = 0
        while time.monotonic() < end:
            some = TEXTS[group * BATCH % 400 :][:BATCH]
            index.add(
                [Document(f"{group}/{at}", text, {"g": group}) for at, text in enumerate(some)]
            )
            if group % 2:
                index.delete([f"{group // 2}/{at}" for at in range(BATCH)])
            group += 1
    pipe.send(group)


def write_opened_anew(path: Path, seconds: float, pipe: Connection) -> None:
    """Commit groups of eight documents, and open the file for each; send back how many."""
    end = time.monotonic() + seconds
    model = WordEncoder()
    group = 0
    while time.monotonic() < end:
        some = TEXTS[group * BATCH % 400 :][:BATCH]
        with LocalIndex(path, model, busy_timeout=30) as index:
            index.add(
                [Document(f"{group}/{at}", text, {"g": group}) for at, text in enumerate(some)]
            )
        group += 1
    pipe.send(group)


def read_opened_anew(path: Path, seconds: float, pipe: Connection) -> None:
    """Open the file for reading only, again and again; send back how often, or what was wrong."""
    end = time.monotonic() + seconds
    opened = held = 0
    while time.monotonic() < end:
        with LocalIndex(path, read_only=True, busy_timeout=30) as index:
            found = index.count()
        if found % BATCH or found < held:
            pipe.send(f"{found} documents after {held}")
            return
        opened, held = opened + 1, found
    pipe.send(opened)


def read_meanwhile(path: Path, seconds: float, pipe: Connection) -> None:
    """Search all the time; send back how often, or what was wrong."""
    end = time.monotonic() + seconds
    model = WordEncoder()
    query = model.encode_queries(["mars storm"])
    searches = 0
    with LocalIndex(path, model, busy_timeout=30) as index:
        while time.monotonic() < end:
            hits = index.search_embeddings(query, 1_000_000)[0]
            sizes: dict[int, int] = {}
            for hit in hits:
                sizes[hit.metadata["g"]] = sizes.get(hit.metadata["g"], 0) + 1
            if set(sizes.values()) - {BATCH}:
                pipe.send(f"torn groups: {sizes}")
                return
            searches += 1
    pipe.send(searches)


def add_with_a_file_limit(path: Path, limit: int, pipe: Connection) -> None:
    """As on a disk that holds no file above `limit` bytes: the write itself fails."""
    import resource  # not on Windows

    index = LocalIndex(path, WordEncoder())
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        index.add(DOCUMENTS, batch_size=BATCH)
    except IndexStorageError as error:
        pipe.send((str(error), index.count()))


def open_with_a_file_limit(path: Path, limit: int, pipe: Connection) -> None:
    """As on a disk that is full before the index is opened."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        LocalIndex(path)
    except IndexStorageError as error:
        pipe.send(str(error))


def convert_with_a_file_limit(path: Path, pipe: Connection) -> None:
    """As on a disk where the log of a conversion has room, and the index cannot grow."""
    import resource

    index = LocalIndex(path)
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    index.convert("float16")
    index.verify()
    pipe.send((index.vectors, path.stat().st_size - size))


def use_without_rights(path: Path, pipe: Connection) -> None:
    """Search and then add, as a user who may read the file but change nothing."""
    if os.geteuid() == 0:
        os.setuid(65534)
    index = LocalIndex(path, WordEncoder())
    hits = len(index.search("mars", 100))
    try:
        index.add(["venus"])
    except IndexStorageError as error:
        pipe.send((hits, str(error)))


def follow(path: Path, last: str, pipe: Connection) -> None:
    """Search until all is from the last generation; send how many hits each one had.

    Hits of several generations in one search count as one of their own.
    """
    end = time.monotonic() + 60
    model = WordEncoder()
    query = model.encode_queries(["mars storm"])
    sizes: dict[str, set[int]] = {}
    with LocalIndex(path, model, busy_timeout=30) as index:
        pipe.send("begun")
        while last not in sizes and time.monotonic() < end:
            hits = index.search_embeddings(query, 1_000_000)[0]
            generation = "+".join(sorted({hit.text.split()[0] for hit in hits}))
            sizes.setdefault(generation, set()).add(len(hits))
    pipe.send(sizes)
