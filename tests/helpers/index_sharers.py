"""What the processes do that share an index's vectors, or are killed while they make the file."""

from __future__ import annotations

import gc
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Document, IndexInfo, LocalIndex
from colbert_rag.index.local import snapshot
from colbert_rag.maxsim import maxsim_many
from tests.helpers.index_processes import read_meanwhile, write_and_delete

DIM = 96
INFO = IndexInfo(checkpoint="tests/random", fingerprint="b" * 64, dim=DIM, recipe={})


def vectors(documents: int, rows: int, *, seed: int = 0) -> TokenEmbeddings:
    """Random unit vectors, as an index stores them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(documents * rows, DIM, generator=generator)
    halves = torch.nn.functional.normalize(values, dim=1).half()
    return TokenEmbeddings.from_lengths(halves, [rows] * documents)


def fill(path: Path, documents: int, rows: int, *, seed: int = 0) -> None:
    """An index whose documents say in their metadata whether they are odd."""
    with LocalIndex(path, like=INFO) as index:
        index.add_encoded(
            [Document(f"d{at}", f"text {at}", {"odd": at % 2}) for at in range(documents)],
            vectors(documents, rows, seed=seed),
        )


def proportional_set_size() -> int:
    """Bytes of this process, a page that n processes share counted as 1/n."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    (line,) = (line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def search_on_request(path: Path, pipe: Connection) -> None:
    """For each request but None: what a search finds, or how large the process is."""
    # A full collection writes to all that was inherited from the server: not what is measured.
    gc.disable()
    index = LocalIndex(path)
    query = vectors(1, 32, seed=1)
    maxsim_many(query, vectors(100, 200))  # what torch allocates once shall not be counted
    gc.collect()  # nor the pages that a collection writes to, and the server's are no longer shared
    jobs: dict[str, Any] = {
        "size": proportional_set_size,
        "search": lambda: [(hit.id, hit.score) for hit in index.search_embeddings(query, 20)[0]],
    }
    while (request := pipe.recv()) is not None:
        pipe.send(jobs[request]())


def stop_while_making(path: Path, pipe: Connection) -> None:
    """Search, and wait for ever at the moment when the shared file is written but has no name."""

    def wait(descriptor: int) -> None:
        pipe.send("written")
        time.sleep(600)

    snapshot.SHARED_FROM = 1
    os.fsync = wait
    LocalIndex(path).search_embeddings(vectors(1, 4), 1)


def search_without_rights(path: Path, pipe: Connection) -> None:
    """Search as a user who may read the file and nothing more."""
    if os.geteuid() == 0:
        os.setuid(65534)
    snapshot.SHARED_FROM = 1
    pipe.send(len(LocalIndex(path).search_embeddings(vectors(1, 4), 1000)[0]))


def share_meanwhile(path: Path, seconds: float, pipe: Connection) -> None:
    """As `read_meanwhile`, with a shared file for the smallest index."""
    snapshot.SHARED_FROM = 1
    read_meanwhile(path, seconds, pipe)


def write_shared(path: Path, seconds: float, pipe: Connection) -> None:
    """As `write_and_delete`, with a shared file for the smallest index."""
    snapshot.SHARED_FROM = 1
    write_and_delete(path, seconds, pipe)
