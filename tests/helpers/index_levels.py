"""Indexes with a level, and what the processes do that make and use one."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, IndexInfo, LocalIndex, kmeans
from colbert_rag.index.local import searcher
from colbert_rag.index.local.level import candidates, effort, level, postings
from tests.helpers.index_processes import DOCUMENTS  # noqa: F401  # the server preloads it

DIM, ROWS, TOPICS = 32, 12, 60
INFO = IndexInfo(checkpoint="tests/topics", fingerprint="d" * 64, dim=DIM, recipe={})


def topics(texts: int, *, rows: int, seed: int) -> TokenEmbeddings:
    """Vectors that gather around directions, as those of tokens do: each text has some of them."""
    directions = torch.randn(TOPICS, DIM, generator=torch.Generator().manual_seed(123))
    generator = torch.Generator().manual_seed(seed)
    some = torch.randint(TOPICS, (texts, 4), generator=generator)
    chosen = some.gather(1, torch.randint(4, (texts, rows), generator=generator)).flatten()
    noise = torch.randn(texts * rows, DIM, generator=generator)
    values = torch.nn.functional.normalize(directions[chosen] + 0.4 * noise, dim=1)
    return TokenEmbeddings.from_lengths(values.half(), [rows] * texts)


def documents(
    count: int, *, seed: int = 0, prefix: str = "d"
) -> tuple[list[Document], TokenEmbeddings]:
    """Documents whose metadata has a number from 0 to 99, and their vectors."""
    listed = [
        Document(
            f"{prefix}{at}", f"{prefix} text {at} of {seed}", {"n": at % 100, "tenth": at % 10}
        )
        for at in range(count)
    ]
    return listed, topics(count, rows=ROWS, seed=seed)


def fill(path: Path, count: int, *, seed: int = 0) -> None:
    """An index of so many documents."""
    with LocalIndex(path, like=INFO) as index:
        index.add_encoded(*documents(count, seed=seed))


def make_small() -> None:
    """All that a large index does, with a small one."""
    searcher.APPROXIMATE_FROM = 1000
    level._BEHIND = 300
    postings.BLOCK = 256
    kmeans._CENTROIDS = 2
    candidates._ALL = 0
    effort._WORTH = 0


def stop_while_making(path: Path, syncs: int, pipe: Connection) -> None:
    """Make the level, and wait for ever at the moment when so much was synced."""
    left = syncs

    def wait(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            pipe.send("written")
            time.sleep(600)

    make_small()
    os.fsync = wait
    LocalIndex(path).optimize()


def write_with_level(path: Path, seconds: float, pipe: Connection) -> None:
    """Add, delete and optimise for a while, at least four times; say how often, what is amiss."""
    make_small()
    end, rounds, wrong = time.monotonic() + seconds, 0, []
    with LocalIndex(path, busy_timeout=60) as index:
        pipe.send("started")
        while rounds < 4 or time.monotonic() < end:
            added, vectors = documents(20, seed=1000 + rounds, prefix=f"w{rounds}-")
            index.add_encoded(added, vectors)
            at = rounds % 20
            best = index.search_embeddings(vectors[[at]], 1, exact=False)[0][0]
            if best.id != added[at].id:
                wrong.append((rounds, best.id, best.score))
            if rounds:
                index.delete([f"w{rounds - 1}-{at}" for at in range(20)])
            if rounds % 3 == 0:
                index.optimize()
            rounds += 1
        lost = {document.id for document in added} - {document.id for document in index}
    pipe.send((rounds, wrong + sorted(lost)))


def read_with_level(path: Path, seconds: float, pipe: Connection) -> None:
    """Two readers with a connection each; say how often they searched, and what was wrong."""
    make_small()
    with ThreadPoolExecutor() as threads:
        read = list(threads.map(_looked, [path] * 2, [seconds] * 2, (0, 1)))
    pipe.send((sum(searches for searches, _ in read), [bad for _, wrong in read for bad in wrong]))


def _looked(path: Path, seconds: float, first: int) -> tuple[int, list[tuple[int, str, float]]]:
    """Search for documents that nobody removes by their own vectors."""
    end, wrong, searches = time.monotonic() + seconds, [], 0
    own = topics(300, rows=ROWS, seed=0)
    with LocalIndex(path) as index:
        while time.monotonic() < end:
            at = (first + 7 * searches) % 300
            best = index.search_embeddings(own[[at]], 3, exact=False)[0][0]
            if best.id != f"d{at}" or abs(best.score - ROWS) > 0.01:
                wrong.append((at, best.id, best.score))
            searches += 1
    return searches, wrong
