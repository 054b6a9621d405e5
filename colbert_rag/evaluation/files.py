"""Reads what a judged collection consists of: corpus, queries, judgements, and runs over it.

BEIR's layout and TREC's formats, told apart by what is in a file. One file is one error away from a
clear word: each says file, line, what was found and what was expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from colbert_rag.errors import ReadingError

V = TypeVar("V")

Judgements = dict[str, dict[str, int]]
"""Grade by document id, by query id; above 0 is relevant."""

Scores = dict[str, dict[str, float]]
"""Score by document id, by query id; higher is better."""

ID_FIELDS = ("_id", "id", "docid", "doc_id")
JUDGEMENTS = "QUERY DOCUMENT GRADE (BEIR), or QUERY 0 DOCUMENT GRADE (TREC)"
RUN = "QUERY Q0 DOCUMENT RANK SCORE NAME (TREC)"


def read_corpus(path: str | Path) -> dict[str, str]:
    """Text by document id, the title in front as BEIR joins them.

    Args:
        path: JSON Lines of objects with `_id`, `text` and perhaps `title`.

    Raises:
        ReadingError: a line is something else, or an id stands there twice.
    """
    texts: dict[str, str] = {}
    for place, record in _records(Path(path)):
        title, text = record.get("title") or "", _text(place, record)
        _put(texts, _id(place, record), f"{title} {text}".strip() if title else text, place)
    return _filled(texts, path, "document")


def read_queries(path: str | Path) -> dict[str, str]:
    """Text by query id.

    Args:
        path: JSON Lines of objects with `_id` and `text`; or an id, a tab and a text on each line.

    Raises:
        ReadingError: a line is something else, or an id stands there twice.
    """
    path = Path(path)
    texts: dict[str, str] = {}
    if _starts_with_brace(path):
        for place, record in _records(path):
            _put(texts, _id(place, record), _text(place, record), place)
        return _filled(texts, path, "query")
    for place, line in _lines(path):
        name, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise ReadingError(
                f"{place}: {line[:60]!r} is no query. Expected an id, a tab and a text, or JSON "
                'such as {"_id": "1", "text": "..."}'
            )
        if not texts and (name, text) in (("query-id", "text"), ("_id", "text"), ("id", "text")):
            continue
        _put(texts, name.strip(), text.strip(), place)
    return _filled(texts, path, "query")


def read_judgements(path: str | Path) -> Judgements:
    """Which documents answer a query, and how well.

    Args:
        path: Three columns under a line that names them, as BEIR has it, or TREC's four. A run,
            which has six, is refused.

    Raises:
        ReadingError: a line has other columns, a grade is no whole number, or a pair is judged
            twice, in two ways.
    """
    judged: Judgements = {}
    for place, line in _lines(Path(path)):
        columns = line.split("\t") if line.count("\t") in (2, 3) else line.split()
        if len(columns) == 6:
            raise ReadingError(f"{place}: this is a run, expected judgements: {JUDGEMENTS}")
        if len(columns) not in (3, 4):
            raise ReadingError(
                f"{place}: {len(columns)} columns, expected {JUDGEMENTS}, with tabs or spaces "
                "between them"
            )
        query, document, grade = (columns[0], columns[-2], columns[-1])
        if not judged and grade.strip() in ("score", "grade", "relevance", "rel"):
            continue
        try:
            level = int(grade)
        except ValueError as error:
            raise ReadingError(
                f"{place}: the grade is {grade!r}, expected a whole number. {JUDGEMENTS}"
            ) from error
        known = judged.setdefault(query, {}).setdefault(document, level)
        if known != level:
            raise ReadingError(
                f"{place}: {document!r} is judged {level} for the query {query!r}, and {known} "
                "further up. Keep one of the two"
            )
    return _filled(judged, path, "judgement")


def read_run(path: str | Path) -> Scores:
    """What a system found, with its scores.

    Args:
        path: TREC's six columns. The rank is not read: as in trec_eval, the score decides.

    Raises:
        ReadingError: a line has other columns, a score is no number, or a document stands there
            twice for one query.
    """
    found: Scores = {}
    for place, line in _lines(Path(path)):
        columns = line.split()
        if len(columns) in (3, 4):
            raise ReadingError(f"{place}: this looks like judgements, expected a run: {RUN}")
        if len(columns) != 6:
            raise ReadingError(f"{place}: {len(columns)} columns, expected {RUN}")
        query, _, document, _, score, _ = columns
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ReadingError(f"{place}: the score is {score!r}, expected a number. {RUN}")
        _put(found.setdefault(query, {}), document, value, place)
    return _filled(found, path, "result")


def write_run(path: str | Path, scores: Mapping[str, Mapping[str, float]], name: str) -> None:
    """Write a run as TREC's six columns, in the order in which trec_eval reads it."""
    from colbert_rag.evaluation.measures import in_order

    tag = "-".join(name.split()) or "run"
    with Path(path).open("w", encoding="utf-8") as file:
        for query, found in scores.items():
            for rank, document in enumerate(in_order(found), start=1):
                file.write(f"{query} Q0 {document} {rank} {found[document]!r} {tag}\n")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ReadingError(
                    f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line"
                ) from error
            if text.strip():
                yield f"{path}:{number}", text.rstrip("\r\n")


def _records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for place, line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ReadingError(f"{place}: not JSON: {error}. {_JSON}") from error
        if not isinstance(record, dict):
            raise ReadingError(f"{place}: found a {type(record).__name__}. {_JSON}")
        yield place, record


_JSON = 'Expected one object on each line, such as {"_id": "1", "text": "..."}'


def _starts_with_brace(path: Path) -> bool:
    return next((line for _, line in _lines(path)), "").lstrip().startswith("{")


def _id(place: str, record: dict[str, object]) -> str:
    name = next((name for name in ID_FIELDS if name in record), None)
    if name is None:
        raise ReadingError(
            f"{place}: no id: looked for {', '.join(ID_FIELDS)}; found {', '.join(record)}"
        )
    return str(record[name])


def _text(place: str, record: dict[str, object]) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise ReadingError(f"{place}: no text: looked for text; found {', '.join(record)}")
    return text


def _put(into: dict[str, V], name: str, value: V, place: str) -> None:
    if name in into:
        raise ReadingError(f"{place}: the id {name!r} is there already, further up")
    into[name] = value


def _filled(found: dict[str, V], path: str | Path, kind: str) -> dict[str, V]:
    if not found:
        raise ReadingError(f"{path} is empty: expected at least one {kind}")
    return found
