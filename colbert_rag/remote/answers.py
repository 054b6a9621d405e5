"""Answers of a server as scores, rankings, vectors and hits; none is believed unseen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from colbert_rag.errors import ServerAnswerError
from colbert_rag.index.documents import Document, Hit
from colbert_rag.remote.wire import unpack_rows

if TYPE_CHECKING:
    from colbert_rag.embeddings import TokenEmbeddings

Value = TypeVar("Value")

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
    rows = member(answer, "query_rows", int, where)
    found = [
        _found(result, where, texts, explain) for result in member(answer, "results", list, where)
    ]
    distinct = len({one.index for one in found})
    if rows < 1 or distinct != len(found) or len(found) != expected:
        raise ServerAnswerError(
            f"{where} gives {len(found)} results for {distinct} texts and a query of {rows} rows, "
            f"expected {expected} of the {texts} texts that were sent. {VERSIONS}"
        )
    return Scores(rows, found)


def _found(result: object, where: str, texts: int, explain: bool) -> Found:
    index = member(result, "index", int, where)
    score = _number(result, "relevance_score", where)
    explanation = member(result, "explanation", dict, where) if explain else None
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
    rows = member(answer, "query_rows", int, where)
    hits: list[Hit] = []
    for result in results:
        score = _number(result, "score", where)
        if not math.isfinite(score) or (hits and score > hits[-1].score) or rows < 1:
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
    # JSON writes 1.0 as it likes.
    return float(value) if type(value) is int else member(answer, name, float, where)


_CALLED = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def _short(value: object) -> str:
    return "nothing" if value is None else repr(value)[:80]
