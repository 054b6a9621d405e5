"""Answers of a server as scores, rankings, vectors and hits; none is believed unseen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from colbert_rag.errors import ServerAnswerError
from colbert_rag.index.documents import Document, Hit
from colbert_rag.remote.wire import unpack_rows

if TYPE_CHECKING:
    from colbert_rag.embeddings import TokenEmbeddings

Value = TypeVar("Value")

_MOST = 2**63 - 1
"""Nothing that is counted is more; a number that Python holds may have any size."""

VERSIONS = "See whether client and server are of the same version of colbert_rag"


@dataclass(frozen=True, slots=True)
class Found:
    """The score of one text.

    Attributes:
        index: Its position in what was asked about.
        score: The sum of its similarities.
        explanation: What `Explanation.to_dict` gave there, if asked for.
    """

    index: int
    score: float
    explanation: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one query.

    Attributes:
        query_rows: How many similarities each sums.
        found: In the order of the server.
    """

    query_rows: int
    found: Sequence[Found]


def member(answer: object, name: str, kind: type[Value], where: str) -> Value:
    """A member of an answer.

    Raises:
        ServerAnswerError: it is not there, or of another type.
    """
    value = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ServerAnswerError(
            f"the answer of {where} has {_short(value)} as {name!r}, expected "
            f"{_CALLED[kind]}. {VERSIONS}, and the address that of `colbert-rag serve`"
        )
    return value


def count(answer: object, name: str, where: str, *, least: int = 0) -> int:
    """A member that counts something.

    Raises:
        ServerAnswerError: it is not there, no whole number, or none that counts anything.
    """
    value = member(answer, name, int, where)
    if not least <= value <= _MOST:
        raise ServerAnswerError(
            f"the answer of {where} has {_short(value)} as {name!r}, expected a number from "
            f"{least} on. {VERSIONS}"
        )
    return value


def read_scores(
    answer: object, where: str, *, texts: int, expected: int, explain: bool = False
) -> Scores:
    """The scores of one query.

    Args:
        answer: With `query_rows` and `results`.
        where: The server, for messages.
        texts: How many were sent.
        expected: How many of them are to come back.
        explain: Whether with an explanation each.

    Raises:
        ServerAnswerError: a text is missing or there twice, or a score is not a finite number.
    """
    rows = count(answer, "query_rows", where, least=1)
    found = [
        _found(result, where, texts, explain) for result in member(answer, "results", list, where)
    ]
    distinct = len({one.index for one in found})
    if distinct != len(found) or len(found) != expected:
        raise ServerAnswerError(
            f"{where} gives {len(found)} results for {distinct} texts, expected {expected} of the "
            f"{texts} texts that were sent. {VERSIONS}"
        )
    return Scores(rows, found)


def _found(result: object, where: str, texts: int, explain: bool) -> Found:
    index = member(result, "index", int, where)
    score = _number(result, "relevance_score", where)
    explanation = read_explanation(result, where) if explain else None
    if not 0 <= index < texts:
        raise ServerAnswerError(
            f"{where} gives a score to text {index} of the {texts} that were sent. {VERSIONS}"
        )
    if not math.isfinite(score):
        raise ServerAnswerError(
            f"{where} gives text {index} the score {score}, expected a finite number: nothing is "
            f"ordered by it. {VERSIONS}"
        )
    return Found(index, score, explanation)


def read_explanation(result: object, where: str) -> Mapping[str, Any]:
    """What `Explanation.to_dict` gave there, as far as anything here relies on it.

    Raises:
        ServerAnswerError: it is something else.
    """
    explanation = member(result, "explanation", dict, where)
    if not math.isfinite(_number(explanation, "score", where)):
        raise ServerAnswerError(f"{where} explains a score that is not finite. {VERSIONS}")
    for match in member(explanation, "matches", list, where):
        member(member(match, "query", dict, where), "token", str, where)
        if match.get("document") is not None:  # nothing matched
            member(member(match, "document", dict, where), "token", str, where)
        if match.get("similarity") is not None:
            _number(match, "similarity", where)
    return explanation


def read_several(answer: Mapping[str, Any], where: str, count: int) -> list[Any]:
    """The answers to several queries.

    Raises:
        ServerAnswerError: there are more or fewer of them.
    """
    several: list[Any] = member(answer, "data", list, where)
    if len(several) != count:
        raise ServerAnswerError(f"{where} answers {len(several)} of {count} queries. {VERSIONS}")
    return several


def read_vectors(answer: Mapping[str, Any], where: str, *, count: int, dim: int) -> TokenEmbeddings:
    """The vectors of some texts, float32, on the CPU; this needs torch.

    Raises:
        ServerAnswerError: a text is missing or there twice, or its vectors are not vectors.
    """
    import torch

    from colbert_rag.embeddings import TokenEmbeddings

    rows: dict[int, torch.Tensor] = {}
    data = member(answer, "data", list, where)
    for item in data:
        packed = member(item, "data", str, where)
        try:
            values = unpack_rows(packed, dim)
        except ValueError as error:
            raise ServerAnswerError(f"{where}: {error}. {VERSIONS}") from error
        if not np.isfinite(values).all():
            raise ServerAnswerError(
                f"{where} gives vectors with numbers that are not finite. {VERSIONS}"
            )
        rows[member(item, "index", int, where)] = torch.from_numpy(values)
    if sorted(rows) != list(range(count)) or len(data) != count:
        raise ServerAnswerError(
            f"{where} gives vectors of {len(data)} texts, expected those of {count}. {VERSIONS}"
        )
    return TokenEmbeddings.from_list([rows[place] for place in range(count)], dim=dim)


def read_hits(answer: object, where: str) -> list[Hit]:
    """What a search found, best first.

    Raises:
        ServerAnswerError: a result is no document, a score no finite number, or the order wrong.
    """
    results = member(answer, "results", list, where)
    if not results:  # without one, the query may not have been encoded
        return []
    rows = count(answer, "query_rows", where, least=1)
    hits: list[Hit] = []
    for result in results:
        score = _number(result, "score", where)
        if not math.isfinite(score) or (hits and score > hits[-1].score):
            raise ServerAnswerError(
                f"{where} gives a hit the score {score}, expected a finite number, best first. "
                f"{VERSIONS}"
            )
        hits.append(Hit(read_document(result, where), score, rows))
    return hits


def read_document(result: object, where: str) -> Document:
    """A document.

    Raises:
        ServerAnswerError: it is none.
    """
    return Document(
        member(result, "id", str, where),
        member(result, "text", str, where),
        member(result, "metadata", dict, where),
    )


def _number(answer: object, name: str, where: str) -> float:
    value = answer.get(name) if isinstance(answer, Mapping) else None
    if type(value) is not int:
        return member(answer, name, float, where)
    try:  # JSON writes 1.0 as it likes
        return float(value)
    except OverflowError:
        return math.inf


_CALLED = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def _short(value: object) -> str:
    return "nothing" if value is None else repr(value)[:80]
