"""What a search asks first, so that few documents are scored exactly: by codes, or by means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from qdrant_client import QdrantClient, models
from torch import Tensor

from colbert_rag.index.how import How
from colbert_rag.index.qdrant.collection import (
    CODES,
    MEAN,
    TOKENS,
    Held,
    coded_in,
    mean_of,
    payload_of,
)
from colbert_rag.index.qdrant.effort import EFFORTS, Effort
from colbert_rag.index.qdrant.shelf import Current, Shelf

Prefetch: TypeAlias = int | Literal["auto"] | None
Stage: TypeAlias = Callable[[Tensor], list[models.Prefetch]]

LEAST = 5_000
"""Documents below which an exact search is fast anyway."""

# Where one of so few documents is wanted, candidates would be most of them.
_MANY = 20


def check_prefetch(prefetch: Prefetch) -> None:
    """Refuse what is none.

    Raises:
        ValueError: it is neither "auto" nor None nor a number from 1 on.
    """
    if prefetch is None or prefetch == "auto":
        return
    if isinstance(prefetch, bool) or not isinstance(prefetch, int) or prefetch < 1:
        raise ValueError(f"prefetch is {prefetch!r}, expected 'auto', None, or a number from 1 on")


class Stages:
    """Decides what comes first, by what a collection has."""

    def __init__(
        self, client: QdrantClient, collection: str, held: Held, shelf: Shelf, prefetch: Prefetch
    ) -> None:
        """Nothing is read yet."""
        self._client, self._collection = client, collection
        self._held, self._shelf, self._prefetch = held, shelf, prefetch

    def choose(self, how: How, top_k: int, passing: models.Filter | None) -> Stage | None:
        """What narrows the documents; None where all are to be scored."""
        if how.exact or (self._prefetch is None and how == How()):
            return None
        if isinstance(self._prefetch, int):
            candidates = max(self._prefetch, top_k)
            return lambda rows: by_means(rows, passing, candidates)
        current = self._shelf.current() if self._held.codes else None
        if current is None:
            return None
        if how == How() and current.record.documents < max(LEAST, _MANY * top_k):
            return None
        chosen = current.effort if how.effort is None else how.effort
        effort = EFFORTS[chosen].for_results(top_k)
        if passing is not None:
            count = self._client.count(self._collection, count_filter=passing, exact=True).count
            # Among so few, a code that the query does not look for could hide one.
            if count <= effort.candidates:
                return None
        return lambda rows: by_codes(rows, passing, top_k, current, effort)

    def request(
        self, rows: Tensor, passing: models.Filter | None, limit: int, stage: Stage | None
    ) -> models.QueryRequest:
        """The search for one query, `(rows, dim)`."""
        return models.QueryRequest(
            query=rows.tolist(),
            using=TOKENS,
            filter=passing,
            limit=limit,
            with_payload=["id", "text", "metadata", "order"],
            prefetch=stage(rows) if stage is not None and len(rows) else None,
        )

    def best(
        self, request: models.QueryRequest, points: list[models.ScoredPoint], top_k: int
    ) -> list[models.ScoredPoint]:
        """The first `top_k` of an answer, ties in order of insertion, which no server knows."""
        if request.prefetch and len(points) < top_k and not isinstance(self._prefetch, int):
            request.prefetch = None  # codes did not find enough, so all have to be looked at
            points = self._asked(request)
        limit = top_k + 1
        while len(points) == limit and points[top_k - 1].score == points[-1].score:
            limit *= 4
            request.limit = limit
            points = self._asked(request)
        return sorted(points, key=lambda at: (-at.score, payload_of(at)["order"]))[:top_k]

    def _asked(self, request: models.QueryRequest) -> list[models.ScoredPoint]:
        return self._client.query_batch_points(self._collection, [request])[0].points


def by_means(rows: Tensor, passing: models.Filter | None, candidates: int) -> list[models.Prefetch]:
    """The documents whose mean vector is nearest to the query's."""
    return [
        models.Prefetch(query=mean_of(rows), using=MEAN, filter=passing, limit=candidates),
    ]


def by_codes(
    rows: Tensor, passing: models.Filter | None, top_k: int, current: Current, effort: Effort
) -> list[models.Prefetch]:
    """The documents with the codes that the query gains most by; and of those without, the best.

    What was added by a writer that knows no codes, or another codebook, is so found exactly.
    """
    # What a document has is found in the payload's index; what it lacks takes 75 ns for each.
    uncoded = models.Filter(
        must=[
            *([] if passing is None else [passing]),
            models.Filter(
                should=[
                    models.IsEmptyCondition(is_empty=models.PayloadField(key=CODES)),
                    *map(coded_in, current.record.retired),
                ]
            ),
        ],
        must_not=[coded_in(current.record.base)],
    )
    return [
        models.Prefetch(
            query=current.codebook.query(rows, effort.probes),
            using=CODES,
            filter=passing,
            limit=effort.candidates,
        ),
        models.Prefetch(query=rows.tolist(), using=TOKENS, filter=uncoded, limit=top_k + 1),
    ]
