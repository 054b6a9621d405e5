"""Plans that score: queries against texts, in requests that a server takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colbert_rag.errors import ServerAnswerError
from colbert_rag.progress import Bar
from colbert_rag.remote.answers import VERSIONS, Found, Scores, read_scores, read_several
from colbert_rag.remote.exchange import Plan
from colbert_rag.remote.parts import MOST_BYTES, MOST_TEXTS, ask_in_parts, bytes_of
from colbert_rag.remote.replies import GivenUpError, Request, TooLargeError
from colbert_rag.remote.wire import RERANK

PATH = RERANK[1]

MOST_QUERIES = 64
"""Queries of a request at most."""

MOST_EXPLAINED = 100
"""Texts of a request at most whose places are all explained: that takes several kilobytes each."""


def score_one(
    query: str, texts: Sequence[str], *, where: str, top_k: int | None, explain: bool, bar: Bar
) -> Plan[Scores]:
    """Score texts for a query.

    Args:
        query: The query.
        texts: One at least.
        where: The server, for messages.
        top_k: Return the best ones alone; None for all.
        explain: Return explanations, too.
        bar: Told how many texts are scored.

    Raises:
        ServerAnswerError: the server gave something else than scores.
    """
    wanted = {} if top_k is None else {"top_n": top_k}

    def request(first: int, last: int) -> Request:
        return _request({"query": query, "documents": texts[first:last], **wanted}, explain)

    few = top_k is not None and top_k <= MOST_EXPLAINED
    most = MOST_TEXTS if few or not explain else MOST_EXPLAINED
    answers = yield from ask_in_parts(bytes_of(texts), request, bar, most=most)
    parts = []
    for (first, last), answer in answers:
        count = last - first
        expected = min(wanted.get("top_n", count), count)
        scores = read_scores(answer, where, texts=count, expected=expected, explain=explain)
        parts.append((first, scores))
    return _joined(parts, where)


def score_several(
    queries: Sequence[str],
    lists: Sequence[Sequence[str]],
    *,
    where: str,
    top_k: int | None,
    bar: Bar,
) -> Plan[list[Scores]]:
    """Score texts for several queries, as many at a time as the bounds of a request allow.

    Args:
        queries: The queries.
        lists: The texts of each, one at least.
        where: The server, for messages.
        top_k: Return the best ones alone; None for all.
        bar: Told how many texts are scored.

    Raises:
        ServerAnswerError: the server gave something else than scores.
    """
    wanted = {} if top_k is None else {"top_n": top_k}
    found: list[Scores] = []
    waiting = _groups(lists)[::-1]
    while waiting:
        first, last = waiting.pop()
        if last - first == 1:
            alone = yield from score_one(
                queries[first], lists[first], where=where, top_k=top_k, explain=False, bar=bar
            )
            found.append(alone)
            continue
        own = lists[first:last]
        documents = own[0] if all(texts == own[0] for texts in own) else own
        try:
            answer = yield _request(
                {"queries": queries[first:last], "documents": documents, **wanted}, False
            )
        except (TooLargeError, GivenUpError):
            middle = (first + last) // 2
            waiting += [(middle, last), (first, middle)]
            continue
        several = read_several(answer, where, last - first)
        for one, texts in zip(several, own, strict=True):
            expected = min(wanted.get("top_n", len(texts)), len(texts))
            found.append(read_scores(one, where, texts=len(texts), expected=expected))
            bar.update(len(texts))
    return found


def _groups(lists: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Queries that go into one request, within all bounds: with the same texts, or each its own."""
    groups = []
    first, size, count = 0, 0, 0
    shared: bool | None = None  # not known of the first
    for place, texts in enumerate(lists):
        same = place > first and texts == lists[first]
        own, new = (0, 0) if same else (sum(bytes_of(texts)), len(texts))
        full = size + own > MOST_BYTES or count + new > MOST_TEXTS or place - first == MOST_QUERIES
        if place > first and (full or same is not (same if shared is None else shared)):
            groups.append((first, place))
            first, size, count, shared = place, sum(bytes_of(texts)), len(texts), None
        else:
            shared = None if place == first else same
            size, count = size + own, count + new
    return [*groups, (first, len(lists))]


def _request(asked: Mapping[str, Any], explain: bool) -> Request:
    # The sum, since the mean is had from it, and not the other way round to the last digit.
    body = {**asked, "score": "sum", "return_documents": False}
    return Request("POST", PATH, {**body, "explain": True} if explain else body)


def _joined(parts: Sequence[tuple[int, Scores]], where: str) -> Scores:
    """The scores of all parts, by the places in the whole."""
    rows = {part.query_rows for _, part in parts}
    if len(rows) != 1:
        raise ServerAnswerError(
            f"{where} counts {' and '.join(map(str, sorted(rows)))} rows in one query, so its "
            f"model has changed meanwhile: ask again. {VERSIONS}"
        )
    found = [
        Found(first + one.index, one.score, one.explanation)
        for first, part in parts
        for one in part.found
    ]
    return Scores(rows.pop(), found)
