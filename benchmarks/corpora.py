"""Real text, cut to stated lengths, and the judged collections that quality is measured on."""

from __future__ import annotations

import ast
import functools
import json
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.machine import ROOT

DATA = Path(os.environ.get("COLBERT_RAG_DATA", ROOT.parent / "shared" / "data"))
"""Folder of the collections; set COLBERT_RAG_DATA where they lie elsewhere."""

MEDIAN_TOKENS, LONGEST_TOKENS, SHORTEST_TOKENS = 125, 507, 8
SPREAD = 0.593
"""Of the log-normal: together with the median it gives a mean of 149 tokens."""

ADDED_TOKENS = 3
"""[CLS], the marker and [SEP]: lengths here count them, as the encoder computes them."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A judged collection with its first-stage run.

    Attributes:
        documents: Text by document id, the title in front.
        queries: Text by query id, in the order of the file.
        judgements: Grade by document id, by query id.
        candidates: Document ids, best first, by query id.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]
    candidates: dict[str, list[str]]


def source() -> str:
    """What the texts of the speed benchmarks are."""
    return "XQuAD-en" if (DATA / "xquad-en").is_dir() else "docstrings of Python's library"


def documents(count: int, tokenizer: Tokenizer, *, seed: int = 0) -> list[str]:
    """Distinct texts of log-normal length: mean about 149 tokens, longest 507."""
    lengths = np.random.default_rng(seed).lognormal(np.log(MEDIAN_TOKENS), SPREAD, count)
    whole = lengths.round().astype(int).clip(SHORTEST_TOKENS, LONGEST_TOKENS)
    return cut(whole.tolist(), tokenizer)


def cut(lengths: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Consecutive, distinct pieces of the source of these many tokens, cut between words.

    A piece may miss its length by part of a word. The source is read again, from another start,
    when it is used up.
    """
    text = " ".join(_paragraphs())
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans = encoding.offsets
    starts = np.flatnonzero(np.diff(np.array(encoding.word_ids), prepend=-1))
    pieces: dict[str, None] = {}
    place, rounds = 0, 0
    for length in lengths:
        before = len(pieces)
        while len(pieces) == before:
            wanted = int(starts[place]) + max(length - ADDED_TOKENS, 1)
            if wanted >= starts[-1]:
                rounds += 1
                place = rounds
                continue
            after = max(_nearest(starts, wanted), place + 1)
            piece = text[spans[starts[place]][0] : spans[starts[after] - 1][1]]
            pieces.setdefault(piece)
            place = after
    return list(pieces)


def _nearest(starts: NDArray[np.int64], wanted: int) -> int:
    """Index of the word that starts nearest to a token, before it where two are as near."""
    after = int(np.searchsorted(starts, wanted))
    return after - int(2 * wanted <= starts[after - 1] + starts[after])


def questions(count: int) -> list[str]:
    """Real questions, or first lines of docstrings."""
    path = DATA / "xquad-en" / "queries.jsonl"
    if path.exists():
        found = [record["text"] for record in _records(path)]
    else:
        found = [paragraph.splitlines()[0] for paragraph in _paragraphs()]
    return found[:count]


def collection(name: str) -> Collection:
    """Read one collection in BEIR layout."""
    folder = DATA / name
    judgements: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        judgements.setdefault(query, {})[document] = int(grade)
    candidates: dict[str, list[str]] = {}
    run = (folder / "bm25.top100.trec").read_text(encoding="utf-8").splitlines()
    for query, _, document, rank, *_ in sorted(map(str.split, run), key=lambda line: int(line[3])):
        if int(rank) <= 100:
            candidates.setdefault(query, []).append(document)
    return Collection(
        {
            record["_id"]: f"{record['title']} {record['text']}".strip()
            for record in _records(folder / "corpus.jsonl")
        },
        {record["_id"]: record["text"] for record in _records(folder / "queries.jsonl")},
        judgements,
        candidates,
    )


def _records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@functools.cache
def _paragraphs() -> tuple[str, ...]:
    path = DATA / "xquad-en" / "corpus.jsonl"
    if path.exists():
        return tuple(record["text"] for record in _records(path))
    return docstrings()


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Docstrings of the modules of Python's library: real English that every machine has."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
        found += [text for node in nodes if (text := ast.get_docstring(node))]
    return tuple(dict.fromkeys(found))
