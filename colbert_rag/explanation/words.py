"""Tokens put together to the words a reader sees; only the text decides, not the tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from colbert_rag.explanation.alignment import Token
from colbert_rag.tokenizer import Span

# Thai, Lao, Burmese, Khmer, kana and ideographs are written without spaces: there the pieces of a
# tokenizer are the best words to be had, and joining them would join whole sentences.
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_LONGEST_GAP = 4  # characters without a token of their own inside a word: accents, an apostrophe


def words(tokens: Sequence[Token], text: str) -> dict[Span, list[int]]:
    """The words that tokens are parts of, in the order of the text, with the rows of these."""
    found: list[tuple[Span, list[int]]] = []
    for row, token in enumerate(tokens):
        if token.span is None:
            continue
        start, stop = token.span
        (first, last), rows = found[-1] if found else ((0, -1), [])
        if rows and (start < last or _is_one_word(text, last, start)):
            found[-1] = ((first, max(last, stop)), [*rows, row])
        else:
            found.append(((start, stop), [row]))
    return dict(found)


def _is_one_word(text: str, stop: int, start: int) -> bool:
    """Whether no word ends from `stop`, where a token ends, to `start`, where the next begins."""
    return start - stop <= _LONGEST_GAP and all(
        _continues(text, place) for place in range(stop, start + 1)
    )


def _continues(text: str, place: int) -> bool:
    before, after = text[place - 1], text[place]
    if _is_mark(after) or "\u200d" in (before, after):  # a joiner makes several emoji one
        return True
    if _SPACELESS.match(before) or _SPACELESS.match(after):
        return False
    return _is_in_word(text, place - 1) and _is_in_word(text, place)


def _is_in_word(text: str, place: int) -> bool:
    """Letters, digits, and what stands between them in "what's" and "6,961"."""
    if text[place].isalnum() or text[place] == "_" or _is_mark(text[place]):
        return True
    around = text[place - 1 : place] + text[place + 1 : place + 2]
    if len(around) < 2:
        return False
    return (text[place] in "'\u2019" and around.isalpha()) or (
        text[place] in ".," and around.isdigit()
    )


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"
