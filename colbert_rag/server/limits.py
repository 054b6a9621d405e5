"""How much a server takes on, as one value."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True)  # no slots: the class itself shows the defaults
class Limits:
    """What is refused, and when.

    Attributes:
        running: Requests computed at the same time, and as many short ones beside them. They share
            batches: the more there are, the later each of them is done, and the fewer, the emptier
            are the batches of a GPU.
        waiting: Requests that wait for their turn; one more is refused.
        seconds: How long a request may take, waiting included.
        body_seconds: How long a client may take to send a body.
        stop_seconds: How long requests that are running may take once the server is to stop.
        body: Bytes of one body.
        bodies: Bytes of all bodies that are held at one time.
        connections: Connections at one time.
        documents: Documents of one request, over all its queries.
        queries: Queries of one request.
        characters: Characters of one text.
        explained: Results of one request that are explained.
        response: Bytes of token vectors in one response, or characters of texts that come once for
            each query.
    """

    running: int = 8
    waiting: int = 128
    seconds: float = 60.0
    body_seconds: float = 30.0
    stop_seconds: float = 30.0
    body: int = 16 * MIB
    bodies: int = 256 * MIB
    connections: int = 512
    documents: int = 1000
    queries: int = 100
    characters: int = 200_000
    explained: int = 100
    response: int = 128 * MIB
