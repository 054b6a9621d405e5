"""From text to ids and masks, by a checkpoint's recipe: the same text always gives the same ids.

Nothing here changes after construction, so any number of threads may tokenise at once.

The order of steps is that of Stanford ColBERT (colbert/modeling/tokenization) and PyLate
(pylate/models/colbert.py, `tokenize`), which agree: encode with special tokens, cut, insert the
marker by id at position 1, expand.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from colbert_rag.beginnings import Seams, bounded, read
from colbert_rag.checkpoint import Expansion, Recipe, TextRules, Vocabulary
from colbert_rag.checkpoint.markers import find_marker
from colbert_rag.errors import MetadataError, TokenizerError

Kind = Literal["query", "document"]
KINDS: tuple[Kind, ...] = ("query", "document")
Role = Literal["text", "prompt", "marker", "special", "expansion"]
Span = tuple[int, int]

_WITH_PLACES = 2**16
"""Characters whose tokens are read together with their places, which are objects of Python."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class TokenBatch:
    """Tokens of many texts, without padding; text `i` owns positions `offsets[i]:offsets[i + 1]`.

    Attributes:
        ids: `(tokens,)`, int64.
        offsets: `(texts + 1,)`, int64.
        attention: `(tokens,)`, bool: what the encoder sees.
        scoring: `(tokens,)`, bool: what counts in a score.
        truncated: How many texts lost tokens to the length limit.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    attention: NDArray[np.bool_]
    scoring: NDArray[np.bool_]
    truncated: int = 0

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, `(texts,)`."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """Where each token of one finished sequence comes from.

    Attributes:
        tokens: The tokens as written in the vocabulary.
        spans: Start and end in characters of the caller's text, without the white space that many
            vocabularies count to the next word; None for a token that is not in the text.
        roles: Why each token is there: "text" for those of the caller's text.
        batch: The same sequence as a batch of one.
    """

    tokens: tuple[str, ...]
    spans: tuple[Span | None, ...]
    roles: tuple[Role, ...]
    batch: TokenBatch


class TextTokenizer:
    """Carries out one checkpoint's recipe."""

    def __init__(self, recipe: Recipe, vocabulary: Vocabulary, *, rows: int | None = None) -> None:
        """Resolve every token the recipe names.

        Args:
            recipe: The rules.
            vocabulary: The tokenizer and its special tokens; not changed from here on.
            rows: Rows of the embedding table, where known.

        Raises:
            MarkerError: a marker is not one entry of the vocabulary.
            TokenizerError: the tokenizer has more entries than the embedding table has rows, no
                token to expand with, or leaves an empty text without a token that counts.
            MetadataError: a length leaves no room for text.
        """
        self.recipe = recipe
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer = vocabulary.tokenizer
        size = vocabulary.size
        if rows is not None and size > rows:
            raise TokenizerError(
                f"the tokenizer has {size} entries, but the embedding table only {rows} "
                "rows. It belongs to another checkpoint; tables are never resized"
            )
        self._trailing = int(tokenizer.encode("a").special_tokens_mask[-1])
        self._specials = len(tokenizer.encode("").ids)
        self._seams = Seams.of(tokenizer)
        if recipe.skips_first and self._specials < 2:
            raise TokenizerError(
                "the first token of a text does not count for this checkpoint, and its tokenizer "
                f"adds {self._specials} to an empty text, expected 2 at least: it would have no "
                "vector. The tokenizer belongs to another checkpoint"
            )
        self._markers: dict[Kind, int | None] = {}
        for kind in KINDS:
            self._check_length(kind)
            self._markers[kind] = find_marker(self.rules(kind).marker, tokenizer, kind)
        self._expansion = None if recipe.expansion is None else self._placeholder(recipe.expansion)
        self._blank = vocabulary.pad if recipe.padding_is_blank else None
        # One lookup table per kind: np.isin would sort the ids of every batch.
        self._counts = {kind: np.ones(size, np.bool_) for kind in KINDS}
        skipped = self._skipped()
        for kind in KINDS:
            if kind in recipe.skiplist_on:
                self._counts[kind][skipped] = False
        if self._blank is not None:
            self._counts["document"][self._blank] = False

    @property
    def expansion_token(self) -> str | None:
        """What queries are filled with, or None where they are not filled."""
        return None if self._expansion is None else self.tokenizer.id_to_token(self._expansion)

    def queries(self, texts: Sequence[str]) -> TokenBatch:
        """Ids and masks of queries, expanded where the recipe says so."""
        return self._batch(texts, "query")

    def documents(self, texts: Sequence[str]) -> TokenBatch:
        """Ids and masks of documents."""
        return self._batch(texts, "document")

    def spans(self, text: str, kind: Kind) -> TokenSpans:
        """One text's tokens, with the characters of the text that each stands for."""
        prepared = [self._prepare(text, kind)]
        (encoding,) = read(prepared, self.tokenizer.encode_batch, self._seams, self._most(kind))
        # Read once: each of these attributes builds a new list of the whole text on every access.
        offsets, special = encoding.offsets, encoding.special_tokens_mask
        batch = self._finish([encoding.ids], kind)
        prompt = self.rules(kind).prompt
        read_until = max((stop for _, stop in offsets), default=0)
        origin = _origin(prompt + text, self.recipe, read_until)
        places: list[Span | None] = []
        roles: list[Role] = []
        # Arranges positions instead of ids, so that each token leads back to the text.
        for position in self._arrange(list(range(len(encoding.ids))), kind, marker=-1):
            place: Span | None = None
            if position < 0:
                role: Role = "marker"
            elif special[position]:
                role = "special"
            else:
                start, stop = offsets[position]
                place = _place(origin[start:stop], text, len(prompt))
                role = "prompt" if place is None else "text"
            places.append(place)
            roles.append(role)
        ids = batch.ids.tolist()
        filled = len(ids) - len(places)
        tokens = tuple(self.tokenizer.id_to_token(number) or "" for number in ids)
        places = _with_marks(places, text) + [None] * filled
        roles += ["expansion"] * filled
        return TokenSpans(tokens, tuple(places), tuple(roles), batch)

    def room(self, kind: Kind) -> int:
        """How many tokens of a text fit beside specials, marker and prompt."""
        rules = self.rules(kind)
        taken = len(self.tokenizer.encode(rules.prompt).ids) + bool(rules.marker)
        return max(rules.length - taken, 1)

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        """Characters at which the tokens of each text begin; nothing is cut or added."""
        parts = [
            (number, start, part)
            for number, text in enumerate(texts)
            for start, part in self._seams.divided(self._clean(text))
        ]
        some = bounded([part for *_, part in parts], _WITH_PLACES)
        encodings = (one for part in some for one in self.tokenizer.encode_batch(part))
        found: list[list[int]] = [[] for _ in texts]
        for (number, start, _), encoding in zip(parts, encodings, strict=True):
            tokens = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            found[number] += [
                start + at for (at, stop), special in tokens if at < stop and not special
            ]
        origins = (_origin(text, self.recipe, len(text)) for text in texts)
        return [
            [origin[at] for at in places] for origin, places in zip(origins, found, strict=True)
        ]

    def _batch(self, texts: Sequence[str], kind: Kind) -> TokenBatch:
        prepared = [self._prepare(text, kind) for text in texts]
        return self._finish(read(prepared, self._ids, self._seams, self._most(kind)), kind)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # The fast variant skips character offsets, which only `spans` needs.
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]

    def _most(self, kind: Kind) -> int:
        """Tokens beyond which a text is cut, however many of them are put around it."""
        return self.rules(kind).length + self._specials

    def rules(self, kind: Kind) -> TextRules:
        """Marker, prompt and length of one kind of text."""
        return self.recipe.query if kind == "query" else self.recipe.document

    def _prepare(self, text: str, kind: Kind) -> str:
        return self._clean(self.rules(kind).prompt + text)

    def _clean(self, text: str) -> str:
        if self.recipe.strips:
            text = text.strip()
        if self.recipe.lowercases:
            text = text.lower()
        # Half a surrogate pair (an emoji cut in two) is no Unicode text, and tokenizers refuses it.
        return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")

    def _arrange(self, items: list[int], kind: Kind, *, marker: int) -> list[int]:
        """Cut to the length, keeping the closing special token, and insert the marker at 1."""
        marked = self._markers[kind] is not None
        room = self.rules(kind).length - marked
        if len(items) > room:
            items = items[: room - self._trailing] + items[len(items) - self._trailing :]
        return [*items[:1], marker, *items[1:]] if marked else items

    def _finish(self, texts: list[list[int]], kind: Kind) -> TokenBatch:
        marker = self._markers[kind]
        room = self.rules(kind).length - (marker is not None)
        rows = [self._arrange(ids, kind, marker=-1 if marker is None else marker) for ids in texts]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        expansion = self.recipe.expansion if kind == "query" else None
        fill = 0 if self._expansion is None else self._expansion
        if expansion is not None:
            rows = [ids + [fill] * (expansion.length - len(ids)) for ids in rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
        ids = np.fromiter(chain.from_iterable(rows), np.int64, int(offsets[-1]))
        if kind == "query" and self._blank is not None:
            ids[ids == self._blank] = fill
        scoring = self._counts[kind][ids]
        if self.recipe.skips_first:
            scoring[offsets[:-1]] = False
        attention = np.ones(len(ids), np.bool_)
        if expansion is not None:
            place = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))
            filled = place >= np.repeat(lengths, np.diff(offsets))
            attention = ~filled | expansion.attends
            scoring = scoring | filled
        cut = sum(len(ids) > room for ids in texts)
        return TokenBatch(
            ids=ids, offsets=offsets, attention=attention, scoring=scoring, truncated=cut
        )

    def _check_length(self, kind: Kind) -> None:
        rules = self.rules(kind)
        taken = self._specials + bool(rules.marker)
        if rules.length <= taken:
            raise MetadataError(
                f"{kind}_length is {rules.length}, but special tokens and marker alone take "
                f"{taken}. Choose a larger value"
            )

    def _placeholder(self, expansion: Expansion) -> int:
        """The expansion token: the named one, else the mask token, else the end token."""
        if expansion.token is not None:
            number = self.tokenizer.token_to_id(expansion.token)
        elif self.vocabulary.mask is not None:
            number = self.vocabulary.mask
        else:
            number = self.vocabulary.eos
        if number is None:
            raise TokenizerError(
                f"queries are expanded with {expansion.token or 'the mask or end token'}, which is "
                "not in the vocabulary. Pass query_expansion=False if the model was trained "
                "without expansion"
            )
        return number

    def _skipped(self) -> list[int]:
        """Ids of the skip-list; a word without an entry of its own must not drop unknown tokens."""
        if self.recipe.skiplist_lookup == "first-piece":
            encoded = [
                self.tokenizer.encode(word, add_special_tokens=False).ids
                for word in self.recipe.skiplist
            ]
            return [ids[0] for ids in encoded if ids and ids[0] != self.vocabulary.unk]
        numbers = [self.tokenizer.token_to_id(word) for word in self.recipe.skiplist]
        return [number for number in numbers if number is not None]


def _origin(text: str, recipe: Recipe, characters: int) -> Sequence[int]:
    """For each of the first characters the tokenizer sees, its position before preparation."""
    start = len(text) - len(text.lstrip()) if recipe.strips else 0
    # Preparation makes no text shorter but at its ends.
    stop = min(len(text.rstrip()) if recipe.strips else len(text), start + characters)
    if not recipe.lowercases:
        return range(start, stop)
    # One capital may become two characters, such as the dotted capital I.
    return [place for place in range(start, stop) for _ in text[place].lower()]


def _place(origin: Sequence[int], text: str, shift: int) -> Span | None:
    """Where characters of prompt and text lie in the text, or None if in the prompt alone."""
    if not origin or origin[-1] < shift:
        return None
    start, stop = max(origin[0] - shift, 0), origin[-1] + 1 - shift
    part = text[start:stop]
    if not part.strip():
        return start, stop  # a token that is nothing but white space
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def _with_marks(places: list[Span | None], text: str) -> list[Span | None]:
    """Give accents that a normaliser dropped or merged, and no token claims, to their letter."""
    found: list[Span | None] = []
    extended: dict[Span, Span] = {}  # several tokens may share the bytes of one letter
    following = len(text)
    for place in reversed(places):
        if place is not None and place not in extended:
            start, stop = place
            while stop < following and unicodedata.category(text[stop])[0] == "M":
                stop += 1
            extended[place] = (start, stop)
            following = start
        found.append(place and extended[place])
    return found[::-1]
