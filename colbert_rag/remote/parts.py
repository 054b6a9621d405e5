"""Large requests as several: each is cut until the server takes it; no answer depends on that."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

from colbert_rag.progress import Bar
from colbert_rag.remote.exchange import Answer
from colbert_rag.remote.replies import GivenUpError, Request, TooLargeError

MOST_TEXTS = 512
"""Texts of a request at most. A server encodes 512 abstracts in seconds, so that no request comes
near a deadline, and other clients get their turn in between."""

MOST_BYTES = 4 * 2**20
"""Bytes of text in a request at most, but one text at least."""

Part: TypeAlias = tuple[int, int]
"""The first place of a part, and the one after its last."""


def in_parts(sizes: Sequence[int], most: int = MOST_TEXTS) -> Iterator[Part]:
    """Cut texts of these sizes in bytes into parts within both bounds; an empty list is one."""
    first, size = 0, 0
    for place, own in enumerate(sizes):
        if place > first and (place - first == most or size + own > MOST_BYTES):
            yield first, place
            first, size = place, 0
        size += own
    yield first, len(sizes)


def bytes_of(texts: Sequence[str]) -> list[int]:
    """The size of each text as it travels, nearly: what JSON escapes is not counted."""
    return [len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts]


def ask_in_parts(
    sizes: Sequence[int],
    request: Callable[[int, int], Request],
    bar: Bar,
    *,
    most: int = MOST_TEXTS,
) -> Generator[Request, Answer, list[tuple[Part, Answer]]]:
    """Ask for each part in order; what is too large for the server, or too slow, is halved.

    Args:
        sizes: Bytes of each text.
        request: Asks for the texts from one place to before another.
        bar: Told how many texts are done.
        most: Texts of a request at most.

    Raises:
        GivenUpError: a single text takes too long.
        TooLargeError: a single text is too large.
    """
    waiting = list(in_parts(sizes, most))[::-1]
    answers = []
    while waiting:
        first, last = waiting.pop()
        try:
            answer = yield request(first, last)
        except (TooLargeError, GivenUpError):
            if last - first < 2:
                raise
            middle = (first + last) // 2
            waiting += [(middle, last), (first, middle)]
            continue
        bar.update(last - first)
        answers.append(((first, last), answer))
    return answers
