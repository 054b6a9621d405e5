"""Many queries from a file, and candidates from the run of another system."""

from __future__ import annotations

import errno
import json
from pathlib import Path

from colbert_rag.cli.reading.files import numbered_lines
from colbert_rag.cli.reading.records import ID_FIELDS, find_field
from colbert_rag.errors import ReadingError

QUERY_FIELDS = ("text", "query", "question")
QUERY_IDS = ("query_id", "query-id", "qid", *ID_FIELDS)

QUERIES, CORPUS = "queries.jsonl", "corpus.jsonl"
"""Files of a folder in the layout of the BEIR benchmarks."""

EXPECTED = (
    "Expected an id, a tab and a query on each line, or JSON Lines with an id and a text, or a "
    f"folder with {QUERIES} and {CORPUS}"
)


def read_queries(path: str) -> dict[str, str]:
    """Text by id, in the order of the file.

    Args:
        path: JSON Lines, lines of an id, a tab and a text, or a folder in BEIR's layout.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: a line holds no query, or an id stands there twice.
    """
    if Path(path).is_dir():
        path = str(Path(path) / QUERIES)
    queries: dict[str, str] = {}
    for number, line in numbered_lines(_existing(path)):
        place = f"{path}:{number}"
        if line.lstrip().startswith("{"):
            name, text = _from_json(place, line)
        else:
            name, tab, text = line.partition("\t")
            name, text = name.strip(), text.strip()
            if not tab:
                raise ReadingError(f"{place}: {line[:60]!r} holds no tab. {EXPECTED}")
            if not queries and name.lower() in QUERY_IDS and text.lower() in QUERY_FIELDS:
                continue  # a line that names the columns
        if not name or not text.strip():
            raise ReadingError(f"{place}: the {'text' if name else 'id'} is empty. {EXPECTED}")
        if name in queries:
            raise ReadingError(f"{place}: the id {name!r} stands there twice: make ids unique")
        queries[name] = text
    if not queries:
        raise ReadingError(f"{path} holds no query. {EXPECTED}")
    return queries


def corpus_of(path: str) -> str | None:
    """The documents of a folder in BEIR's layout; None for a file.

    Raises:
        FileNotFoundError: the folder has none.
    """
    return _existing(str(Path(path) / CORPUS)) if Path(path).is_dir() else None


def _from_json(place: str, line: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ReadingError(f"{place}: not JSON: {error}. {EXPECTED}") from error
    found = {}
    for what, usual in (("id", QUERY_IDS), ("text", QUERY_FIELDS)):
        field = find_field(record, usual)
        if field is None:
            raise ReadingError(
                f"{place}: no {what}: looked for {', '.join(usual)}; found {', '.join(record)}"
            )
        found[what] = record[field]
    name, text = found["id"], found["text"]
    if not isinstance(text, str) or not isinstance(name, str | int):
        raise ReadingError(
            f"{place}: found {type(name).__name__} as id and {type(text).__name__} as text. "
            f"{EXPECTED}"
        )
    return str(name), text


def read_run(path: str, depth: int) -> dict[str, list[str]]:
    """Ids of the documents that a system found for each query, best first as trec_eval orders them.

    Args:
        path: TREC's six columns.
        depth: How many of each query; 0 for all.

    Raises:
        FileNotFoundError: there is no such file.
        ReadingError: a line is something else, or names a document twice.
    """
    # Imported here because it brings numpy, and `--help` needs none of it.
    from colbert_rag.evaluation import files
    from colbert_rag.evaluation.measures import in_order

    found = files.read_run(_existing(path))
    return {query: in_order(scores)[: depth or None] for query, scores in found.items()}


def _existing(path: str) -> str:
    if not Path(path).exists():
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", path)
    return path
