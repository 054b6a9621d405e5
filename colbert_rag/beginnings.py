"""How much of which texts the tokenizers library reads at once.

It reads a text whole, however little of it is kept: a megabyte of brackets takes it a second and
400 MB. So of a text far longer than its limit only a beginning is read, up to a *seam*: a place
where neither normaliser nor pre-tokeniser looks across, so that the tokens before it are what they
are in the whole text. A beginning that gives too few tokens is read again, and longer.

What makes a seam, with the two characters around it and one more all in ASCII:

* No step of Unicode reaches across: no ASCII character combines with what is before it, and none
  but a line feed continues a grapheme, which is as far as `Precompiled` looks. One space is no run.
* A space between letters or digits begins a new word for each of `_SPLITS`. The regular
  expressions have no branch that goes on from a letter or a digit to a space, and look ahead only
  from white space.
* Of two punctuation marks BERT makes a token each. Not `_`, which is a letter for added tokens
  that match whole words only.
* An added token lies across a seam only if it holds the very pair of characters around it.

What is behind a seam, read alone, has the tokens of the whole text too, unless a step looks back:
`Seams.parts`. Then a text of which all tokens are needed is read in short parts.

Tempting, and wrong: any white space (a line feed is joined to the mark before it, and a run of
spaces is split before its last), and tokenizers without a pre-tokeniser, whose words have spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.processors import PostProcessor

Tokens = TypeVar("Tokens", bound=Sized)

_CHARACTERS = 2**19
"""Read at once: of a text that is not cut yet, the library holds up to 500 bytes a character."""

_EACH = 8
"""Characters for each token that is needed: English has 4 to 5."""

_PART = 2**14
"""Characters of each part of a text that is read in parts: enough to be as fast as longer ones."""

_LONGER = 4
"""What is read again is so many times as long: all tries before the last cost a third of it."""

_WORD = "[0-9A-Za-z]"
_MARK = r"[!-/:-@\[-^`{-~]"
_BETWEEN_WORDS = rf"{_WORD}(?= {_WORD}[\0-\x7f])"
_BETWEEN_MARKS = rf"{_MARK}(?={_MARK}[\0-\x7f])"
_PROBE = " ".join(map(chr, range(33, 127)))

_LOCAL = {
    *("BertNormalizer", "Lowercase", "Nmt", "Precompiled", "Strip", "StripAccents"),
    *("NFC", "NFD", "NFKC", "NFKD"),
}
"""Normalisers that go by characters, combining sequences or graphemes, or see to the ends alone."""

_SPLITS = {
    "BertPreTokenizer": f"{_BETWEEN_WORDS}|{_BETWEEN_MARKS}",
    "ByteLevel": _BETWEEN_WORDS,
    "Metaspace": _BETWEEN_WORDS,
    "Split": _BETWEEN_WORDS,
    "Whitespace": _BETWEEN_WORDS,
    "WhitespaceSplit": _BETWEEN_WORDS,
}
"""Pre-tokenisers, and where each of them splits whatever stands around."""

_EXPRESSIONS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + numbers + "|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for numbers in (r"\p{N}", r"\p{N}{1,3}")
}
"""Those of `Split` in published checkpoints: Qwen's, and that of Llama 3, EuroBERT and LFM2."""

_AROUND = {"BertProcessing", "ByteLevel", "RobertaProcessing"}
"""Post-processors that put tokens around those of a text, or none."""

_TRIMS = {"ByteLevel", "RobertaProcessing"}
"""Post-processors that count a space to the first token of a text, and to no other."""


@dataclass(frozen=True, slots=True)
class Seams:
    """Where texts may be cut before one tokenizer reads them.

    Attributes:
        places: Matches the character before a seam; None where no place is known to be one.
        joined: Pairs of characters that an added token holds, in lower case: none is a seam.
        parts: Whether what is behind a seam, read alone, has the tokens of the whole text as well.
    """

    places: re.Pattern[str] | None
    joined: frozenset[str] = frozenset()
    parts: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Seams:
        """Those of a tokenizer that nothing changes any more: none, if a step of it is unknown."""
        normalizer = tokenizer.normalizer
        normalizers, words, around = map(
            _steps, (normalizer, tokenizer.pre_tokenizer, tokenizer.post_processor)
        )
        # Of several, the others get the pieces of the first one by one.
        places = _split(words[0]) if words else None
        if (
            places is None
            or not all(map(_is_local, normalizers))
            or not all(map(_is_around, around))
            # A table of its own could make of a letter whatever it likes.
            or (normalizer and normalizer.normalize_str(_PROBE).lower() != _PROBE.lower())
        ):
            return cls(None)
        added = list(tokenizer.get_added_tokens_decoder().values())
        contents = [token.content for token in added]
        if normalizer:
            contents += [normalizer.normalize_str(one.content) for one in added if one.normalized]
        return cls(
            re.compile(places),
            frozenset(a + b for content in contents for a, b in pairwise(content.lower())),
            # These look at what is before a seam, or at the beginning of what they are given.
            parts=not (
                any(token.rstrip or token.single_word for token in added)
                or any(step["type"] == "Strip" for step in normalizers)
                or any(step.get("prepend_scheme") == "first" for step in words)
                or any(step["type"] in _TRIMS for step in around)
            ),
        )

    def beginning(self, text: str, characters: int) -> str:
        """The text up to its first seam behind so many characters; all of one not much longer."""
        return text if len(text) <= 2 * characters else text[: self._behind(text, characters)]

    def divided(self, text: str) -> Iterator[tuple[int, str]]:
        """Parts of a text with the tokens of the whole one, and where each begins; or all of it."""
        start = 0
        while self.parts and len(text) - start > 2 * _PART:
            stop = self._behind(text, start + _PART)
            yield start, text[start:stop]
            start = stop
        if start < len(text) or not start:
            yield start, text[start:]

    def _behind(self, text: str, place: int) -> int:
        """The first seam that has so many characters before it, or the end."""
        for found in self.places.finditer(text, place) if self.places else ():
            seam = found.end()
            if text[seam - 1 : seam + 1].lower() not in self.joined:
                return seam
        return len(text)


def read(
    texts: Sequence[str], encode: Callable[[list[str]], Sequence[Tokens]], seams: Seams, most: int
) -> list[Tokens]:
    """Tokens of each text; of one that has far more than `most`, at least one more than these.

    Args:
        texts: Prepared for the tokenizer.
        encode: Tokenises texts.
        seams: Those of the tokenizer.
        most: Tokens that may be needed, together with what is put around them.
    """
    found: dict[int, Tokens] = {}
    waiting = list(range(len(texts)))
    characters = _EACH * most
    while waiting:
        parts = [seams.beginning(texts[number], characters) for number in waiting]
        tokens = (tokens for some in bounded(parts, _CHARACTERS) for tokens in encode(some))
        found.update(zip(waiting, tokens, strict=True))
        waiting = [
            number
            for number, part in zip(waiting, parts, strict=True)
            if len(found[number]) <= most and len(part) < len(texts[number])
        ]
        characters *= _LONGER
    return [found[number] for number in range(len(texts))]


def bounded(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """Texts in order, in parts of so many characters, or of one text that has more."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > characters:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def _steps(step: Normalizer | PreTokenizer | PostProcessor | None) -> list[dict[str, Any]]:
    """A step of a tokenizer, or those it is a sequence of, as they stand in `tokenizer.json`."""
    # Not `Tokenizer.to_str`, which writes the vocabulary, too, and takes seconds.
    return [] if step is None else _flat(json.loads(step.__getstate__()))


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    (steps,) = (value for value in step.values() if isinstance(value, list))
    return [inner for one in steps for inner in _flat(one)]


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == {"Regex": " {2,}"})
    return normalizer["type"] in _LOCAL


def _split(pre_tokenizer: dict[str, Any]) -> str | None:
    match pre_tokenizer:
        case {"type": "ByteLevel", "use_regex": False} | {"type": "Metaspace", "split": False}:
            return None
        case {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}:
            pieces = (behavior, invert) in {("Isolated", False), ("Removed", True)}
            if not pieces or pattern.get("Regex") not in _EXPRESSIONS:
                return None
    return _SPLITS.get(pre_tokenizer["type"])


def _is_around(post_processor: dict[str, Any]) -> bool:
    if post_processor["type"] == "TemplateProcessing":
        return sum("Sequence" in part for part in post_processor["single"]) == 1
    return post_processor["type"] in _AROUND
