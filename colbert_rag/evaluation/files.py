"""Reads what a judged collection consists of: corpus, queries, judgements, and runs over it.

BEIR's layout and TREC's formats, told apart by what is in a file. One file is one error away from a
clear word: each says file, line, what was found and what was expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from colbert_rag.decoding import decoded
from colbert_rag.errors import ReadingError
from colbert_rag.wording import kind_of
from colbert_rag.written import write_whole

V = TypeVar("V")

Judgements = dict[str, dict[str, int]]
"""Grade by document id, by query id; above 0 is relevant."""

Scores = dict[str, dict[str, float]]
"""Score by document id, by query id; higher is better."""

LONGEST = 64 * 2**20
"""Bytes of a line."""

ID_FIELDS = ("_id", "id", "docid", "doc_id")
QUERY_IDS = ("query_id", "query-id", "qid", *ID_FIELDS)
QUERY_TEXTS = ("text", "query", "question")

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
"""Files of a folder in BEIR's layout."""

QUERY = (
    "Expected an id, a tab and a query on each line, or JSON Lines such as "
    f'{{"_id": "1", "text": "..."}}, or a folder with {QUERIES}'
)
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
    """Text by query id, in the order of the file.

    Args:
        path: JSON Lines of objects with an id (`_id`, `query_id`, `qid`, ...) and a text (`text`,
            `query` or `question`); or an id, a tab and a text on each line, perhaps under a line
            that names them; or a folder in BEIR's layout.

    Raises:
        ReadingError: a line is something else, or an id stands there twice.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path /= QUERIES
    texts: dict[str, str] = {}
    for place, line in _lines(path):
        if line.lstrip().startswith("{"):
            name, text = _json_query(place, line)
        else:
            name, tab, text = line.partition("\t")
            if not tab:
                raise ReadingError(f"{place}: {line[:60]!r} is no query: it holds no tab. {QUERY}")
            if (
                not texts
                and name.strip().lower() in QUERY_IDS
                and text.strip().lower() in QUERY_TEXTS
            ):
                continue
        name, text = name.strip(), text.strip()
        if not name or not text:
            raise ReadingError(f"{place}: the {'text' if name else 'id'} is empty. {QUERY}")
        _put(texts, name, text, place)
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
    """Write a run as TREC's six columns, in the order in which trec_eval reads it.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    from colbert_rag.evaluation.measures import in_order

    tag = "-".join(name.split()) or "run"
    lines = (
        f"{query} Q0 {document} {rank} {found[document]!r} {tag}\n"
        for query, found in scores.items()
        for rank, document in enumerate(in_order(found), start=1)
    )
    write_whole(path, "".join(lines))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, each with its place."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            if len(line) > LONGEST:  # perhaps without an end, as /dev/zero
                raise ReadingError(f"{path}:{number}: the line goes on beyond {LONGEST >> 20} MiB")
            text = decoded(line, str(path), number)
            if text.strip():
                yield f"{path}:{number}", text.rstrip("\r\n")


def _records(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for place, line in _lines(path):
        yield place, _record(place, line, _JSON)


def _record(place: str, line: str, expected: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ReadingError(f"{place}: not JSON: {error}. {expected}") from error
    if not isinstance(record, dict):
        raise ReadingError(f"{place}: found {kind_of(record)}. {expected}")
    return record


_JSON = 'Expected one object on each line, such as {"_id": "1", "text": "..."}'


def _json_query(place: str, line: str) -> tuple[str, str]:
    record = _record(place, line, QUERY)
    name, text = _field(place, record, "id", QUERY_IDS), _field(place, record, "text", QUERY_TEXTS)
    if not isinstance(text, str) or not isinstance(name, str | int):
        raise ReadingError(
            f"{place}: found {type(name).__name__} as id and {type(text).__name__} as text. {QUERY}"
        )
    return str(name), text


def _field(place: str, record: dict[str, object], what: str, usual: Sequence[str]) -> object:
    """The first of the usual fields that is there, however it is capitalised."""
    present = {name.strip().lower(): value for name, value in record.items()}
    found = next((name for name in usual if name in present), None)
    if found is None:
        raise ReadingError(
            f"{place}: no {what}: looked for {', '.join(usual)}; found "
            f"{', '.join(record) or 'no field'}"
        )
    return present[found]


def _id(place: str, record: dict[str, object]) -> str:
    return str(_field(place, record, "id", ID_FIELDS))


def _text(place: str, record: dict[str, object]) -> str:
    text = _field(place, record, "text", ("text",))
    if not isinstance(text, str):
        found = "null" if text is None else kind_of(text)
        raise ReadingError(f"{place}: text is {found}, expected a text")
    return text


def _put(into: dict[str, V], name: str, value: V, place: str) -> None:
    if name in into:
        raise ReadingError(f"{place}: the id {name!r} is there already, further up")
    into[name] = value


def _filled(found: dict[str, V], path: str | Path, kind: str) -> dict[str, V]:
    if not found:
        raise ReadingError(f"{path} is empty: expected at least one {kind}")
    return found
