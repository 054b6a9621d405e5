"""Answers of a server that nobody should have asked: a right result, or one of our errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import functools
import gzip
import json
import math
import random
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colbert_rag import RemoteColBERT, RemoteIndex
from colbert_rag.errors import ColBERTRagError
from colbert_rag.index import Changes, Document
from colbert_rag.index.info import IndexInfo, IndexStats
from colbert_rag.settings import Settings

DIM, ROWS = 4, 3
TEXTS = ["mars is red", "venus", ""]
TIMEOUT = 0.8
"""Seconds that a call may take: less than an input may."""

LONGEST_MESSAGE = 10_000
"""Characters of an error: what a server says is shown in a terminal."""

PIECE = b"[0.125,{}]," * 6_000
"""Of a body that has no end."""

CONTENTS: Mapping[str, bytes] = {
    "nothing": b"",
    "noise": random.Random(1).randbytes(999),
    "html": b"<html><body>It works!</body></html>",
    "null": b"null",
    "list": b"[]",
    "deep list": b"[" * 100_000,
    "deep object": b'{"data":' * 100_000,
    "digits": b"9" * 5_000,
    "utf-16": '{"data": []}'.encode("utf-16"),
    "surrogate": b'{"message": "\\ud800", "data": "\\udfff"}',
    "many lists": b'{"data": [' + b"[]," * 5_000_000 + b"0]}",
    "many members": b"{" + b",".join(b'"%d":{}' % at for at in range(300_000)) + b"}",
    "long text": b'{"message": "' + b"x\\u001b[2J" * 500_000 + b'"}',
}
"""Bodies that have nothing to do with what was asked."""

ODD: tuple[object, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 2**31, 2**63, 10**9, 10**400, -(10**400)),
    *(0.0, 0.5, -1.5, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "\0", "\ud800", "\x1b[2J", "AAAA", "AAA", "f" * 100_000, "mars is red", "nan"),
    *([], {}, [[]], [None], {"a": {}}, {"": ""}, [0] * 5_000, {"token": "x"}, {"text": 1}),
)
STATUSES = (*(200,) * 3, 100, 101, 199, 201, 204, 206, 226, 300, 301, 302, 304, 307, 308)
STATUSES += (*(400, 401, 403, 404, 409, 413, 413, 422, 429, 500, 502, 503, 503, 504, 599), 999, 0)
HEADERS: Mapping[str, tuple[str, ...]] = {
    "Retry-After": (
        *("0", "-1", "nan", "inf", "1e999", "9" * 400, "soon", "", "0.01", "\u0661"),
        *("Fri, 31 Dec 9999 23:59:59 GMT", "1 Jan 99999999999999999999 00:00:00 GMT"),
        *("Mon, 1 Jan 0 0:0:0 +9999", "Sun, 06 Nov 1994 08:49:37 -99999999999", "1 Jan"),
    ),
    "Location": ("/", "http://[::1", "http://elsewhere/\x1b[2J", "", "\udcff" * 9, "file:///etc"),
    "Content-Type": ("text/html", "", "application/json; charset=utf-16", "x" * 9_000, "a/b;;="),
    "Content-Encoding": ("gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "x"),
    "Content-Length": ("0", "-5", "5", "99999999999999", "abc", "1, 2"),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "identity", "x"),
    "Connection": ("keep-alive", "upgrade"),
    "X": ("x" * 60_000, "x" * 200_000, "a\r\nB: c", ""),
}
CODES = ("index_busy", "index_corrupt", "no_finite_score", "out_of_memory", "text_too_long")
CODES += ("too_many_explanations", "x")


@dataclass(frozen=True)
class Case:
    """A call, and what comes back.

    Attributes:
        call: A key of `CALLS`.
        changes: Where a right answer is changed, as keys and indexes; and into what.
        content: A key of `CONTENTS` that is sent instead, "error", "bomb", "endless" or "hang".
        cut: The part of the body that is sent.
        status: Of the answer.
        headers: More of them; one of ours is replaced.
        code: Of an error.
        turns: How many answers are like that, before there is a right one.
    """

    call: str
    changes: tuple[tuple[tuple[float, ...], object], ...] = ()
    content: str = ""
    cut: float = 1.0
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    code: str = ""
    turns: int = 99


def draw(rng: random.Random) -> Case:
    call = rng.choice(list(CALLS))
    turns = rng.choice((99, 99, 99, 1))
    if rng.random() < 0.6:
        changes = tuple(
            (tuple(rng.random() for _ in range(rng.randrange(6))), _odd(rng))
            for _ in range(rng.choice((1, 1, 1, 2, 4)))
        )
        return Case(call, changes, turns=turns)
    content = rng.choice(("", "", "error", "error", *CONTENTS))
    if rng.random() < 0.03:
        content = rng.choice(("bomb", "endless", "hang"))
    headers = tuple(
        (name, rng.choice(HEADERS[name]))
        for name in rng.choices(list(HEADERS), k=rng.choice((0, 0, 1, 2)))
    )
    status = rng.choice(STATUSES) if rng.random() < 0.7 else 200
    cut = rng.random() if rng.random() < 0.1 else 1.0
    return Case(call, (), content, cut, status, headers, rng.choice(CODES), turns)


def _odd(rng: random.Random) -> object:
    return rng.choice(ODD)


# The right answers


def _vectors(seed: int) -> str:
    values = [random.Random(f"{seed}/{at}").uniform(-1, 1) for at in range(ROWS * DIM)]
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _explanation() -> dict[str, Any]:
    token = {"token": "mars", "start": 0, "end": 4, "position": 1}
    match = {"query": token, "document": token, "similarity": 1.0, "alternatives": [token]}
    return {"query": "q", "text": "mars", "score": 1.0, "mean": 0.5, "matches": [match, match]}


def _scores(asked: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        {"index": at, "relevance_score": float(len(text))} for at, text in enumerate(texts)
    ]
    found.sort(key=lambda one: -one["relevance_score"])
    if asked.get("explain"):
        found = [{**one, "explanation": _explanation()} for one in found]
    return {"query_rows": ROWS, "results": found[: asked.get("top_n")]}


def _hits() -> dict[str, Any]:
    document = {"id": "d1", "text": "mars", "metadata": {"n": 1, "source": ["a"]}}
    return {"query_rows": ROWS, "results": [{**document, "score": 2.5}, {**document, "score": 1}]}


def _right(method: str, path: str, asked: Any) -> Any:
    if path == "/v1/models":
        settings = {"checkpoint": "there", "query_length": 32, "skiplist": [",", "."]}
        model = {"id": "there", "dim": DIM, "fingerprint": "f" * 64, "settings": settings}
        return {"object": "list", "data": [{**model, "max_model_len": 300}]}
    if path == "/v1/index":
        info = {"checkpoint": "there", "fingerprint": "f" * 64, "dim": DIM, "recipe": {}}
        stats = {"documents": 2, "tokens": 9, "bytes": 4096, "vectors": "float16"}
        return {"info": {**info, "token_pooling": None}, "stats": stats, "read_only": False}
    if path == "/v1/rerank" and "queries" in asked:
        own = asked["documents"]
        lists = own if isinstance(own[0], list) else [own] * len(asked["queries"])
        return {"data": [_scores(asked, texts) for texts in lists]}
    if path == "/v1/rerank":
        return _scores(asked, asked["documents"])
    if path == "/pooling":
        return {"data": [{"index": at, "data": _vectors(at)} for at in range(len(asked["input"]))]}
    if path == "/v1/search":
        return {"data": [_hits() for _ in asked["queries"]]} if "queries" in asked else _hits()
    if method == "DELETE":
        return {"deleted": 1}
    if method == "POST":
        return {"added": 1, "updated": 0, "unchanged": 2, "ids": ["a"]}
    return {"id": "d1", "text": "mars", "metadata": {"n": 1}}


def _changed(value: Any, steps: tuple[float, ...], new: object) -> Any:
    """The value with something else at the place to which `steps` lead."""
    if not isinstance(value, dict | list) or not value or not steps:
        return new
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place = places[int(steps[0] * len(places))]
    value = copy.copy(value)
    value[place] = _changed(value[place], steps[1:], new)
    return value


# The server


@dataclass
class Script:
    """What the server does now."""

    case: Case = field(default_factory=lambda: Case("rank"))
    left: int = 0


SCRIPT = Script()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):  # the client hung up
            self._answer()

    def _answer(self) -> None:
        method, path, _ = self.rfile.readline().decode().split()
        size = 0
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            size = int(value) if name.lower() == b"content-length" else size
        asked = json.loads(self.rfile.read(size)) if size else None
        right = _right(method, path, asked)
        SCRIPT.left -= 1
        if SCRIPT.left < 0:
            self._send(Case(SCRIPT.case.call), json.dumps(right).encode())
            return
        self._send(SCRIPT.case, _body(SCRIPT.case, right))

    def _send(self, case: Case, body: bytes) -> None:
        if case.content == "hang":
            self.rfile.read(1)
            return
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if case.content == "bomb":
            headers["Content-Encoding"] = "gzip"
        if case.content != "endless":
            headers["Content-Length"] = f"{len(body)}"
        headers |= dict(case.headers)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        line = f"HTTP/1.1 {case.status} Odd\r\n"
        self.wfile.write(f"{line}{head}\r\n".encode("utf-8", "surrogateescape"))
        self.wfile.write(body[: int(case.cut * len(body))])
        while case.content == "endless":
            self.wfile.write(PIECE)


def _body(case: Case, right: Any) -> bytes:
    if case.content == "error":
        error = {"message": "said \x1b[2J" * 9, "type": "x", "code": case.code, "param": None}
        return json.dumps({"error": error, "message": error["message"], "detail": 1}).encode()
    if case.content == "bomb":
        return _bomb()
    if case.content in ("endless", "hang"):
        return b'{"data": ['
    if case.content:
        return CONTENTS[case.content]
    for steps, new in case.changes:
        right = _changed(right, steps, new)
    return _json(right)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(gzip.compress(b'{"data": [' + b"[]," * 2**25, 1), 9)


@functools.cache
def address() -> str:
    """Where it listens, for as long as the process lives."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


# The calls, each with what its result must be

Call = Callable[[RemoteColBERT, RemoteIndex], object]


def _check_ranking(ranking: Any, count: int = len(TEXTS)) -> None:
    assert [place.rank for place in ranking] == list(range(1, count + 1))
    assert len({place.index for place in ranking}) == count
    assert all(math.isfinite(place.score) for place in ranking)
    assert all(place.text == TEXTS[place.index] for place in ranking)
    json.dumps([place.to_dict() for place in ranking], allow_nan=False)
    repr(ranking)


def _check_explanation(explanation: Any) -> None:
    assert math.isfinite(explanation.score)
    assert isinstance(explanation.to_dict(), dict)
    assert isinstance(repr(explanation), str)


def _check_vectors(vectors: Any) -> None:
    assert len(vectors) == len(TEXTS)
    assert all(rows.shape[1] == DIM and bool(rows.isfinite().all()) for rows in vectors)


def _check_hits(hits: Any) -> None:
    for hit in hits:
        assert isinstance(hit.document, Document)
        assert math.isfinite(hit.score)
        assert math.isfinite(hit.mean)
        _check_document(hit.document)


def _check_document(document: Document) -> None:
    assert isinstance(document.id, str)
    assert isinstance(document.text, str)
    assert isinstance(document.metadata, dict)


def _check_stats(stats: IndexStats) -> None:
    for name in ("tokens", "bytes", "shared_bytes", "level_bytes", "vector_bytes"):
        value = getattr(stats, name)
        assert value is None or (type(value) is int and value >= 0), f"{name} is {value!r}"
    assert type(stats.documents) is int
    assert stats.documents >= 0
    assert stats.vectors is None or isinstance(stats.vectors, str)


def _check_info(info: IndexInfo) -> None:
    assert isinstance(info, IndexInfo)
    assert type(info.dim) is int
    assert info.dim > 0
    assert info.token_pooling is None or math.isfinite(info.token_pooling)


def _check_changes(changes: Changes) -> None:
    assert all(type(n) is int and n >= 0 for n in (changes.added, changes.updated))
    assert type(changes.unchanged) is int


def _check_count(count: object) -> None:
    assert type(count) is int
    assert count >= 0


def _encoded(model: RemoteColBERT, kind: str) -> object:
    assert model.dim == DIM or model.dim > 0
    if model.dim != DIM:  # changed on its way; then these vectors may even fit
        with contextlib.suppress(ColBERTRagError):
            model.encode_documents(TEXTS)
        return None
    return model.encode_queries(["q", "r", "s"]) if kind == "q" else model.encode_documents(TEXTS)


def _all_checked(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def each(several: Any) -> None:
        assert len(several) == 2
        for one in several:
            check(one)

    return each


CALLS: dict[str, tuple[Call, Callable[[Any], None]]] = {
    "rank": (lambda model, index: model.rank("q", TEXTS), _check_ranking),
    "rank 2": (
        lambda model, index: model.rank("q", TEXTS, top_k=2),
        lambda ranking: _check_ranking(ranking, 2),
    ),
    "rank, explained": (
        lambda model, index: model.rank("q", TEXTS, explain=True),
        lambda ranking: [_check_explanation(ranking.explain(at)) for at in range(3)],
    ),
    "rank many": (
        lambda model, index: model.rank_many(["q", "r"], TEXTS),
        _all_checked(_check_ranking),
    ),
    "rank, awaited": (
        lambda model, index: asyncio.run(model.arank("q", TEXTS)),
        _check_ranking,
    ),
    "explain": (lambda model, index: model.explain("q", "mars"), _check_explanation),
    "encode queries": (
        lambda model, index: _encoded(model, "q"),
        lambda vectors: vectors is None or _check_vectors(vectors),
    ),
    "encode documents": (
        lambda model, index: _encoded(model, "d"),
        lambda vectors: vectors is None or _check_vectors(vectors),
    ),
    "settings": (
        lambda model, index: model.settings,
        lambda settings: _check(isinstance(settings, Settings)),
    ),
    "fingerprint": (
        lambda model, index: model.fingerprint,
        lambda fingerprint: _check(isinstance(fingerprint, str)),
    ),
    "search": (lambda model, index: index.search("q", 5, {"n": 1}), _check_hits),
    "search many": (
        lambda model, index: index.search_many(["q", "r"], 5),
        _all_checked(_check_hits),
    ),
    "search, awaited": (
        lambda model, index: asyncio.run(index.asearch("q", 5, effort=2)),
        _check_hits,
    ),
    "get": (
        lambda model, index: index.get(["d1"])[0],
        _check_document,
    ),
    "stats": (lambda model, index: index.stats(), _check_stats),
    "count": (lambda model, index: index.count(), _check_count),
    "info": (lambda model, index: index.info, _check_info),
    "add": (lambda model, index: index.add(["a", "b", "c"]), _check_changes),
    "delete": (lambda model, index: index.delete(["d1"]), _check_count),
}


def _check(true: bool) -> None:
    assert true


def prepare() -> None:
    from colbert_rag.remote import patience

    patience._FIRST_PAUSE = 0.01
    _bomb()
    for call in CALLS:
        run(Case(call, turns=0), Path())


def run(case: Case, folder: Path) -> None:
    SCRIPT.case, SCRIPT.left = case, case.turns
    seconds = TIMEOUT if case.turns else 60
    model = RemoteColBERT(address(), timeout=seconds, retries=1)
    index = RemoteIndex(address(), timeout=seconds, retries=1)
    ask, check = CALLS[case.call]
    try:
        result = ask(model, index)
    except KeyError:
        assert case.call == "get", "a KeyError"
        return
    except ColBERTRagError as error:
        refusal = str(error)
    else:
        check(result)
        return
    assert case.turns, "a right answer was refused"
    assert len(refusal) < LONGEST_MESSAGE, "a message without end"


BIG = 10**400
"""An integer that no float holds."""

CORPUS: tuple[Case, ...] = (
    *(Case("rank 2", content=content) for content in ("many lists", "endless", "bomb", "hang")),
    Case("rank, awaited", content="endless"),
    Case("encode documents", content="bomb", headers=(("Content-Encoding", "gzip, gzip"),)),
    Case("settings", content="long text", status=409, code="index_busy"),
    Case("rank", status=503, headers=(("Retry-After", HEADERS["Retry-After"][11]),)),
    *(
        Case("rank", (((0.9, 0.0, 0.9), value),))  # of the first text, its score
        for value in (BIG, -BIG, float("nan"), None)
    ),
    *(Case("rank", (((0.0,), value),)) for value in (BIG, 0, -1)),  # rows of the query
    *(Case("search many", (((0.0, 0.0, 0.0), value),)) for value in (BIG, 0)),
    *(
        Case("rank, explained", (((0.9, 0.0, 0.9, place), value),))  # of the explanation
        for place in (0.4, 0.9)
        for value in ("x", [None], {}, float("nan"))
    ),
    *(Case("stats", (((0.4, place), value),)) for place in (0.0, 0.3) for value in (-1, [], BIG)),
    *(Case("info", (((0.0, 0.9), value),)) for value in (-BIG, 0, "nan")),
    *(Case("info", (((0.0, 0.5), value),)) for value in (-1, [0] * 5_000)),
    *(Case(call, (((0.0,), -1),)) for call in ("delete", "add")),
    *(Case("encode documents", (((0.9, 0.0, 0.3), value),)) for value in (-1, 0, BIG)),
    Case("encode queries", (((0.0, 0.0, 0.9), base64.b64encode(b"\xff" * 16).decode()),)),
    Case("get", (((0.0,), "f" * 100_000),)),
)
