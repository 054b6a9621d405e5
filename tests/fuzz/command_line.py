"""Whole runs of the command line: any files, any words, any standard input."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

File = tuple[str, str, object]
"""Name, kind (a key of `KINDS`), and what its kind needs."""

MODEL = "MODEL"
"""The word that stands for the folder of the tiny checkpoint, whose path differs each time."""

CONTROLS = "\x00\x07\x08\t\n\r\x1b[2J\x7f\x85\x9b31m\u2028\u202e\u2066"
OBEYED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)  # ECMA-48, and what Unicode's bidirectional algorithm turns


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        words: What is typed.
        files: What the current folder holds.
        stdin: What is piped in.
        encoding: That of the output.
    """

    words: tuple[str, ...]
    files: tuple[File, ...] = ()
    stdin: bytes = b""
    encoding: str = "utf-8"


def prepare() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    original()
    model = ("-m", MODEL, "--device", "cpu")
    for words in (
        ("rerank", "q", "a.txt", *model),
        ("rerank", "--queries", "q.tsv", "a.txt", "--bm25", "--to", "r.trec", *model),
        ("evaluate", "beir", "--bm25", *model),
        ("tune", "index", "--device", "cpu"),
    ):
        files = (("a.txt", "text", "mars"), ("q.tsv", "text", "1\tmars"), ("index", "index", ()))
        beir = tuple((name, "text", content) for name, content in SOUND.items())
        with tempfile.TemporaryDirectory() as folder:
            run(Case(words, (*files, *beir)), Path(folder))


@functools.cache
def checkpoint() -> Path:
    """A tiny checkpoint, for as long as the process lives."""
    import atexit

    from tests.helpers.tiny import build
    from tests.helpers.variants import VARIANTS

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(VARIANTS["stanford-bert"], folder / "model")


@functools.cache
def original() -> bytes:
    """The file of an index."""
    from colbert_rag import ColBERT
    from colbert_rag.index import Document, LocalIndex

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index")
        colbert = ColBERT.from_pretrained(checkpoint(), device="cpu", dtype="float32")
        with LocalIndex(path, colbert) as index:
            texts = ("mars is red", f"ve{CONTROLS}nus", "", "x " * 30)
            index.add(
                Document(f"{n}{CONTROLS}", text, {"n": n, f"k{CONTROLS}": text})
                for n, text in enumerate(texts)
            )
        return path.read_bytes()


# Drawing: values

STRINGS: Sequence[str] = (
    "",
    " ",
    "mars",
    "The red planet.\n\nVenus.",
    "word " * 500,
    "x" * 20_000,
    CONTROLS,
    "e\u0301\u200d\U0001f468\U0001f3fd",
    "\ud800",
    "a\udcffb",
    "火" * 300,
    "[MASK] [SEP] [unused0]",
    '{"a": 1}',
    "-",
    "--",
    "%s {0} %(prog)s",
    "../../etc/passwd",
    "\u0661",
)
NUMBERS: Sequence[str] = (
    "0",
    "-1",
    "1",
    "2",
    "7.5",
    "1e400",
    "-1e400",
    "nan",
    "NaN",
    "Infinity",
    "1e-400",
    "9" * 400,
    "9" * 5000,
    str(2**31),
    str(2**63),
    str(2**64),
    "0x10",
    "1_000",
    "\u0661",
)
TEXT_KEYS = ("text", "Text", "content", "body", "id", "_id", "title", "source", "line", "span")


def _json(rng: random.Random, depth: int = 3) -> str:
    """JSON, more or less."""
    kind = rng.randrange(12)
    if kind < 5 or depth == 0:
        return json.dumps(rng.choice(STRINGS), ensure_ascii=rng.random() < 0.5)
    if kind < 8:
        return rng.choice((*NUMBERS, "true", "null", '"\\u0000"', '"\\ud800"'))
    if kind < 10:
        return f"[{', '.join(_json(rng, depth - 1) for _ in range(rng.randrange(4)))}]"
    return _record(rng, depth - 1)


def _record(rng: random.Random, depth: int = 3) -> str:
    fields = [] if rng.random() < 0.1 else [f'"text": {json.dumps(rng.choice(STRINGS))}']
    for _ in range(rng.choice((0, 1, 1, 3))):
        key = json.dumps(rng.choice((*TEXT_KEYS, *STRINGS)))
        fields.append(f"{key}: {_json(rng, depth)}")
    rng.shuffle(fields)
    return f"{{{', '.join(fields)}}}"


def _nested(rng: random.Random) -> str:
    depth = rng.choice((10, 150, 300, 480, 900, 3000, 200_000))
    inner = rng.choice(("[", '{"a":'))
    closed = "1" + {"[": "]", '{"a":': "}"}[inner] * depth if rng.random() < 0.9 else ""
    return f'{{"text": "mars", "deep": {inner * depth}{closed}}}'


def _lines(rng: random.Random) -> str:
    end = rng.choice(("\n", "\n", "\r\n", "\n\n", "\u2028"))
    return end.join(
        _nested(rng) if rng.random() < 0.1 else _record(rng) if rng.random() < 0.9 else _json(rng)
        for _ in range(rng.choice((0, 1, 2, 5)))
    )


def _list(rng: random.Random) -> str:
    return f"[{', '.join(_record(rng) for _ in range(rng.randrange(4)))}]"


def _table(rng: random.Random) -> str:
    by = rng.choice(",;\t")
    columns = [rng.choice((*TEXT_KEYS, "text", "text")) for _ in range(rng.randrange(1, 4))]
    rows = [[rng.choice((*STRINGS, *NUMBERS)) for _ in columns] for _ in range(rng.randrange(4))]
    quote = rng.choice(('"', '"', ""))
    body = (by.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    return "\n".join((by.join(columns), *body))


def _prose(rng: random.Random) -> str:
    marks = ("# ", "## ", "```", "---", "===", "- ", "", "", "\ufeff", "> ", "\x0c")
    return "\n".join(
        rng.choice(marks) + rng.choice(("", rng.choice(STRINGS))) for _ in range(rng.randrange(9))
    )


def _bytes(rng: random.Random) -> bytes:
    text = rng.choice(STRINGS).encode("utf-16" if rng.random() < 0.5 else "latin-1", "replace")
    return rng.choice((text, rng.randbytes(300), b"\x1f\x8b\x08" + rng.randbytes(99), b""))


def _queries(rng: random.Random) -> str:
    """Ids, tabs and texts, more or less; or JSON Lines."""
    if rng.random() < 0.4:
        return _lines(rng)
    texts = (*STRINGS, "mars", "what is red")
    return _rows(rng, (NAMES, texts), rng.choice(("\t", "\t", "\t", " ", ",")))


def _run(rng: random.Random) -> str:
    """Six columns, more or less."""
    columns = (NAMES, ("Q0", "0"), NAMES, NUMBERS, (*NUMBERS, "0.5", "1"), ("x", *STRINGS))
    return _rows(rng, columns[: rng.choice((6, 6, 6, 5, 4))], rng.choice((" ", " ", "\t", "  ")))


def _judgements(rng: random.Random) -> str:
    """Four columns or three, more or less."""
    columns = (NAMES, ("0",), NAMES, (*NUMBERS, "1", "1"))
    head = rng.choice(("", "query-id\tcorpus-id\tscore\n"))
    return head + _rows(rng, columns if rng.random() < 0.5 else columns[::2] + columns[-1:], "\t")


def _rows(rng: random.Random, columns: Sequence[Sequence[str]], by: str) -> str:
    end = rng.choice(("\n", "\n", "\r\n"))
    rows = ([rng.choice(column) for column in columns] for _ in range(rng.choice((0, 1, 3, 9))))
    return end.join(by.join(row) for row in rows)


NAMES = ("1", "2", "q1", "d1", "", "../x", "a b", "\x1b[2J", "\udcff", "nan", "9" * 400)
SOUND = {
    "beir/corpus.jsonl": '{"_id": "d1", "text": "mars is red"}\n{"_id": "d2", "text": "venus"}',
    "beir/queries.jsonl": '{"_id": "q1", "text": "red planet"}\n{"_id": "q2", "text": "venus"}',
    "beir/qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n",
}
"""A collection as BEIR has it."""

PARTS: dict[str, Callable[[random.Random], str]] = {
    "beir/corpus.jsonl": lambda rng: rng.choice((_lines, _list))(rng),
    "beir/queries.jsonl": _queries,
    "beir/qrels/test.tsv": _judgements,
    "q.tsv": _queries,
    "q.jsonl": _lines,
    "r.trec": _run,
    "judged.tsv": _judgements,
}


def _collection(rng: random.Random) -> tuple[File, ...]:
    """A collection with queries, a run and judgements beside it, of which some are odd."""
    found = []
    for name, make in PARTS.items():
        content: str | bytes = SOUND.get(name, "q1\tred planet")
        if name not in SOUND or rng.random() < 0.4:
            content = make(rng) if rng.random() < 0.9 else _bytes(rng)
        found.append((name, "text" if isinstance(content, str) else "bytes", content))
    return tuple(found)


CONTENTS: Sequence[Callable[[random.Random], str | bytes]] = (
    _lines,
    _lines,
    _list,
    _table,
    _prose,
    _prose,
    _bytes,
)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md", ".ndjson", ".TXT", "", ".gz", ".pdf")
STEMS = ("a", "b", "sub/c", ".hidden", "re\x1b[31md", "two\nlines", "\udcff", "ü", "-d", "n" * 240)


def _file(rng: random.Random) -> File:
    name = rng.choice(STEMS) + rng.choice(SUFFIXES)
    special = rng.random()
    if special < 0.03:
        return (
            name,
            "link",
            rng.choice(("/dev/zero", "/etc/passwd", name, "..", "nowhere", "a.txt")),
        )
    if special < 0.05:
        return name, rng.choice(("pipe", "folder")), None
    if special < 0.12:
        return rng.choice(("index", "x.sqlite", name)), "index", _flips(rng)
    content = rng.choice(CONTENTS)(rng)
    return name, "text" if isinstance(content, str) else "bytes", content


def _flips(rng: random.Random) -> tuple[tuple[float, int], ...]:
    count = rng.choice((0, 0, 0, 1, 5))
    return tuple((rng.random(), rng.randrange(256)) for _ in range(count))


# Drawing: words

QUERIES = (*STRINGS, "mars", "which planet is red", "a.txt", "index")
PLACES = (
    "~nobody/x",
    "index",
    "x.sqlite",
    "",
    ".",
    ":memory:",
    "nowhere/x",
    "n" * 300,
    "a.txt",
    "\x00",
    "\udcff",
    "http://localhost:1/x",
    "http://localhost:1/\x1b[2J",
    "http://[::1",
    "http://localhost:99999999/x",
    "http://user:secret@localhost:1/x",
    "http://",
    "ftp://localhost/x",
)
MODELS = (
    MODEL,
    "",
    "nowhere",
    "\x00",
    "n" * 300,
    "a/b",
    "a/b/c",
    "\x1b[2J",
    ".",
    "a.txt",
    "\udcff",
)
FILTERS = ("{}", "[]", "null", "{", '{"n": 1}', '{"n": {"$gte": 1e400}}', "[" * 100_000, "NaN")
VALUES: dict[str, Sequence[str]] = {
    "--top-k": NUMBERS,
    "--min-score": NUMBERS,
    "--score": ("mean", "sum", "max", "\x1b"),
    "--long-documents": ("windows", "truncate", ""),
    "--rank": NUMBERS,
    "--html": ("why.html", "", "n" * 300, "sub", "\x00"),
    "--format": ("jsonl", "json", "csv", "text", "markdown", "xml"),
    "--split": ("lines", "file", "paragraphs", "words"),
    "--field": TEXT_KEYS + tuple(STRINGS),
    "--id-field": TEXT_KEYS + tuple(STRINGS),
    "--title-field": TEXT_KEYS + tuple(STRINGS),
    "--device": ("cpu", "cuda:99", "", "nowhere", "\x1b[2J", "meta", "cpu:0", "\x00", "\udcff"),
    "--dtype": ("float32", "bfloat16", "float16", "auto", "int8"),
    "--batch-tokens": NUMBERS,
    "--query-length": (*NUMBERS, "8"),
    "--document-length": (*NUMBERS, "16"),
    "--query-marker": ("", "[unused0]", "nothing", *STRINGS),
    "--document-marker": ("", "[unused1]", "nothing", *STRINGS),
    "--language": ("en_XX", *STRINGS),
    "--revision": ("main", *STRINGS),
    "--cache-folder": ("cache", "~nobody", "a.txt", "n" * 300, *STRINGS),
    "--token-pooling": NUMBERS,
    "--to": PLACES,
    "--filter": (*FILTERS, *STRINGS, *NUMBERS),
    "--collection": ("x", *STRINGS),
    "--effort": NUMBERS,
    "--vectors": ("float16", "int8", "int4", "int2", ""),
    "--convert": ("float16", "int8", "int4", "int2"),
    "--run": ("r.trec", "judged.tsv", "a.txt", "", "\x00", "beir"),
    "--index": PLACES,
    "--qrels": ("judged.tsv", "r.trec", "", "nowhere", "beir/qrels/test.tsv"),
    "--corpus": ("beir/corpus.jsonl", "a.txt", "beir", ""),
    "--queries": ("q.tsv", "q.jsonl", "beir", "beir/queries.jsonl", "-", "", "\x00"),
    "--depth": NUMBERS,
    "--measures": ("nDCG@10", "MAP", "Recall@0", "MRR@9999999999999", "x", "", "nDCG@10,nDCG@10"),
    "--seed": NUMBERS,
    "--sample": NUMBERS,
    "--save-runs": ("runs", "a.txt", "", "\x00"),
    "--k": NUMBERS,
    "--recall": NUMBERS,
    "--api-key-env": ("HOME", "NOT_SET", *STRINGS),
    "-m": MODELS,
}
FLAGS = (
    "--json",
    "--json",
    "--prune",
    "--verify",
    "--follow-links",
    "--raw",
    "--query-expansion",
    "--no-query-expansion",
    "--local-files-only",
    "--allow-pickle",
    "--jsn",
    "--help",
    "--exact",
    "--bm25",
    "--",
    "\x1b[2J",
)
READING = ("--format", "--split", "--field", "--id-field", "--title-field")
RECIPE = ("--query-length", "--document-length", "--query-marker", "--batch-tokens", "--dtype")
FITTING: dict[str, Sequence[str]] = {
    "rerank": ("--top-k", "--min-score", "--score", "--long-documents", *READING, *RECIPE),
    "explain": ("--rank", "--html", "--long-documents", *READING, *RECIPE),
    "index": ("--token-pooling", "--vectors", "--convert", *READING, *RECIPE),
    "search": ("--top-k", "--score", "--filter", "--filter", "--dtype", "--effort"),
    "rerank many": ("--run", "--index", "--depth", "--top-k", "--score", *READING, *RECIPE),
    "evaluate": (
        *("--run", "--index", "--qrels", "--corpus", "--queries", "--depth", "--measures"),
        *("--seed", "--sample", "--save-runs", "--html", "--split"),
    ),
    "tune": ("--k", "--recall", "--queries", "--sample"),
    "info": (),
    "inspect": ("--query-length", "--query-marker", "--revision", "--cache-folder"),
    "nothing": (),
}


def draw(rng: random.Random) -> Case:
    files = tuple(_file(rng) for _ in range(rng.choice((0, 1, 1, 2, 4))))
    names = [name for name, _, _ in files] or ["a.txt"]
    command = rng.choices(tuple(FITTING), (8, 3, 5, 4, 4, 4, 2, 2, 2, 0.2))[0]
    given = [rng.choice((*names, *names, ".", "sub")) for _ in range(rng.choice((0, 1, 1, 2)))]
    model = MODEL if rng.random() < 0.93 else rng.choice(MODELS)
    words = {
        "rerank": [rng.choice(QUERIES), *given],
        "explain": [rng.choice(QUERIES), *given],
        "index": [*given, "--to", "new.sqlite" if rng.random() < 0.6 else rng.choice(PLACES)],
        "search": [rng.choice(QUERIES), "index" if rng.random() < 0.7 else rng.choice(PLACES)],
        "rerank many": [
            *("--queries", rng.choice(VALUES["--queries"][:4]), *given),
            *(
                "--to",
                rng.choice(("out.trec", "out.jsonl", *PLACES)) if rng.random() < 0.4 else "o",
            ),
        ],
        "evaluate": ["beir"] if rng.random() < 0.6 else [],
        "tune": ["index" if rng.random() < 0.8 else rng.choice(PLACES)],
        "info": ["index" if rng.random() < 0.7 else rng.choice(PLACES)],
        "inspect": [model],
        "nothing": [rng.choice(STRINGS)],
    }[command]
    if command in ("rerank many", "evaluate", "tune"):
        files = (*_collection(rng), *files)
    if command in ("search", "info", "tune", "rerank many", "evaluate") and rng.random() < 0.9:
        files = (*files, ("index", "index", _flips(rng)))
    if command in ("rerank", "explain", "index", "rerank many") or (
        command == "evaluate" and rng.random() < 0.5
    ):
        words += ["-m", model]
    if command not in ("info", "inspect", "nothing"):
        words += ["--device", "cpu"]
    fitting = FITTING[command] if rng.random() < 0.9 else tuple(VALUES)
    for _ in range(rng.choice((0, 1, 1, 2)) if fitting else 0):
        option = rng.choice(fitting)
        words += [option, rng.choice(VALUES[option])]
    if rng.random() < 0.6:
        words.insert(rng.randrange(len(words) + 1), rng.choice(FLAGS))
    stdin = rng.choice(CONTENTS)(rng)
    return Case(
        (command.removesuffix(" many"), *words),
        files,
        stdin.encode("utf-8", "surrogatepass") if isinstance(stdin, str) else stdin,
        rng.choice(("utf-8", "utf-8", "ascii", "cp1252")),
    )


# Running


def _index(path: Path, flips: tuple[tuple[float, int], ...]) -> None:
    content = bytearray(original())
    for place, value in flips:
        content[int(place * len(content))] ^= value
    path.write_bytes(content)


KINDS: dict[str, Callable[[Path, object], object]] = {
    "text": lambda path, text: path.write_bytes(str(text).encode("utf-8", "surrogatepass")),
    "repeated": lambda path, what: path.write_text(what[0] * what[1]),  # type: ignore[index]
    "bytes": lambda path, content: path.write_bytes(content),  # type: ignore[arg-type]
    "link": lambda path, to: path.symlink_to(str(to)),
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: path.mkdir(),
    "index": _index,  # type: ignore[dict-item]
}


def run(case: Case, folder: Path) -> None:
    from colbert_rag import clear_cache
    from colbert_rag.cli import main

    if _waits(case):
        return
    status: object
    inner = folder / "here"  # ".." must not be everybody's folder
    inner.mkdir()
    with _inside(inner), _streams(case) as (out, err):
        _write(case.files)
        words = [str(checkpoint()) if word == MODEL else word for word in case.words]
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code
    if len(case.words) > 6:  # a model of its own, most likely
        clear_cache()
    said, noted = (
        stream.getvalue().decode(case.encoding).replace(os.linesep, "\n") for stream in (out, err)
    )
    assert not OBEYED.search(said), f"on standard output: {OBEYED.search(said)}"
    assert not OBEYED.search(noted), f"on standard error: {OBEYED.search(noted)}"
    assert "Traceback" not in noted, "a traceback"
    assert status in (0, 1, 2), f"status {status}"
    assert status != 2 or "usage: " in noted, "no usage"
    assert status != 1 or "error: " in noted or case.words[0] == "inspect", "no error"
    if "--json" in case.words and "--help" not in case.words and case.words[0] != "index":
        for line in said.splitlines():
            json.loads(line, parse_constant=_refuse)


def _refuse(name: str) -> object:
    raise AssertionError(f"{name} is no JSON")


def _waits(case: Case) -> bool:
    """Whether a pipe without a writer is named, which is waited for, as by any program."""
    pipes = {name for name, kind, _ in case.files if kind == "pipe"}
    return any(word in pipes for word in case.words)


def _write(files: Sequence[File]) -> None:
    for name, kind, content in files:
        path = Path(name)
        if os.path.lexists(path):  # such as a pipe, which would be waited for
            continue
        with contextlib.suppress(OSError):  # a name that another one took, or no system allows
            path.parent.mkdir(parents=True, exist_ok=True)
            KINDS[kind](path, content)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _streams(case: Case) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Standard streams of this run alone; handlers that keep one of them end with it."""
    before = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(case.stdin))
    sys.stdout = io.TextIOWrapper(out, encoding=case.encoding)
    sys.stderr = io.TextIOWrapper(err, encoding=case.encoding, write_through=True)
    kept = [(handler, handler.stream) for handler in _handlers()]
    for handler, _ in kept:
        handler.stream = sys.stderr
    try:
        yield out, err
        sys.stdout.flush()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.detach()
        sys.stdin, sys.stdout, sys.stderr = before
        for handler in _handlers():
            handler.stream = sys.stderr


def _handlers() -> list[logging.StreamHandler]:
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    return [
        handler
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
    ]


FACTS: File = ("a.jsonl", "text", '{"text": "mars"}')
FOUND = ("rerank", "mars", "a.jsonl", "-m", MODEL, "--device", "cpu")

CORPUS = (
    Case((*FOUND, "--query-marker", "\ud800"), (FACTS,)),
    Case((*FOUND, "--cache-folder", "~nobody"), (FACTS,)),
    Case((*FOUND, "--field", "\x00"), (FACTS,)),
    Case((*FOUND, "--min-score", "nan"), (FACTS,)),
    Case(("search", "mars", "index", ""), (("index", "index", ()),)),
    Case(("explain", *FOUND[1:], "--html", "\x00"), (FACTS,)),
    Case(("search", "mars", "index", "--filter", "9" * 5000), (("index", "index", ()),)),
    Case((*FOUND[:2], ".", *FOUND[3:], "--json"), ((f"a{CONTROLS[1:]}b.txt", "text", CONTROLS),)),
    Case((*FOUND[:2], ".", *FOUND[3:]), (FACTS, ("b.txt", "pipe", None))),
    Case((*FOUND[:2], ".", *FOUND[3:], "--follow-links"), (("b.txt", "link", "/dev/zero"),)),
    Case(
        (*FOUND, "--json"), (("a.jsonl", "text", '{"text": "mars", "n": 1e400, "s": "\\ud800"}'),)
    ),
    Case(
        ("explain", "mars", "a.txt", *FOUND[3:]),
        (("a.txt", "repeated", ('{"a":', 300_000)),),
    ),
    Case(("inspect", "nowhere", "--cache-folder", "\ud800")),
)
