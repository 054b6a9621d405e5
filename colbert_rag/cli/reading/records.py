"""Records: JSON, JSON Lines and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from colbert_rag.cli.reading.document import ReadingOptions, SourceDocument
from colbert_rag.errors import ReadingError
from colbert_rag.wording import kind_of

TEXT_FIELDS = ("text", "content", "contents", "page_content", "body", "passage", "document")
ID_FIELDS = ("id", "_id", "doc_id", "docid", "pid")
TITLE_FIELDS = ("title",)

DELIMITERS = ",;\t"

ONE_OBJECT = (
    "Expected one JSON object on each line. For a file that holds one list: jq -c '.[]' FILE; "
    "for prose: --format text"
)

ONE_LIST = (
    "Expected one list of JSON objects or strings. For one object on each line: --format jsonl; "
    "for prose: --format text"
)


def read_jsonl(
    source: str, lines: Iterator[str], options: ReadingOptions
) -> Iterator[SourceDocument]:
    """One JSON object on each line, or one JSON string, which is then the text.

    Raises:
        ReadingError: a line is neither, or has no text.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ReadingError(f"{source}:{number}: {_flaw(error)}. {ONE_OBJECT}") from error
        if not isinstance(record, str | dict):
            raise ReadingError(f"{source}:{number}: found {kind_of(record)}. {ONE_OBJECT}")
        yield _from_json(source, number, record, options)


def read_json(
    source: str, lines: Iterator[str], options: ReadingOptions
) -> Iterator[SourceDocument]:
    """One list of JSON objects or strings; documents are numbered by their places in it.

    Raises:
        ReadingError: the file holds something else, or an object has no text.
    """
    try:
        records = json.loads("".join(lines) or "[]", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ReadingError(f"{source}{line}: {_flaw(error)}. {ONE_LIST}") from error
    if not isinstance(records, list):
        raise ReadingError(f"{source}: found {kind_of(records)}. {ONE_LIST}")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, str | dict):
            raise ReadingError(f"{source}:{number}: found {kind_of(record)}. {ONE_LIST}")
        yield _from_json(source, number, record, options)


def read_csv(
    source: str, lines: Iterator[str], options: ReadingOptions
) -> Iterator[SourceDocument]:
    """Rows under a first line that names the columns, with commas, semicolons or tabs between them.

    Raises:
        ReadingError: a row does not fit the first line, or there is no column of texts.
    """
    first, lines = first_line(lines)
    # Strict, because a quote that is never closed would swallow the rest of the file.
    rows = csv.reader(lines, delimiter=delimiter_of(first), strict=True)
    start = 1
    try:
        columns = next((row for row in rows if row), [])
        start = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(columns):
                raise ReadingError(
                    f"{source}:{start}: {len(row)} columns, expected {len(columns)} as in the "
                    "first line. A cell that holds the delimiter needs quotes"
                )
            if row:
                record = dict(zip(columns, row, strict=True))
                yield _from_record(source, start, record, options)
            start = rows.line_num + 1
    except csv.Error as error:
        raise ReadingError(f"{source}:{start}: not CSV: {error}. Is a quote missing?") from error


def _refuse_constant(name: str) -> object:
    # Python alone reads and writes these; what printed the record would not be JSON either.
    raise ValueError(f"{name} is no JSON number, write null instead")


def _flaw(error: Exception) -> str:
    # The error's own text would say "line 1", since it saw no other.
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return f"not JSON: {error}"


def first_line(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first line that is not blank, and all the lines from the start."""
    seen: list[str] = []
    for line in lines:
        seen.append(line)
        if line.strip():
            break
    return "".join(seen[-1:]).strip(), chain(seen, lines)


def delimiter_of(header: str) -> str:
    """What stands between columns: the candidate that the first line holds most often."""
    return max(DELIMITERS, key=header.count)


def _from_json(
    source: str, number: int, record: str | dict[str, object], options: ReadingOptions
) -> SourceDocument:
    if isinstance(record, str):
        return SourceDocument(source, number, record)
    return _from_record(source, number, record, options)


def _from_record(
    source: str, line: int, record: Mapping[str, object], options: ReadingOptions
) -> SourceDocument:
    def name_of(wanted: str | None, usual: Sequence[str]) -> str | None:
        if wanted is None:
            return find_field(record, usual)
        if wanted and wanted not in record:
            raise ReadingError(
                f"{source}:{line}: no field {wanted!r}. Found: {', '.join(map(str, record))}"
            )
        return wanted or None

    text_name = name_of(options.text_field, TEXT_FIELDS)
    if text_name is None:
        raise ReadingError(
            f"{source}:{line}: no text: looked for {', '.join(TEXT_FIELDS)}; found "
            f"{', '.join(map(str, record)) or 'no field'}. Name the field with --field"
        )
    text = record[text_name]
    if not isinstance(text, str):
        found = "null" if text is None else kind_of(text)
        raise ReadingError(f"{source}:{line}: {text_name} is {found}, expected a text")
    title_name = name_of(options.title_field, TITLE_FIELDS)
    id_name = name_of(options.id_field, ID_FIELDS)
    title = "" if title_name is None else record[title_name]
    identity = None if id_name is None else record[id_name]
    rest = {k: v for k, v in record.items() if k not in (text_name, title_name, id_name)}
    return SourceDocument(
        source,
        line,
        text,
        title if isinstance(title, str) else "",
        None if identity is None else str(identity),
        rest,
    )


def find_field(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """The first of the usual names that is there, however it is capitalised."""
    present = {name.strip().lower(): name for name in names}
    return next((present[name] for name in usual if name in present), None)
