"""Qdrant's own engine (Rust, in process), fed with what an index holds: the oracle for Qdrant."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import qdrant_edge as edge

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Index
from colbert_rag.index.filters import parse_filter
from colbert_rag.index.qdrant.filters import to_qdrant

_VECTOR = "colbert"


class EdgeOracle:
    """A shard that holds a copy of an index, and answers the same questions."""

    def __init__(self, folder: Path, index: Index) -> None:
        params = edge.EdgeVectorParams(
            size=index.info.dim,
            distance=edge.Distance.Dot,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=edge.VectorStorageDatatype.Float16,
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={_VECTOR: params}))
        self.ids: list[str] = []
        for documents, vectors in index.encoded():
            points = [
                edge.Point(
                    len(self.ids) + number,
                    {_VECTOR: rows.tolist()},
                    {"metadata": dict(document.metadata)},
                )
                for number, (document, rows) in enumerate(zip(documents, vectors, strict=True))
            ]
            self.ids += [document.id for document in documents]
            self.shard.update(edge.UpdateOperation.upsert_points(points))

    def search(
        self, queries: TokenEmbeddings, k: int, filter: Mapping[str, object] | None = None
    ) -> list[list[tuple[str, float]]]:
        condition = parse_filter(filter)
        passing = None if condition is None else _filter({"must": [to_qdrant(condition)]})
        return [
            [
                (self.ids[point.id], point.score)
                for point in self.shard.query(
                    edge.QueryRequest(
                        limit=k,
                        query=edge.Query.Nearest(rows.float().tolist(), using=_VECTOR),
                        filter=passing,
                    )
                )
            ]
            for rows in queries
        ]

    def passing(self, filter: Mapping[str, object]) -> set[str]:
        condition = parse_filter(filter)
        records, _ = self.shard.scroll(
            edge.ScrollRequest(limit=1000, filter=_filter({"must": [to_qdrant(condition)]}))
        )
        return {self.ids[record.id] for record in records}


def _filter(rest: Mapping[str, object]) -> edge.Filter:
    """Qdrant's JSON form of a filter as the engine's objects."""
    return edge.Filter(
        **{clause: [_condition(part) for part in parts] for clause, parts in rest.items()}
    )


def _condition(rest: Mapping[str, object]) -> object:
    match rest:
        case {"key": key, "match": {"any": values}}:
            return edge.FieldCondition(key, match=edge.MatchAny(values))
        case {"key": key, "match": {"value": value}}:
            return edge.FieldCondition(key, match=edge.MatchValue(value))
        case {"key": key, "range": bounds} if any(isinstance(b, str) for b in bounds.values()):
            moments = {name: datetime.fromisoformat(b).isoformat() for name, b in bounds.items()}
            return edge.FieldCondition(key, range=edge.RangeDateTime(**moments))
        case {"key": key, "range": bounds}:
            return edge.FieldCondition(key, range=edge.RangeFloat(**bounds))
        case {"is_empty": {"key": key}}:
            return edge.IsEmptyCondition(key)
        case {"is_null": {"key": key}}:
            return edge.IsNullCondition(key)
        case {"has_id": ids}:
            return edge.HasIdCondition(set(ids))
        case _:
            return _filter(rest)
