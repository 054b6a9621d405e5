"""BM25: which documents share words with a query, and how rare those are."""

from __future__ import annotations

import re
from collections.abc import Mapping

from colbert_rag.errors import MissingExtraError
from colbert_rag.evaluation.files import Scores
from colbert_rag.evaluation.measures import in_order

PACKAGE = "bm25s"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""

# Vowel signs are no letters to Python, and would cut Hindi and its neighbours into syllables.
SIGNS = "\u0300-\u036f\u0900-\u0dff"
RUNS = re.compile(rf"([{UNSPACED}]+)|((?:(?![{UNSPACED}])[\w{SIGNS}])+)")


def bm25_scores(
    queries: Mapping[str, str], documents: Mapping[str, str], depth: int | None
) -> Scores:
    """The best documents of each query, by the library bm25s as Lucene computes it.

    Args:
        queries: Text by id.
        documents: Text by id.
        depth: How many documents a query has at most; None for all that share a word with it.

    Returns:
        A mapping for each query, which is empty where no document shares a word with it.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError(PACKAGE, extra="evaluate") from error
    names = list(documents)
    spelled = [words(text) for text in documents.values()]
    if not any(spelled):  # which bm25s cannot index
        return {query: {} for query in queries}
    engine = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    engine.index(spelled, show_progress=False)
    scores: Scores = {}
    for query, text in queries.items():
        asked = words(text)
        found = engine.get_scores(asked) if asked else []
        # What shares no word with the query scores 0, and was not found.
        best = {names[place]: float(score) for place, score in enumerate(found) if score > 0}
        scores[query] = {name: best[name] for name in in_order(best)[:depth]}
    return scores


def words(text: str) -> list[str]:
    """Runs of letters and digits; of scripts without spaces, each two neighbours."""
    found: list[str] = []
    for unspaced, word in RUNS.findall(text.lower()):
        if word or len(unspaced) == 1:
            found.append(word or unspaced)
        else:
            found += [unspaced[place : place + 2] for place in range(len(unspaced) - 1)]
    return found
