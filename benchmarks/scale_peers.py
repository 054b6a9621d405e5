"""Engines of others on the passages, queries and exact best of `benchmarks.scale`.

A peer is built once and then searched, by two processes of the interpreter that has its package:
this one, or that which COLBERT_RAG_PEER_PYTHON names. So nothing is imported here, beside the peer
itself, but numpy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale_timed import Numbers, building, given, measured, spent, status

Search = Callable[[Numbers, int], list[int]]
"""Rows of a query, and how many passages to find: their numbers, best first."""

OTHER = "COLBERT_RAG_PEER_PYTHON"
BUILD_SECONDS, SEARCH_SECONDS = 360, 1_200
ROOT = Path(__file__).resolve().parents[1]
BUILT = "built.json"


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine, with one way to build it.

    Attributes:
        package: The distribution that must be installed.
        build: Stores what was given in one folder (`scale_timed.give`) in another, and says what
            storing and indexing took (`scale_timed.spent`).
        searches: Opens what was built; ways to search it, by name.
    """

    package: str
    build: Callable[[Path, Path], tuple[Numbers, Numbers]]
    searches: Callable[[Path], dict[str, Search]]


# Qdrant's engine, in this process


def _edge_build(source: Path, folder: Path) -> tuple[Numbers, Numbers]:
    """Float16 vectors, and their mean; no graph, which MaxSim has no use for."""
    import qdrant_edge as edge

    plain = edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
    maxsim = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    dim = next(given(source))[1].shape[1]
    params = partial(
        edge.EdgeVectorParams,
        size=dim,
        distance=edge.Distance.Dot,
        datatype=edge.VectorStorageDatatype.Float16,
        hnsw_config=plain,
    )
    config = edge.EdgeConfig(
        vectors={"tokens": params(multivector_config=maxsim), "mean": params()},
        wal_enabled=False,  # half of the bytes otherwise, and nothing is lost that is not flushed
    )
    shard = edge.EdgeShard.create(str(folder), config)
    stored = np.zeros(2)
    for first, vectors, offsets in given(source):
        points = []
        for place, (begin, end) in enumerate(pairwise(offsets)):
            rows = vectors[begin:end].astype(np.float32)
            points.append(edge.Point(first + place, {"tokens": rows, "mean": rows.mean(0)}, {}))
        stored += spent(partial(shard.update, edge.UpdateOperation.upsert_points(points)))
    stored += spent(shard.flush)
    indexed = spent(shard.optimize)
    shard.close()
    return stored, indexed


def _edge_searches(folder: Path) -> dict[str, Search]:
    import qdrant_edge as edge

    shard = edge.EdgeShard.load(str(folder))

    def search(query: Numbers, k: int, *, prefetch: int | None = None) -> list[int]:
        first = None
        if prefetch is not None:
            mean = edge.Query.Nearest(query.mean(0), using="mean")
            first = [edge.Prefetch(limit=prefetch, query=mean)]
        nearest = edge.Query.Nearest(query, using="tokens")
        request = edge.QueryRequest(limit=k, query=nearest, prefetches=first)
        return [int(point.id) for point in shard.query(request)]

    return {
        "exact": search,
        **{f"mean vector, {n:,} rescored": partial(search, prefetch=n) for n in (256, 1_024)},
    }


# LanceDB


def _lance_build(
    source: Path, folder: Path, *, partitions: int | None = None, parts: int | None = None
) -> tuple[Numbers, Numbers]:
    """Float16 vectors and an IVF_PQ index over them; None is what LanceDB chooses."""
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    dim = next(given(source))[1].shape[1]
    kind = pa.list_(pa.list_(pa.float16(), dim))
    schema = pa.schema([("n", pa.int32()), ("vector", kind)])
    table = lancedb.connect(str(folder)).create_table("passages", schema=schema)
    stored = np.zeros(2)
    for first, vectors, offsets in given(source):
        rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(vectors)), dim)
        lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), rows).cast(kind)
        numbers = pa.array(np.arange(first, first + len(lists), dtype=np.int32))
        data = pa.table([numbers, lists], schema=schema)
        stored += spent(partial(table.add, data))
    # The one distance that LanceDB has for several vectors a row.
    config = IvfPq(distance_type="cosine", num_partitions=partitions, num_sub_vectors=parts)
    return stored, spent(partial(table.create_index, "vector", config=config))


def _lance_searches(folder: Path, *, ways: Sequence[tuple[int, int]] = ()) -> dict[str, Search]:
    """`ways`: `nprobes` and `refine_factor` of each; else what LanceDB chooses."""
    import lancedb

    table = lancedb.connect(str(folder)).open_table("passages")

    def search(query: Numbers, k: int, *, probes: int = 0, refine: int = 0) -> list[int]:
        asked = table.search(query).distance_type("cosine").limit(k).select(["n", "_distance"])
        if probes:
            asked = asked.nprobes(probes)
        if refine:
            asked = asked.refine_factor(refine)
        numbers: list[int] = asked.to_arrow()["n"].to_pylist()
        return numbers

    return {
        f"nprobes {probes}, refine_factor {refine}": partial(search, probes=probes, refine=refine)
        for probes, refine in ways
    } or {"as it comes": search}


# fast-plaid


def _plaid_build(source: Path, folder: Path) -> tuple[Numbers, Numbers]:
    """Codes and residuals of four bits, as it comes; it takes all vectors at once."""
    import torch
    from fast_plaid.search import FastPlaid

    texts = [
        torch.from_numpy(vectors[begin:end])
        for _, chunk, offsets in given(source)
        for vectors in [np.array(chunk)]
        for begin, end in pairwise(offsets)
    ]
    engine = FastPlaid(index=str(folder / "index"), device="cpu")
    return np.zeros(2), spent(lambda: engine.create(documents_embeddings=texts))


def _plaid_searches(folder: Path) -> dict[str, Search]:
    import torch
    from fast_plaid.search import FastPlaid

    engine = FastPlaid(index=str(folder / "index"), device="cpu")

    def search(query: Numbers, k: int, **options: int) -> list[int]:
        asked = torch.from_numpy(query)[None]
        (found,) = engine.search(asked, top_k=k, show_progress=False, **options)
        return [int(number) for number, _ in found]

    return {
        "as it comes": search,
        "n_ivf_probe 32": partial(search, n_ivf_probe=32),
    }


PEERS = {
    "Qdrant Edge": Peer("qdrant-edge-py", _edge_build, _edge_searches),
    "LanceDB IVF_PQ": Peer("lancedb", _lance_build, _lance_searches),
    "LanceDB IVF_PQ, 1,024 x 48": Peer(
        "lancedb",
        partial(_lance_build, partitions=1_024, parts=48),
        partial(_lance_searches, ways=((20, 1), (20, 5), (64, 20))),
    ),
    "fast-plaid": Peer("fast-plaid", _plaid_build, _plaid_searches),
}


# The process that measures, and the peer's own


def rows(
    source: Path, kept: Path, without: Sequence[str] = ()
) -> tuple[list[dict[str, object]], list[str]]:
    """Build every peer that is not built yet, and search all of them.

    Args:
        source: What `scale_timed.give` wrote.
        kept: A folder for what is built, one for each peer.
        without: Packages to leave out.

    Returns:
        A row for each way to search, and a sentence about each peer: its version, or why it is
        left out.
    """
    found: list[dict[str, object]] = []
    notes = []
    for name, peer in PEERS.items():
        python, version = interpreter(peer.package)
        if peer.package in without or not python:
            why = "not asked for" if peer.package in without else "not installed"
            notes.append(f"Left out: {name}: {why}")
            continue
        folder = kept / name.replace(" ", "-").replace(",", "")
        built = folder / BUILT
        if not built.exists():
            shutil.rmtree(folder, ignore_errors=True)  # one that was stopped
            folder.mkdir(parents=True)
            facts = _child(python, BUILD_SECONDS, "build", name, source, folder)
            built.write_text(json.dumps(facts), encoding="utf-8")
        facts = json.loads(built.read_text(encoding="utf-8"))
        ways = {}
        if "failed" not in facts:
            ways = _child(python, SEARCH_SECONDS, "search", name, source, folder)
        if failed := facts.get("failed") or ways.pop("failed", None):
            notes.append(f"Left out: {name} {version}: {failed}")
        else:
            notes.append(f"{name}: {peer.package} {version}")
        found += [{"peer": name, "search": way, **cells, **facts} for way, cells in ways.items()]
    return found, notes


def interpreter(package: str) -> tuple[str, str]:
    """Which interpreter has a package, and in which version; empty for none."""
    ask = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    for python in filter(None, (sys.executable, os.environ.get(OTHER))):
        asked = [python, "-c", ask, package]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return python, answer.stdout.strip()
    return "", ""


def _child(python: str, limit: float, *arguments: str | Path) -> dict[str, Any]:
    """What a process of a peer says on its last line, or why it `failed`."""
    command = [python, "-m", "benchmarks.scale_peers", *map(str, arguments)]
    try:
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=True
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {limit:g} s: {arguments[0]}"}
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:] or [f"exit status {error.returncode}"]
        return {"failed": f"{arguments[0]}: {last[0]}"}
    said: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return said


def build(peer: Peer, source: Path, folder: Path) -> dict[str, object]:
    """Cells of what building took and stores."""
    stored, indexed = peer.build(source, folder)
    tokens = sum(int(offsets[-1]) for _, _, offsets in given(source))
    files = (file for file in folder.rglob("*") if file.is_file())
    return {
        **building("store", stored),
        **building("index", indexed),
        "bytes/token": round(sum(file.stat().st_blocks for file in files) * 512 / tokens, 1),
        "peak MiB": status("VmHWM") >> 20,
    }


def search(peer: Peer, source: Path, folder: Path) -> dict[str, dict[str, object]]:
    """Cells of each way to search."""
    queries, truth = np.load(source / "queries.npy"), np.load(source / "truth.npy").tolist()
    return {way: measured(ask, queries, truth) for way, ask in peer.searches(folder).items()}


if __name__ == "__main__":
    job = {"build": build, "search": search}[sys.argv[1]]
    print(json.dumps(job(PEERS[sys.argv[2]], Path(sys.argv[3]), Path(sys.argv[4]))))
