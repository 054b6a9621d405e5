"""Clients that behave badly, and some that do not: what a server on an open network meets.

`python -m tests.helpers.abuse --requests 3000` does it at length, with real weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colbert_rag import ColBERT
from tests.helpers.serving import LIMIT, Running, serving

KEY = "the-right-key"
WORDS = "saturn mars venus rings red hot ice rock moon wind storm planet star".split()
EXACT = 1e-4


@dataclass
class Found:
    """What became of the requests.

    Attributes:
        kinds: How many there were of each kind.
        wrong: What was answered otherwise than it should have been.
        memory: Bytes that the server held, now and then.
        stood_still: Seconds for which the clients themselves did nothing, at most: what is late
            then is no fault of the server.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    stood_still: float = 0.0


class Client:
    """One connection of a client, which knows what the answers should be."""

    def __init__(self, url: str, model: ColBERT, chance: random.Random, patience: float) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.model, self.chance, self.patience = model, chance, patience

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, limit=2**24)

    def texts(self, most: int = 8) -> list[str]:
        sizes = [self.chance.randint(1, 30) for _ in range(self.chance.randint(1, most))]
        return [" ".join(self.chance.choices(WORDS, k=size)) for size in sizes]

    def body(self) -> tuple[str, list[str], bytes]:
        """A query, documents, and the body that asks about them."""
        query, texts = " ".join(self.chance.choices(WORDS, k=3)), self.texts()
        return query, texts, json.dumps({"query": query, "documents": texts}).encode()

    async def good(self) -> tuple[bytes, list[tuple[int, float]]]:
        """A body, and the right answer to it."""
        query, texts, body = self.body()
        # In a thread: all clients share this loop, and would be slow where they mean not to be.
        ranking = await asyncio.to_thread(self.model.rank, query, texts)
        return body, [(place.index, place.mean) for place in ranking]


def head(length: int | None, *, key: str = KEY, path: str = "/rerank") -> bytes:
    """The line and headers of a request."""
    sized = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\n{sized}\r\n\r\n"
    ).encode()


async def answer(reader: asyncio.StreamReader, patience: float) -> tuple[int, bytes]:
    """Status and body of one answer; 0 where the server closed the connection."""
    try:
        async with asyncio.timeout(patience):
            top = await reader.readuntil(b"\r\n\r\n")
            fields = dict(
                line.lower().split(": ", 1) for line in top.decode().split("\r\n")[1:] if line
            )
            body = await reader.readexactly(int(fields.get("content-length", 0)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b""
    return int(top.split()[1]), body


def right(found: tuple[int, bytes], expected: Sequence[tuple[int, float]]) -> str:
    """What is wrong with an answer, or nothing."""
    status, body = found
    if status != 200:
        return f"status {status}: {body[:200]!r}"
    results = [(it["index"], it["relevance_score"]) for it in json.loads(body)["results"]]
    if [index for index, _ in results] != [index for index, _ in expected] or any(
        abs(one - other) > EXACT for (_, one), (_, other) in zip(results, expected, strict=True)
    ):
        return f"{results} instead of {expected}"
    return ""


async def ask_well(client: Client) -> str:
    """Two good requests on one connection."""
    # Both before it is opened, since a server closes a connection that is idle for long.
    asked = [await client.good() for _ in range(2)]
    reader, writer = await client.connect()
    said = ""
    for body, expected in asked:
        writer.write(head(len(body)) + body)
        said = said or right(await answer(reader, client.patience), expected)
    writer.close()
    return said


async def ask_slowly(client: Client) -> str:
    """A good request in small pieces, whose answer is not read at once."""
    body, expected = await client.good()
    reader, writer = await client.connect()
    whole = head(len(body)) + body
    for start in range(0, len(whole), 1 + len(whole) // 8):
        writer.write(whole[start : start + 1 + len(whole) // 8])
        await writer.drain()
        await asyncio.sleep(client.chance.random() / 10)
    await asyncio.sleep(client.chance.random() / 2)
    said = right(await answer(reader, client.patience), expected)
    writer.close()
    return said


async def hang_up(client: Client) -> str:
    """A request that is cut anywhere, or whose answer nobody reads."""
    *_, body = client.body()
    if client.chance.random() < 0.3:
        texts = [f"{client.chance.random()} {text}" for text in client.texts(200)]
        body = json.dumps({"query": "red", "documents": texts}).encode()
    _, writer = await client.connect()
    whole = head(len(body)) + body
    writer.write(
        whole[: client.chance.randint(0, len(whole))] if client.chance.random() < 0.5 else whole
    )
    await asyncio.sleep(client.chance.random() / 20)
    if client.chance.random() < 0.5:
        writer.transport.abort()
    writer.close()
    return ""


async def refused(client: Client, whole: bytes, *statuses: int) -> str:
    """Send something that must be refused with one of the statuses."""
    reader, writer = await client.connect()
    try:
        writer.write(whole)
        await writer.drain()
    except ConnectionError:  # refused before all of it was sent
        return ""
    status, body = await answer(reader, client.patience)
    writer.close()
    return "" if status in statuses else f"status {status}, expected {statuses}: {body[:200]!r}"


async def bad_json(client: Client) -> str:
    """A body that is cut, or bytes of any kind."""
    *_, body = client.body()
    body = body[: client.chance.randint(1, len(body) - 1)]
    if client.chance.random() < 0.5:
        body = b"\xff" + client.chance.randbytes(client.chance.randint(0, 999))
    return await refused(client, head(len(body)) + body, 400)


async def bad_values(client: Client) -> str:
    """JSON that is no request."""
    odd = [None, [], {}, 3, -1.5, True, "", " ", {"text": 3}, [[]], "\ud800"]
    body = {"query": client.chance.choice(odd[:8]), "documents": client.chance.choice(odd)}
    whole = json.dumps(body).encode()
    return await refused(client, head(len(whole)) + whole, 400)


async def wrong_key(client: Client) -> str:
    """A request of somebody who may not."""
    *_, body = client.body()
    key = client.chance.choice([KEY[:-1], KEY + "x", "", KEY.upper(), "x" * 9000])
    return await refused(client, head(len(body), key=key) + body, 401)


async def huge(client: Client) -> str:
    """A body that says it is too large, or is so without saying it."""
    if client.chance.random() < 0.5:
        return await refused(client, head(2**33) + b" " * 9999, 413)
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    return await refused(client, head(None) + chunk * 20, 413, 0)


async def too_many(client: Client) -> str:
    """More documents, or a longer one, than a request may hold."""
    documents = ["a"] * 1001 if client.chance.random() < 0.5 else ["a" * 200_001]
    body = json.dumps({"query": "red", "documents": documents}).encode()
    return await refused(client, head(len(body)) + body, 413)


async def no_http(client: Client) -> str:
    """Something else than HTTP, or a head without end."""
    whole = client.chance.randbytes(200) + b"\r\n\r\n"
    if client.chance.random() < 0.3:
        whole = b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 50_000
    return await refused(client, whole, 400, 431, 0)


KINDS: dict[Callable[[Client], Awaitable[str]], int] = {
    ask_well: 30,
    ask_slowly: 10,
    hang_up: 25,
    bad_json: 10,
    bad_values: 5,
    wrong_key: 10,
    huge: 3,
    too_many: 3,
    no_http: 4,
}
"""Kinds of requests, and how many of a hundred they are."""


async def abuse(
    running: Running,
    model: ColBERT,
    *,
    requests: int,
    clients: int,
    seed: int,
    patience: float = LIMIT,
) -> Found:
    """Ask in all these ways, from several clients at a time, each of which waits for so long."""
    found = Found()
    chance = random.Random(seed)
    drawn = chance.choices(list(KINDS), weights=list(KINDS.values()), k=requests)
    left = list(enumerate(drawn))
    step = max(requests // 10, 1)

    async def work() -> None:
        while left:
            number, kind = left.pop()
            client = Client(running.url, model, random.Random(f"{seed} {number}"), patience)
            found.kinds[kind.__name__] += 1
            try:
                said = await kind(client)
            except (ConnectionError, TimeoutError) as error:
                said = repr(error)
            if said:
                found.wrong.append(f"{kind.__name__} {number}: {said}")
            if number % step == 0:
                found.memory.append(running.memory())

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.1)
            found.stood_still = max(found.stood_still, time.monotonic() - before - 0.1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(work() for _ in range(clients)))
    watching.cancel()
    return found


def main(argv: Sequence[str]) -> int:
    """Do it at length, and say what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--patience", type=float, default=LIMIT, help="seconds, on a machine that others share"
    )
    options = parser.parse_args(argv)
    model = ColBERT.from_pretrained("offline-minilm", device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        # A small cache, which is soon full: what grows then is a leak.
        arguments = (Path(folder), "-m", "offline-minilm", "--api-key", KEY, "--cache-mib", 8)
        # oneDNN keeps code for a thousand shapes of a product, and takes longer to have met them.
        env = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
        patient = f"body_seconds: float = {options.patience / 2}"
        arguments = (*arguments, "--timeout", options.patience)
        with serving(*arguments, env=env, limits=patient) as running:
            before = running.memory()
            found = asyncio.run(
                abuse(
                    running,
                    model,
                    requests=options.requests,
                    clients=options.clients,
                    seed=options.seed,
                    patience=options.patience,
                )
            )
            running.settled(KEY)
            after, status = running.memory(), running.stop()
            log = running.log.read_text()
    mib = [number >> 20 for number in (before, *found.memory, after)]
    sys.stdout.write(f"{dict(found.kinds)}\nMiB: {mib}\nwrong: {len(found.wrong)}\n")
    ways = Counter(re.sub(r"\d{3,}", "N", line)[:60] for line in found.wrong)
    sys.stdout.writelines(f"  {count} x {way}\n" for way, count in ways.most_common())
    sys.stdout.writelines(f"  {line}\n" for line in found.wrong[:20])
    sys.stdout.write(f"the clients stood still for {found.stood_still:.1f} s at most\n")
    sys.stdout.write(f"status after SIGTERM: {status}\nlog: {Counter(log.splitlines())}\n")
    return int(bool(found.wrong or status))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
