"""An alignment as a reader takes it in: a line for each query word, a place for each document word.

The views in HTML and for the terminal both show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from colbert_rag.explanation.alignment import Token
from colbert_rag.explanation.words import words
from colbert_rag.tokenizer import Role, Span

if TYPE_CHECKING:
    from colbert_rag.explanation.explanation import Explanation

_BLANKS = str.maketrans({" ": "␣", "\t": "⇥", "\n": "⏎", "\r": "⏎", "\u00a0": "␣", "\u3000": "␣"})
_OTHERS: tuple[tuple[Role, ...], ...] = (("prompt",), ("special", "marker"), ("expansion",))


@dataclass(frozen=True, slots=True)
class DocumentUnit:
    """A document word, or a scored token that is not in the text.

    Attributes:
        label: The word as the document spells it, or the token.
        span: Where in the text; None for a token that is not in it.
        share: The part of the score that comes from matches here.
        lines: Positions of the lines that match here.
    """

    label: str
    span: Span | None
    share: float
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryUnit:
    """A query word, or all query tokens of one kind that are not in the text.

    Attributes:
        label: The word as the query spells it, or the distinct tokens.
        role: Why its tokens are there.
        span: Where in the query; None for tokens that are not in it.
        tokens: How many tokens it sums.
        similarity: The mean similarity of their matches.
        share: The part of the score they add.
        best: Positions of the places they match, those that add most first.
    """

    label: str
    role: Role
    span: Span | None
    tokens: int
    similarity: float
    share: float
    best: tuple[int, ...]

    @property
    def name(self) -> str:
        """What to call it in a narrow column."""
        if self.role == "text":
            return self.label
        if self.role == "prompt":
            return "prompt"
        kind = "expansion" if self.role == "expansion" else "special"
        return f"{self.tokens} {kind} token{'s' * (self.tokens > 1)}"


@dataclass(frozen=True, eq=False, slots=True)
class Overview:
    """Words instead of tokens.

    Attributes:
        lines: In the order of the query, words first.
        places: In the order of the document.
        profiles: The best similarity of each line with each place, `(lines, places)`.
    """

    lines: tuple[QueryUnit, ...]
    places: tuple[DocumentUnit, ...]
    profiles: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows that are shown as one."""

    label: str
    role: Role
    span: Span | None
    rows: tuple[int, ...]


def overview(explanation: Explanation) -> Overview:
    """Add up for words what holds for tokens."""
    matches, document = explanation.matches, explanation.document_tokens
    similarities = explanation.similarities
    asked = _query_units([match.query for match in matches], explanation.query)
    found = _document_units(document, explanation.text)
    line_of = _unit_of_row(asked, len(matches))
    place_of = _unit_of_row(found, len(document))
    profiles = np.full((len(asked), len(found)), -np.inf, np.float32)
    np.maximum.at(profiles, (line_of[:, None], place_of[None, :]), similarities)
    shares = np.zeros(profiles.shape)
    hits = np.zeros(profiles.shape, np.bool_)
    if found:
        taken = place_of[similarities.argmax(axis=1)]
        np.add.at(shares, (line_of, taken), [match.share for match in matches])
        hits[line_of, taken] = True
    lines = [
        QueryUnit(
            label=unit.label,
            role=unit.role,
            span=unit.span,
            tokens=len(unit.rows),
            similarity=sum(matches[row].similarity for row in unit.rows) / len(unit.rows),
            share=sum(matches[row].share for row in unit.rows),
            best=tuple(sorted(np.flatnonzero(hit).tolist(), key=(-share).__getitem__)),
        )
        for unit, share, hit in zip(asked, shares, hits, strict=True)
    ]
    places = [
        DocumentUnit(unit.label, unit.span, float(share), tuple(np.flatnonzero(hit).tolist()))
        for unit, share, hit in zip(found, shares.sum(axis=0), hits.T, strict=True)
    ]
    return Overview(tuple(lines), tuple(places), profiles)


def _query_units(tokens: Sequence[Token], query: str) -> list[_Unit]:
    units = _word_units(tokens, query)
    for roles in _OTHERS:
        rows = [row for row, at in enumerate(tokens) if at.span is None and at.role in roles]
        if rows:
            label = " ".join(dict.fromkeys(tokens[row].text.strip() for row in rows))
            units.append(_Unit(label, roles[0], None, tuple(rows)))
    return units


def _document_units(tokens: Sequence[Token], text: str) -> list[_Unit]:
    apart = [
        _Unit(token.text.strip(), token.role, None, (row,))
        for row, token in enumerate(tokens)
        if token.span is None
    ]
    return sorted([*_word_units(tokens, text), *apart], key=lambda unit: unit.rows)


def _word_units(tokens: Sequence[Token], text: str) -> list[_Unit]:
    units = []
    for span, rows in words(tokens, text).items():
        spelt = text[slice(*span)]
        label = spelt if spelt.strip() else spelt.translate(_BLANKS)
        units.append(_Unit(label, "text", span, tuple(rows)))
    return units


def _unit_of_row(units: Sequence[_Unit], rows: int) -> NDArray[np.int64]:
    unit_of = np.zeros(rows, np.int64)
    for position, unit in enumerate(units):
        unit_of[list(unit.rows)] = position
    return unit_of
