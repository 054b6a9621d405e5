"""`RemoteRanking`: what a server ranked, and which words made its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from colbert_rag.inputs import has_words
from colbert_rag.ranking import Explain, Ranked, Ranking
from colbert_rag.remote.answers import Scores


@dataclass(frozen=True, eq=False, slots=True)
class RemoteExplanation:
    """Which document token each query token matched, as a server tells it.

    An `Explanation` has views, too; those need every similarity, and a server sends the best ones.

    Attributes:
        values: What `Explanation.to_dict` gave there.
    """

    values: Mapping[str, Any]

    @property
    def score(self) -> float:
        """The sum of the matches' similarities."""
        return float(self.values["score"])

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON, as those of an `Explanation`."""
        return dict(self.values)

    def __repr__(self) -> str:
        """A line for each query token: what it matched, and what that adds."""
        lines = [f"{self.score:.4f} for {self.values.get('query')!r}"]
        for match in self.values.get("matches", []):
            found = match["document"]
            token = "nothing" if found is None else found["token"]
            lines.append(
                f"{match['similarity'] or 0.0:>8.4f}  {match['query']['token']} -> {token}"
            )
        return "\n".join(lines)


class RemoteRanking(Ranking):
    """A ranking whose scores a server computed."""

    @classmethod
    def of(
        cls,
        scores: Scores,
        *,
        query: str,
        texts: Sequence[str],
        items: Sequence[object],
        top_k: int | None,
        explain: Callable[[str, str], RemoteExplanation],
    ) -> RemoteRanking:
        """Put scores into the order of every ranking: `Ranking.from_scores` says which.

        Args:
            scores: Of some of the texts.
            query: The query.
            texts: All texts that were ranked.
            items: What the caller gave for each.
            top_k: Places of the ranking; None for all.
            explain: Asks why a text has its score for a query.
        """
        ordered = sorted(
            scores.found, key=lambda one: (not has_words(texts[one.index]), -one.score, one.index)
        )[:top_k]
        held = {
            one.index: RemoteExplanation(one.explanation)
            for one in ordered
            if one.explanation is not None
        }

        def explained(place: Ranked) -> RemoteExplanation:
            return held.get(place.index) or explain(query, place.text)

        ranked = [
            Ranked(
                rank=rank,
                index=one.index,
                score=one.score,
                text=texts[one.index],
                query_rows=scores.query_rows,
                item=items[one.index],
            )
            for rank, one in enumerate(ordered, start=1)
        ]
        return cls(
            ranked,
            query=query,
            texts=texts,
            query_rows=scores.query_rows,
            explain=cast("Explain", explained),  # what `explain` below says it gives
        )

    def explain(self, position: int) -> RemoteExplanation:  # type: ignore[override]
        """Which words made the score of one place, as `Ranking.explain`; may ask the server."""
        return cast("RemoteExplanation", super().explain(position))
