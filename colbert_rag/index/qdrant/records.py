"""The points of a collection, read page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qdrant_client import QdrantClient, models

from colbert_rag.index.qdrant.collection import (
    FETCH,
    SCROLL,
    TOKENS,
    id_of,
    payload_of,
    point_id,
)


class Records:
    """Reads one collection; `payload` names what is wanted of it, None is all."""

    def __init__(self, client: QdrantClient, collection: str) -> None:
        """Nothing is read yet."""
        self._client, self._collection = client, collection

    def in_order(self, size: int, *, vectors: bool) -> Iterator[list[models.Record]]:
        """All records by rising order of insertion; Qdrant itself scrolls by point id."""
        records = self.scroll(None, payload=["id", "order"])
        names = [
            id_of(record) for record in sorted(records, key=lambda at: payload_of(at)["order"])
        ]
        for start in range(0, len(names), size):
            some = names[start : start + size]
            found = {id_of(record): record for record in self.fetch(some, vectors=vectors)}
            yield [found[name] for name in some if name in found]

    def fetch(
        self, ids: Iterable[str], *, payload: list[str] | None = None, vectors: bool = False
    ) -> list[models.Record]:
        """Records by our ids, in no order."""
        names = [point_id(name) for name in ids]
        step = FETCH if vectors else SCROLL
        records: list[models.Record] = []
        for start in range(0, len(names), step):
            records += self._client.retrieve(
                self._collection,
                names[start : start + step],
                with_payload=True if payload is None else payload,
                with_vectors=[TOKENS] if vectors else False,
            )
        return records

    def scroll(
        self, chosen: models.Filter | None, *, payload: list[str], vectors: Iterable[str] = ()
    ) -> Iterator[models.Record]:
        """All records that pass `chosen`, by rising point id, with the vectors that are named."""
        for records in self.pages(chosen, payload=payload, vectors=vectors):
            yield from records

    def pages(
        self, chosen: models.Filter | None, *, payload: list[str], vectors: Iterable[str] = ()
    ) -> Iterator[list[models.Record]]:
        """The same, as they arrive."""
        named = list(vectors)
        offset = None
        while True:
            records, offset = self._client.scroll(
                self._collection,
                scroll_filter=chosen,
                limit=FETCH if named else SCROLL,
                offset=offset,
                with_payload=payload,
                with_vectors=named or False,
            )
            yield records
            if offset is None:
                return
