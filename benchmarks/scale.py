"""From ten thousand to a million passages: what an approximate search finds, takes and stores.

Real token vectors (`offline-minilm`, all four English collections, brought to 96 dimensions by the
principal directions of a sample) come first. A passage beyond them is *made*: the beginning of one
real passage and the end of another of the same collection, cut at random, each vector turned by
noise so that its cosine with the original is about .95. Each size is built in a process of its own,
chunk by chunk, with the exact best of every chunk beside it, and goes on where it was stopped.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import corpora
from benchmarks.checkpoints import CACHE
from benchmarks.report import Plan, Table
from colbert_rag import ColBERT, LocalIndex, TokenEmbeddings
from colbert_rag.codings import coding_named
from colbert_rag.index import Document, IndexInfo
from colbert_rag.index.local import searcher
from colbert_rag.index.local.level.effort import EFFORTS
from colbert_rag.maxsim import maxsim_many
from colbert_rag.settings import OFFLINE_CHECKPOINT

Result = TypeVar("Result")

COLLECTIONS = ("scifact", "lfrqa", "cosqa", "squadshift-wiki")
SIZES = ((10_000, 2_000), (100_000, 4_000))
LARGEST = 1_000_000
"""Also built where COLBERT_RAG_SCALE=1 is set: 90 minutes, and 60 GB of disk."""

DIM, ROWS, CHUNK, DEPTH = 96, 32, 2_000, 100
NOISE = 0.33
"""Length of the noise beside a unit vector: a cosine of 1 / sqrt(1 + NOISE ** 2) = .95."""

VECTORS = os.environ.get("COLBERT_RAG_SCALE_VECTORS", "float16")
"""How vectors are stored; the exact best are those over the stored ones."""

QUERIES, JUDGED = 100, 40
INFO = IndexInfo(checkpoint="offline-minilm, 96 wide", fingerprint="0" * 64, dim=DIM, recipe={})
FOLDER = CACHE / "scale"


@dataclass(frozen=True, eq=False, slots=True)
class Pool:
    """All real passages, in an order that mixes the collections.

    Attributes:
        passages: Their vectors, float16.
        texts: Their texts.
        of: `(passages,)`: the number of the collection of each.
        queries: `(QUERIES, ROWS, DIM)`, float32: real queries, their rows repeated with noise.
    """

    passages: TokenEmbeddings
    texts: list[str]
    of: np.ndarray
    queries: Tensor

    def chunk(self, number: int) -> tuple[list[Document], TokenEmbeddings]:
        """Passages `number * CHUNK` and on."""
        random = np.random.default_rng(number)
        real, first = len(self.texts), number * CHUNK
        names = range(first, first + CHUNK)
        spans = [
            [(name, 0, int(self.passages.lengths[name]))] if name < real else self._cut(random)
            for name in names
        ]
        offsets = self.passages.offsets
        rows, lengths, turned = [], [], []
        for name, parts in zip(names, spans, strict=True):
            picked = [torch.arange(a, b) + int(offsets[at]) for at, a, b in parts]
            rows += picked
            lengths.append(sum(map(len, picked)))
            turned.append(name >= real)
        values = self.passages.values[torch.cat(rows)].float()
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(number))
        amount = NOISE * torch.tensor(turned).repeat_interleave(torch.tensor(lengths)).float()
        values = normalize(values + amount[:, None] * normalize(noise, dim=1), dim=1)
        documents = [
            Document(f"p{name}", f"{self.texts[parts[0][0]]} ({name})", {"n": name % 100})
            for name, parts in zip(names, spans, strict=True)
        ]
        return documents, TokenEmbeddings.from_lengths(values.half(), lengths)

    def _cut(self, random: np.random.Generator) -> list[tuple[int, int, int]]:
        first = int(random.integers(len(self.texts)))
        alike = np.flatnonzero(self.of == self.of[first])
        second, where = int(random.choice(alike)), random.random()
        lengths = self.passages.lengths
        end = max(1, round(where * int(lengths[first])))
        begin = min(round(where * int(lengths[second])), int(lengths[second]) - 1)
        return [(first, 0, end), (second, begin, int(lengths[second]))]


def encoded(name: str) -> tuple[TokenEmbeddings, TokenEmbeddings]:
    """Vectors of a collection's passages and queries, encoded once."""
    files = [CACHE / "vectors" / f"{name}.{kind}.safetensors" for kind in ("docs", "queries")]
    if not all(file.exists() for file in files):
        model = ColBERT.from_pretrained(
            OFFLINE_CHECKPOINT,
            raw_token_embeddings=True,
            dtype="float32",
            document_length=256,
            document_cache=None,
        )
        found = corpora.collection(name)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        model.encode_queries(list(found.queries.values())).save(files[1])
        vectors = model.encode_documents(list(found.documents.values()), show_progress=True)
        vectors.to(dtype=torch.float16).save(files[0])
    documents, queries = map(TokenEmbeddings.load, files)
    return documents, queries


def narrowed(collections: list[tuple[TokenEmbeddings, TokenEmbeddings]]) -> list[list[Tensor]]:
    """All of them at 96 dimensions, by the principal directions of passages, not centred."""
    random = np.random.default_rng(0)
    sample = torch.cat(
        [
            documents.values[torch.from_numpy(random.choice(len(documents.values), 50_000))].float()
            for documents, _ in collections
        ]
    )
    _, directions = torch.linalg.eigh(sample.T @ sample)
    onto = directions[:, -DIM:].contiguous()
    return [
        [
            torch.cat([normalize(part.float() @ onto, dim=1).half() for part in rows.split(2**17)])
            for rows in (documents.values, queries.values)
        ]
        for documents, queries in collections
    ]


def pool(names: tuple[str, ...]) -> Pool:
    """All passages and some queries of these collections."""
    collections = [encoded(name) for name in names]
    values = narrowed(collections)
    lengths = torch.cat([documents.lengths for documents, _ in collections])
    whole = TokenEmbeddings.from_lengths(torch.cat([rows for rows, _ in values]), lengths)
    texts = [text for name in names for text in corpora.collection(name).documents.values()]
    of = np.repeat(np.arange(len(names)), [len(documents) for documents, _ in collections])
    order = np.random.default_rng(1).permutation(np.flatnonzero(whole.lengths.numpy() > 0))
    generator = torch.Generator().manual_seed(2)
    queries = []
    each = QUERIES // len(names)
    for (_, rows), (_, held) in zip(values, collections, strict=True):
        texts_of = TokenEmbeddings(rows.float(), held.offsets)
        step = len(texts_of) // each
        for at in range(each):
            query = texts_of[at * step]
            again = query[torch.arange(ROWS) % len(query)]
            noise = NOISE * normalize(torch.randn(ROWS, DIM, generator=generator), dim=1)
            noise[: len(query)] = 0
            queries.append(normalize(again + noise, dim=1))
    return Pool(whole[order.tolist()], [texts[at] for at in order], of[order], torch.stack(queries))


def run(plan: Plan) -> Iterator[Table]:
    """Build, then search, at every size."""
    names = plan.collections or COLLECTIONS
    pool(names)  # encodes, before any process is measured
    sizes = [plan.size(full, quick) for full, quick in SIZES]
    if os.environ.get("COLBERT_RAG_SCALE") and not plan.quick:
        sizes.append(LARGEST)
    times = []
    for size in sizes:
        stored = _apart(fill, names, size, plan.threads)
        built = _apart(make_level, size, plan.threads)
        filled = None if stored is None else round(stored)
        yield Table("scale", f"Building {size:,} passages", rows=[{**built, "store s": filled}])
        rows = _apart(search, names, size, plan.threads)
        times.append((size, next(row["p50 ms"] for row in rows if row["effort"] == "3")))
        title = f"Searching {size:,} passages: {QUERIES} queries of {ROWS} rows"
        notes = [
            f"Recall: of the exact best, {JUDGED} queries.",
            f"Real passages of {', '.join(names)}, then made ones, see benchmarks/scale.py.",
        ]
        if len(times) > 1:
            (least, first), (most, last) = times[0], times[-1]
            exponent = math.log(float(str(last)) / float(str(first))) / math.log(most / least)
            notes.append(f"p50 of effort 3 has grown with the size to the power of {exponent:.2f}.")
        yield Table("scale", title, rows=rows, notes=notes)


def _apart(work: Callable[..., Result], *arguments: object) -> Result:
    """`work` of all arguments but the last, the threads, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    answer: Result = ours.recv()
    process.join()
    return answer


def _answer(pipe: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(int(str(arguments[-1])))
    pipe.send(work(*arguments[:-1]))


def fill(names: tuple[str, ...], size: int) -> float | None:
    """Fill an index, and note the exact best of each chunk; seconds, None if it was full."""
    path = _index_of(size)
    path.parent.mkdir(parents=True, exist_ok=True)
    coding = coding_named(VECTORS)
    missing = [number for number in range(size // CHUNK) if not _noted(path, number).exists()]
    if not missing:
        return None
    found = pool(names)
    judged = TokenEmbeddings.from_list(list(found.queries[:JUDGED]))
    searcher.APPROXIMATE_FROM = 2**62  # the level is made once, at the end
    start = time.perf_counter()
    with LocalIndex(path, like=INFO, vectors=coding.name) as index:
        for number in missing:
            documents, given = found.chunk(number)
            vectors = coding.encoded(given).decoded()
            index.add_encoded(documents, vectors)
            scores, places = maxsim_many(judged, vectors).topk(DEPTH, 1)
            places = places + number * CHUNK
            np.savez(_noted(path, number), scores=scores.numpy(), places=places.numpy())
    return time.perf_counter() - start


def _index_of(size: int) -> Path:
    return FOLDER / f"{size}{'' if VECTORS == 'float16' else f'-{VECTORS}'}.sqlite"


def _noted(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}.npz")


def make_level(size: int) -> dict[str, object]:
    """Make the level in a process that does nothing else."""
    before = _resident()
    with LocalIndex(_index_of(size)) as index:
        start = time.perf_counter()
        index.optimize(show_progress=True)
        made = time.perf_counter() - start
        held = index.stats()
    assert held.tokens is not None
    assert held.bytes is not None
    assert held.level_bytes is not None
    return {
        "passages": size,
        "vectors": held.vectors,
        "tokens": held.tokens,
        "level s": round(made, 1),
        "level us/token": round(1e6 * made / held.tokens, 2),
        "bytes/token": round((held.bytes + held.level_bytes) / held.tokens, 1),
        "of them level": round(held.level_bytes / held.tokens, 2),
        "peak MiB": _peak() >> 20,
        "of them before": before >> 20,
    }


def search(names: tuple[str, ...], size: int) -> list[dict[str, object]]:
    """Time every effort, warm, and the first query with a cold page cache."""
    queries = pool(names).queries
    path = _index_of(size)
    chunks = [np.load(_noted(path, number)) for number in range(size // CHUNK)]
    scores = np.concatenate([chunk["scores"] for chunk in chunks], 1)
    places = np.concatenate([chunk["places"] for chunk in chunks], 1)
    order = np.argsort(-scores, 1, kind="stable")[:, :DEPTH]
    truth = [[f"p{at}" for at in row] for row in np.take_along_axis(places, order, 1)]
    asked = [TokenEmbeddings.from_list([query]) for query in queries]
    _forget(path)
    before, start = _resident(), time.perf_counter()
    index = LocalIndex(path, read_only=True)
    index.search_embeddings(asked[-1], 10, exact=False)
    opened, grown = time.perf_counter() - start, _resident() - before
    cold = []
    for query in asked[-6:-1]:
        _forget(path)
        start = time.perf_counter()
        index.search_embeddings(query, 10, exact=False)
        cold.append(1e3 * (time.perf_counter() - start))
    rows: list[dict[str, object]] = []
    for effort in EFFORTS:
        for query in asked:
            index.search_embeddings(query, 10, exact=False, effort=effort)
        times, found, deep = [], [], []
        for number, query in enumerate(asked):
            start = time.perf_counter()
            hits = index.search_embeddings(query, 10, exact=False, effort=effort)[0]
            times.append(1e3 * (time.perf_counter() - start))
            if number < JUDGED:
                found.append([hit.id for hit in hits])
                best = index.search_embeddings(query, DEPTH, exact=False, effort=effort)[0]
                deep.append([hit.id for hit in best])
        p50, p95 = np.percentile(times, [50, 95])
        rows.append(
            {
                "passages": size,
                "effort": str(effort),
                "p50 ms": round(float(p50), 1),
                "p95 ms": round(float(p95), 1),
                "recall@10": _recall(found, truth, 10),
                "recall@100": _recall(deep, truth, DEPTH),
                "cold ms": round(float(np.median(cold))) if effort == 3 else None,
                "open and first s": round(opened, 2) if effort == 3 else None,
                "grown MiB": grown >> 20 if effort == 3 else None,
            }
        )
    index.close()
    return rows


def _recall(found: list[list[str]], truth: list[list[str]], k: int) -> float:
    parts = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(found, truth, strict=True)]
    return round(float(np.mean(parts)), 4)


def _forget(path: Path) -> None:
    """Ask the system to drop the files' pages from its cache."""
    for file in path.parent.glob(f"{path.name}*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
