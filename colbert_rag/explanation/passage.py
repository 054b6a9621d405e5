"""The stretch of a document that carries most of a score, to be cited."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from colbert_rag.explanation.overview import DocumentUnit
from colbert_rag.tokenizer import Span

# A mark that may also stand inside a word ends a sentence only before white space. No part of this
# repeats without limit before a condition, so that no text makes the search quadratic.
_SENTENCE_END = re.compile(
    r"[.!?…؟۔।][\"'”’»)\]]{0,3}(?=\s)|[。！？][」』”’）]{0,3}|\n[^\S\n]*(?=\n)"  # noqa: RUF001
)
_WHOLE_SENTENCES_FROM = 0.8
"""Whole sentences are cited where they carry this part of what could be had by cutting them."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document.

    Attributes:
        text: Its words.
        start: The first character's position in the document.
        stop: The position after the last character.
        share: The part of the score that comes from matches here.
    """

    text: str
    start: int
    stop: int
    share: float


def best_passage(text: str, places: Sequence[DocumentUnit], width: int) -> Passage:
    """The passage of at most `width` characters that carries most of the score."""
    load = _Load(places)
    if not load.spans:
        return Passage("", 0, 0, 0.0)
    spelt = [span for span in load.spans if any(map(str.isalnum, text[slice(*span)]))]
    cut = load.heaviest(spelt, width)
    sentences = list(_sentences(text))
    start, stop = load.heaviest(sentences, width)
    if load.between(start, stop) < _WHOLE_SENTENCES_FROM * load.between(*cut):
        start, stop = _filled(text, cut, width, sentences)
    elif start == stop:  # not even one word fits
        start, _ = max(load.spans, key=lambda span: load.between(*span))
        stop = start + width
    return Passage(text[start:stop], start, stop, load.between(start, stop))


class _Load:
    """How much of the score lies between two characters."""

    def __init__(self, places: Sequence[DocumentUnit]) -> None:
        carrying = [(place.span, place.share) for place in places if place.span and place.share > 0]
        self.spans: list[Span] = [span for span, _ in carrying]
        self._starts = [start for start, _ in self.spans]
        self._stops = [stop for _, stop in self.spans]
        self._sums = [0.0, *accumulate(share for _, share in carrying)]

    def between(self, start: int, stop: int) -> float:
        """The share of the words that lie wholly between two characters."""
        first, last = bisect_left(self._starts, start), bisect_right(self._stops, stop)
        return self._sums[max(first, last)] - self._sums[first]

    def heaviest(self, units: Sequence[Span], width: int) -> Span:
        """The run of units, at most `width` characters long, that carries most; (0, 0) if none.

        Of equals the shortest, and of those the first.
        """
        best, span = (0.0, 0), (0, 0)
        stops = [stop for _, stop in units]
        for first, (start, _) in enumerate(units):
            last = bisect_right(stops, start + width) - 1
            if last < first:
                continue
            weight = self.between(start, stops[last])
            while last > first and self.between(start, stops[last - 1]) == weight:
                last -= 1
            key = (weight, start - stops[last])
            if weight > 0 and key > best:
                best, span = key, (start, stops[last])
        return span


def _sentences(text: str) -> Iterator[Span]:
    ends = (match.end() for match in _SENTENCE_END.finditer(text))
    for start, stop in pairwise([0, *ends, len(text)]):
        part = text[start:stop]
        if part.strip():
            yield start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def _filled(text: str, span: Span, width: int, sentences: Sequence[Span]) -> Span:
    """Grow on both sides in turn, word by word, up to `width` or the ends of the sentences."""
    start, stop = span
    first = max((begin for begin, _ in sentences if begin <= start), default=start)
    last = min((end for _, end in sentences if end >= stop), default=stop)
    words = [match.span() for match in re.compile(r"\S+").finditer(text, first, last)]
    begins = iter([begin for begin, _ in reversed(words) if begin < start])
    ends = iter([end for _, end in words if end > stop])
    begin, end = next(begins, None), next(ends, None)
    while True:
        if end is not None and end - start <= width:
            stop, end = end, next(ends, None)
        elif begin is None or stop - begin > width:
            return start, stop
        if begin is not None and stop - begin <= width:
            start, begin = begin, next(begins, None)
