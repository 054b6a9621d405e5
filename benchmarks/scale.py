"""From ten thousand to a million passages: what an approximate search finds, takes and stores.

Beside it are our exact search, and at the smaller sizes the engines of `benchmarks.scale_peers`.
Each size is built in a process of its own, chunk by chunk, with the exact best of every chunk
beside it, and goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks import scale_peers
from benchmarks.checkpoints import CACHE
from benchmarks.report import Plan, Table
from benchmarks.scale_pool import CHUNK, DIM, QUERIES, ROWS, pool
from benchmarks.scale_timed import DEPTH, PASS_SECONDS, building, give, measured, spent, status
from colbert_rag import LocalIndex, TokenEmbeddings
from colbert_rag.codings import coding_named
from colbert_rag.index import IndexInfo
from colbert_rag.index.local import searcher
from colbert_rag.index.local.level.effort import EFFORTS, usual
from colbert_rag.maxsim import maxsim_many

Result = TypeVar("Result")

COLLECTIONS = ("scifact", "lfrqa", "cosqa", "squadshift-wiki")
SIZES = ((10_000, 2_000), (100_000, 4_000))
LARGEST = 1_000_000
"""Also built where COLBERT_RAG_SCALE=1 is set: 90 minutes, and 60 GB of disk."""

VECTORS = os.environ.get("COLBERT_RAG_SCALE_VECTORS", "float16")
"""How vectors are stored; the exact best are those over the stored ones."""

JUDGED = 40
INFO = IndexInfo(checkpoint="offline-minilm, 96 wide", fingerprint="0" * 64, dim=DIM, recipe={})
FOLDER = CACHE / "scale"
BUILDING = ("store s", "store CPU s", "index s", "index CPU s", "bytes/token", "peak MiB")
COLUMNS = ("p50 ms", "p95 ms", "CPU ms", "recall@10", "recall@100", "queries")


def run(plan: Plan) -> Iterator[Table]:
    """Build, then search, at every size."""
    names = plan.collections or COLLECTIONS
    pool(names)  # encodes, before any process is measured
    small = [plan.size(full, quick) for full, quick in SIZES]
    large = [LARGEST] if os.environ.get("COLBERT_RAG_SCALE") and not plan.quick else []
    times = []
    for size in small + large:
        stored = _apart(fill, names, size, plan.threads)
        built = {**stored, **_apart(make_level, size, plan.threads)}
        yield Table("scale", f"Building {size:,} passages", rows=[built])
        rows = _apart(search, names, size, plan.threads)
        times.append((size, next(row["p50 ms"] for row in rows if row["effort"] == "3")))
        title = f"Searching {size:,} passages: {QUERIES} queries of {ROWS} rows"
        notes = [
            f"Recall: of the exact best, {JUDGED} queries.",
            f"Real passages of {', '.join(names)}, then made ones, see benchmarks/scale_pool.py.",
        ]
        if len(times) > 1:
            (least, first), (most, last) = times[0], times[-1]
            exponent = math.log(float(str(last)) / float(str(first))) / math.log(most / least)
            notes.append(f"p50 of effort 3 has grown with the size to the power of {exponent:.2f}.")
        yield Table("scale", title, rows=rows, notes=notes)
        if size in small:
            yield beside(names, size, plan, built, rows)


def beside(
    names: tuple[str, ...],
    size: int,
    plan: Plan,
    built: dict[str, object],
    ours: list[dict[str, object]],
) -> Table:
    """The engines of others, below our own rows."""
    source = FOLDER / f"given-{_index_of(size).stem}"
    if not (source / "queries.npy").exists():
        _apart(export, names, size, source, plan.threads)
    theirs, notes = scale_peers.rows(source, source, plan.without)
    facts = {column: built.get(column) for column in BUILDING}  # an older program kept fewer
    rows = [
        {
            "peer": f"LocalIndex, {VECTORS}",
            "search": row["effort"] if row["effort"] == "exact" else f"effort {row['effort']}",
            **{column: row[column] for column in COLUMNS},
            **facts,
        }
        for row in ours
    ]
    notes += [
        "All are given the same vectors, in float16, as our file holds them, and asked one query "
        f"at a time: the best {DEPTH}, then, timed, the best 10; fewer queries where these take "
        f"more than {PASS_SECONDS:.0f} s. Recall is of the first {JUDGED} at most.",
        "Only our files hold texts, too. store s is without what made the vectors. CPU: of all "
        "threads, median; it is what the rest of a busy machine disturbs least.",
    ]
    return Table("scale", f"Engines side by side, {size:,} passages", rows + theirs, notes)


def export(names: tuple[str, ...], size: int, folder: Path) -> None:
    """Write what the processes of other engines are given."""
    with LocalIndex(_index_of(size), read_only=True) as index:
        chunks = (
            (vectors.values.numpy(), vectors.lengths.numpy())
            for _, vectors in index.encoded(CHUNK)  # in order of insertion, that of the numbers
        )
        give(folder, chunks, pool(names).queries.numpy(), exact_best(size))


def _apart(work: Callable[..., Result], *arguments: object) -> Result:
    """`work` of all arguments but the last, the threads, in a process of its own."""
    *given, threads = arguments
    process, answers = started(work, *given, threads=int(str(threads)))
    answer: Result = answers.recv()
    process.join()
    return answer


def started(
    work: Callable[..., object], *arguments: object, threads: int
) -> tuple[BaseProcess, Connection]:
    """A process that does `work`, and where its answer will come from."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, threads, work, *arguments))
    process.start()
    theirs.close()
    return process, ours


def _answer(
    pipe: Connection, threads: int, work: Callable[..., object], *arguments: object
) -> None:
    torch.set_num_threads(threads)
    pipe.send(work(*arguments))


def fill(names: tuple[str, ...], size: int) -> dict[str, object]:
    """Fill an index, and note the exact best of each chunk.

    Returns:
        Cells of what storing took; empty ones where an older program did some of it.
    """
    path = _index_of(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    coding = coding_named(VECTORS)
    missing = [number for number in range(size // CHUNK) if not _noted(path, number).exists()]
    if missing:
        found = pool(names)
        judged = TokenEmbeddings.from_list(list(found.queries[:JUDGED]))
        searcher.APPROXIMATE_FROM = 2**62  # the level is made once, at the end
        with LocalIndex(path, like=INFO, vectors=coding.name) as index:
            for number in missing:
                documents, given = found.chunk(number)
                vectors = coding.encoded(given).decoded()
                took = spent(partial(index.add_encoded, documents, vectors))
                scores, places = maxsim_many(judged, vectors).topk(DEPTH, 1)
                best = {"scores": scores.numpy(), "places": places.numpy() + number * CHUNK}
                np.savez(_noted(path, number), **best, took=took)
    noted = [np.load(_noted(path, number)) for number in range(size // CHUNK)]
    known = all("took" in chunk for chunk in noted)
    return building("store", sum(chunk["took"] for chunk in noted) if known else None)


def _index_of(size: int) -> Path:
    return FOLDER / f"{size}{'' if VECTORS == 'float16' else f'-{VECTORS}'}.sqlite"


def _noted(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}.npz")


def exact_best(size: int) -> list[list[int]]:
    """Numbers of the exact best `DEPTH` of the first `JUDGED` queries."""
    chunks = [np.load(_noted(_index_of(size), number)) for number in range(size // CHUNK)]
    scores = np.concatenate([chunk["scores"] for chunk in chunks], 1)
    places = np.concatenate([chunk["places"] for chunk in chunks], 1)
    order = np.argsort(-scores, 1, kind="stable")[:, :DEPTH]
    best: list[list[int]] = np.take_along_axis(places, order, 1).tolist()
    return best


def make_level(size: int) -> dict[str, object]:
    """Make the level in a process that does nothing else; what the first took is kept beside it."""
    kept = _index_of(size).with_suffix(".level.json")
    before = status("VmRSS")
    with LocalIndex(_index_of(size)) as index:
        made = spent(partial(index.optimize, show_progress=True))
        held = index.stats()
    if kept.exists():
        known: dict[str, object] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    assert held.tokens is not None
    assert held.bytes is not None
    assert held.level_bytes is not None
    cells = {
        "passages": size,
        "vectors": held.vectors,
        "tokens": held.tokens,
        **building("index", made),
        "index us/token": round(1e6 * float(made[0]) / held.tokens, 2),
        "bytes/token": round((held.bytes + held.level_bytes) / held.tokens, 1),
        "of them level": round(held.level_bytes / held.tokens, 2),
        "peak MiB": status("VmHWM") >> 20,
        "of them before": before >> 20,
    }
    kept.write_text(json.dumps(cells), encoding="utf-8")
    return cells


def search(names: tuple[str, ...], size: int) -> list[dict[str, object]]:
    """Time every effort, warm, and the first query with a cold page cache."""
    queries = pool(names).queries
    path = _index_of(size)
    truth = exact_best(size)
    asked = [TokenEmbeddings.from_list([query]) for query in queries]
    _forget(path)
    before, start = status("RssAnon"), time.perf_counter()
    index = LocalIndex(path, read_only=True)
    index.search_embeddings(asked[-1], 10, exact=False)
    opened, grown = time.perf_counter() - start, status("RssAnon") - before
    cold = []
    for query in asked[-6:-1]:
        _forget(path)
        start = time.perf_counter()
        index.search_embeddings(query, 10, exact=False)
        cold.append(1e3 * (time.perf_counter() - start))
    usually = usual(index.stats().tokens or 0)
    rows: list[dict[str, object]] = []
    for effort in (*EFFORTS, None):
        how = {"exact": effort is None, "effort": effort}

        def found(query: TokenEmbeddings, k: int, how: dict[str, Any] = how) -> list[int]:
            return [int(hit.id[1:]) for hit in index.search_embeddings(query, k, **how)[0]]

        rows.append(
            {
                "passages": size,
                "effort": "exact" if effort is None else str(effort),
                **measured(found, asked, truth),
                "cold ms": round(float(np.median(cold))) if effort == usually else None,
                "open and first s": round(opened, 2) if effort == usually else None,
                "grown MiB": grown >> 20 if effort == usually else None,
            }
        )
    index.close()
    return rows


def _forget(path: Path) -> None:
    """Ask the system to drop the files' pages from its cache."""
    for file in path.parent.glob(f"{path.name}*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
