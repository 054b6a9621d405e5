"""Long documents as overlapping windows, cut where tokens begin.

A window is a piece of the caller's text and goes through the same steps as any document: marker,
prompt, skip-list and cache need no second version. The document scores as its best window does
(MaxP; Dai & Callan 2019, https://arxiv.org/abs/1905.09217).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from colbert_rag.tokenizer import Span, TextTokenizer

OVERLAP = 0.25
"""Share of a window that the next one repeats: a sentence of up to that length at a border is whole
in one of the two."""

SLACK = 2
"""Tokens left free in a window: the first word of a piece may be cut into more tokens than the same
word after a space."""


def find_windows(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[Span]]:
    """Cut each text that is longer than a document may be.

    Returns:
        For each text its windows as `(start, stop)` in characters, in order and together covering
        the text; a text that fits is one window.
    """
    room = tokenizer.room("document")
    return [
        _cut(text, starts, room) if len(starts) > room else [(0, len(text))]
        for text, starts in zip(texts, tokenizer.starts(texts), strict=True)
    ]


def _cut(text: str, starts: Sequence[int], room: int) -> list[Span]:
    """Windows of at most `room` tokens, given the character at which each token begins."""
    size = max(room - SLACK, 1)
    step = max(int(size * (1 - OVERLAP)), 1)
    windows: list[Span] = []
    first = 0
    while True:
        begin = starts[first] if first else 0
        if first + size >= len(starts):
            return [*windows, (begin, len(text))]
        # Several tokens may share one character, and a window has at least one of those.
        behind = bisect_right(starts, begin)
        stop = max(_word_start(text, starts, first + size, above=first + step), behind)
        if stop == len(starts):
            return [*windows, (begin, len(text))]
        windows.append((begin, starts[stop]))
        # The next window begins at a word too, and always further on, or this would not end.
        following = max(stop - size + step, first + 1)
        first = max(_word_start(text, starts, following, above=first + step // 2), behind)


def _word_start(text: str, starts: Sequence[int], token: int, *, above: int) -> int:
    """The last token at or before `token`, and behind `above`, that begins a word.

    Scripts without spaces have none: then `token` itself.
    """
    for place in range(token, above, -1):
        here = starts[place]
        if here > 0 and (text[here - 1].isspace() or text[here : here + 1].isspace()):
            return place
    return token
