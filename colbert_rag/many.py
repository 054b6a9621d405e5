"""Many queries against texts: each distinct text is encoded once, and only scores are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.explanation import Explanation
from colbert_rag.inputs import TextList
from colbert_rag.maxsim import maxsim_many
from colbert_rag.progress import progress_bar
from colbert_rag.ranking import Ranking
from colbert_rag.scoring import KnownVectors, Scorer, best_windows, check_scores
from colbert_rag.tokenizer import Span

WAVE_BYTES = {"cpu": 256 * 2**20, "mps": 512 * 2**20, "cuda": 2**30}
"""Bytes of document vectors encoded at a time, by device. Where some of a wave come from the cache,
all are joined, and up to twice as many are held. On a CPU a wave of 128 dimensions has over a
thousand abstracts: enough for their lengths to fill batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One list of texts, and the queries that it is ranked for.

    Attributes:
        texts: The texts.
        queries: Places of the queries.
        windows: For each text, where its pieces lie in it.
        numbers: For each piece, its number among all distinct ones, `(pieces,)`.
        order: Places in `numbers`, by rising number, `(pieces,)`.
        scores: `(queries, pieces)`, filled wave by wave.
    """

    texts: Sequence[str]
    queries: list[int]
    windows: list[list[Span]]
    numbers: NDArray[np.int64]
    order: NDArray[np.int64]
    scores: NDArray[np.float32]

    @property
    def last(self) -> int:
        """The highest number: with it, all have their scores."""
        return int(self.numbers[self.order[-1]])

    def names(self, pieces: Sequence[str]) -> list[str]:
        """The pieces themselves, chosen from all distinct ones."""
        return [pieces[number] for number in self.numbers.tolist()]

    def take(self, queries: TokenEmbeddings, documents: TokenEmbeddings, first: int) -> None:
        """Score the pieces of a wave that are in this list.

        Args:
            queries: Of all queries.
            documents: The pieces of the wave.
            first: The number of the first one.
        """
        begin, end = np.searchsorted(
            self.numbers, [first, first + len(documents)], sorter=self.order
        )
        if begin == end:
            return
        places = self.order[begin:end]
        chosen, which = np.unique(self.numbers[places] - first, return_inverse=True)
        if len(chosen) < len(documents):
            documents = documents[chosen.tolist()]
        own = queries if len(self.queries) == len(queries) else queries[self.queries]
        self.scores[:, places] = maxsim_many(own, documents).cpu().numpy()[:, which]


def rank_in_turn(
    scorer: Scorer,
    queries: Sequence[str],
    lists: Sequence[TextList],
    *,
    top_k: int | None,
    known: KnownVectors | None,
    explain: Callable[[str, str], Explanation],
    show_progress: bool,
) -> Iterator[tuple[int, Ranking]]:
    """The place of each query and its ranking, as soon as all of its texts have a score.

    A wave is scored against all queries that need something of it before the next one is encoded.
    Documents come in the order in which the queries first need them: those of one query are in few
    waves, and the first queries are done first.

    Args:
        scorer: The model.
        queries: One at least.
        lists: For each query its texts, one at least.
        top_k: Places of each ranking; None for all.
        known: Finds vectors that need not be made.
        explain: Explains the score of a text for a query.
        show_progress: Draw a progress bar over the distinct pieces.

    Raises:
        ScoringError: not one score of a query is a number.
    """
    pieces, listed = _listed(scorer, [texts for texts, _ in lists])
    vectors = scorer.text_encoder.queries(queries)
    rows = vectors.lengths.tolist()

    def ranking(query: int, one: Listed, scores: list[float]) -> Ranking:
        winners, spans = best_windows(one.names(pieces), one.windows, scores)
        best = [scores[winner] for winner in winners]
        check_scores(best, vectors.dtype)
        texts, items = lists[query]
        found = Ranking.from_scores(
            best,
            query=queries[query],
            texts=texts,
            query_rows=rows[query],
            items=items,
            spans=spans,
            top_k=top_k,
        )
        return found.explained_by(lambda place: explain(queries[query], place.text))

    with progress_bar("Ranking documents", total=len(pieces), show=show_progress) as bar:
        for first, last in _waves(scorer, pieces):
            documents = scorer.documents(
                pieces[first:last], known=known, progress=bar.update, evict=False
            )
            for one in listed:
                one.take(vectors, documents, first)
            del documents  # or the next wave would be made beside this one
            bar.update(last - bar.n)  # what was held already
            done = [one for one in listed if one.last < last]
            listed = [one for one in listed if one.last >= last]
            for one in done:
                for query, scores in zip(one.queries, one.scores, strict=True):
                    yield query, ranking(query, one, scores.tolist())


def _listed(scorer: Scorer, lists: Sequence[Sequence[str]]) -> tuple[list[str], list[Listed]]:
    """All distinct pieces in the order of need, and the distinct lists of them."""
    askers: dict[tuple[str, ...], list[int]] = {}
    for query, texts in enumerate(lists):
        askers.setdefault(tuple(texts), []).append(query)
    distinct = list(dict.fromkeys(text for texts in askers for text in texts))
    numbers: dict[str, int] = {}
    windows: dict[str, list[Span]] = {}
    numbered: dict[str, list[int]] = {}
    size = scorer.text_encoder.stretch
    for start in range(0, len(distinct), size):
        some = distinct[start : start + size]
        pieces, spans = scorer.pieces(some)
        following = iter(pieces)
        for text, own in zip(some, spans, strict=True):
            windows[text] = own
            numbered[text] = [numbers.setdefault(next(following), len(numbers)) for _ in own]
    listed = []
    for texts, queries in askers.items():
        of_pieces = np.array([number for text in texts for number in numbered[text]])
        listed.append(
            Listed(
                texts=texts,
                queries=queries,
                windows=[windows[text] for text in texts],
                numbers=of_pieces,
                order=of_pieces.argsort(kind="stable"),
                scores=np.full((len(queries), len(of_pieces)), np.nan, dtype=np.float32),
            )
        )
    return list(numbers), listed


def _waves(scorer: Scorer, pieces: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut pieces into runs `(first, last)` whose vectors fit, but one piece at least."""
    encoder = scorer.text_encoder.encoder
    row = encoder.dim * encoder.dtype.itemsize
    room = WAVE_BYTES.get(encoder.device.type, WAVE_BYTES["cpu"])
    first, size = 0, 0
    for number, piece in enumerate(pieces):
        own = row * scorer.text_encoder.most_rows(piece)
        if size and size + own > room:
            yield first, number
            first, size = number, 0
        size += own
    yield first, len(pieces)
