"""Who stores and searches token vectors in the job `index`, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.cold_start import Program
from colbert_rag import TokenEmbeddings
from colbert_rag.index import Document, Index, IndexInfo, LocalIndex
from colbert_rag.index.local import searcher

DIM, QUERY_ROWS, K = 96, 32, 10
INFO = IndexInfo(checkpoint="benchmark/random", fingerprint="0" * 64, dim=DIM, recipe={})
EDGE = "qdrant-edge-py"
Found = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Store:
    """One engine's store, as this job uses it.

    Attributes:
        add: Puts in one batch.
        search: The best `K` ids and scores.
        close: Brings everything to disk, where there is one.
    """

    add: Callable[[list[Document], TokenEmbeddings], object]
    search: Callable[[Tensor], Found]
    close: Callable[[], None]


# All are searched exactly here, so building must not make what other searches go by.
searcher.APPROXIMATE_FROM = 2**62


def _index(index: Index) -> Store:
    def search(query: Tensor) -> Found:
        (hits,) = index.search_embeddings(TokenEmbeddings.from_list([query]), K, exact=True)
        return [(hit.id, hit.score) for hit in hits]

    return Store(index.add_encoded, search, index.close)


def _edge(folder: Path) -> Store:
    """Qdrant's Rust engine in this process, with the defaults it has, but without a graph."""
    import qdrant_edge as edge

    if folder.exists():
        shard = edge.EdgeShard.load(str(folder))
    else:
        folder.mkdir()
        params = edge.EdgeVectorParams(
            size=DIM,
            distance=edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=edge.VectorStorageDatatype.Float16,
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        )
        config = edge.EdgeConfig(vectors={"colbert": params})
        shard = edge.EdgeShard.create(str(folder), config)

    def add(documents: list[Document], vectors: TokenEmbeddings) -> None:
        points = [
            edge.Point(
                int(document.id),
                {"colbert": rows.float().numpy()},
                {"text": document.text, "metadata": dict(document.metadata)},
            )
            for document, rows in zip(documents, vectors, strict=True)
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))

    def search(query: Tensor) -> Found:
        nearest = edge.Query.Nearest(query.numpy(), using="colbert")
        request = edge.QueryRequest(limit=K, query=nearest, with_payload=True)
        return [(str(point.id), point.score) for point in shard.query(request)]

    def close() -> None:
        shard.flush()
        shard.close()

    return Store(add, search, close)


def _client(_: Path) -> Store:
    from qdrant_client import QdrantClient

    from colbert_rag.index import QdrantIndex

    return _index(QdrantIndex(QdrantClient(":memory:"), "benchmark", like=INFO))


_OURS = (
    "import numpy, torch; from colbert_rag import TokenEmbeddings\n"
    "from colbert_rag.index import LocalIndex, copy_index\n"
    "asked = TokenEmbeddings.from_list([torch.from_numpy(numpy.load(query))])"
)


@dataclass(frozen=True, slots=True)
class Engine:
    """One row.

    Attributes:
        open: Opens or makes a store at a path.
        on_disk: Whether the store outlives its process.
        program: The same as a whole process; `folder` is the path, or that of a `LocalIndex` to
            copy from where there is none.
        most: Passages that it can be asked to search in a reasonable time.
    """

    open: Callable[[Path], Store]
    on_disk: bool
    program: Program
    most: int = 10**9


ENGINES = {
    "LocalIndex, file": Engine(
        lambda path: _index(LocalIndex(path, like=INFO)),
        True,
        Program(
            "torch",
            _OURS,
            "",
            "index = LocalIndex(folder); index.search_embeddings(asked, 10, exact=True)",
        ),
    ),
    "LocalIndex, in memory": Engine(
        lambda _: _index(LocalIndex(":memory:", like=INFO)),
        False,
        Program(
            "torch",
            _OURS,
            "",
            "source = LocalIndex(folder); index = LocalIndex(':memory:', like=source.info)\n"
            "copy_index(source, index); index.search_embeddings(asked, 10, exact=True)",
        ),
    ),
    EDGE: Engine(
        _edge,
        True,
        Program(
            EDGE,
            "import numpy, qdrant_edge as edge; asked = numpy.load(query)",
            "",
            "shard = edge.EdgeShard.load(folder)\n"
            "shard.query(edge.QueryRequest(limit=10, with_payload=True, "
            "query=edge.Query.Nearest(asked, using='colbert')))",
        ),
    ),
    "qdrant-client local mode": Engine(
        _client,
        False,
        Program(
            "qdrant-client",
            f"{_OURS}\nfrom qdrant_client import QdrantClient\n"
            "from colbert_rag.index import QdrantIndex",
            "",
            "source = LocalIndex(folder)\n"
            "index = QdrantIndex(QdrantClient(':memory:'), 'benchmark', like=source.info)\n"
            "copy_index(source, index); index.search_embeddings(asked, 10, exact=True)",
        ),
        most=2_000,
    ),
}
