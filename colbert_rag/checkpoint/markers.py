"""Markers: the tokens that tell a query from a document, each exactly one vocabulary entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from tokenizers import Tokenizer

from colbert_rag.backbone.table import Backbone
from colbert_rag.checkpoint.recipe import Recipe, TextRules
from colbert_rag.checkpoint.vocabulary import Vocabulary
from colbert_rag.errors import MarkerError
from colbert_rag.settings import Settings


def find_marker(marker: str, tokenizer: Tokenizer, kind: str) -> int | None:
    """The id of a marker; None for the empty one.

    Inserted by id, never as text: "[unused0]" as text becomes four pieces.

    Raises:
        MarkerError: the vocabulary has no such entry.
    """
    if not marker:
        return None
    try:
        number = tokenizer.token_to_id(marker)
    except UnicodeEncodeError:  # half a character, which no vocabulary holds
        number = None
    if number is not None:
        return number
    vocabulary = tokenizer.get_vocab()
    near = [
        *(token for token in vocabulary if token.strip() == marker.strip()),
        *get_close_matches(marker, [token for token in vocabulary if token[:1] in "[<"], n=3),
    ]
    raise MarkerError(
        f"the {kind} marker {marker!r} is not in the vocabulary. Near entries: "
        f"{', '.join(map(repr, dict.fromkeys(near))) or 'none'}. Pass {kind}_marker= with an "
        "entry of the vocabulary ('' for none). A model that was trained without its marker "
        "saw the unknown token in its place: pass that token to get the same scores"
    )


def as_read(recipe: Recipe, _vocabulary: Vocabulary, _backbone: Backbone) -> Recipe:
    """The markers that the files name."""
    return recipe


def with_fallback(recipe: Recipe, vocabulary: Vocabulary, backbone: Backbone) -> Recipe:
    """The backbone's usual markers in place of named ones that the vocabulary does not have."""
    others = backbone.fallback_markers
    if others is None:
        return recipe
    return _with_markers(
        recipe,
        [
            other if vocabulary.lacks(rules.marker) and not vocabulary.lacks(other) else None
            for rules, other in zip((recipe.query, recipe.document), others, strict=True)
        ],
    )


def split_prompts(recipe: Recipe, vocabulary: Vocabulary, _backbone: Backbone) -> Recipe:
    """The markers that sentence-transformers writes in front of its prompts.

    It saves `"[Q] search_query: "`; the marker is the longest leading part that is one entry.
    """
    return replace(
        recipe,
        query=_split_prompt(recipe.query, vocabulary),
        document=_split_prompt(recipe.document, vocabulary),
    )


def with_chosen(recipe: Recipe, settings: Settings) -> Recipe:
    """The caller's own markers, where the caller chose any; "" chooses to have none."""
    return _with_markers(recipe, [settings.query_marker, settings.document_marker])


def _with_markers(recipe: Recipe, markers: Sequence[str | None]) -> Recipe:
    query, document = (
        rules if marker is None else replace(rules, marker=marker)
        for rules, marker in zip((recipe.query, recipe.document), markers, strict=True)
    )
    return replace(recipe, query=query, document=document)


def _split_prompt(rules: TextRules, vocabulary: Vocabulary) -> TextRules:
    prompt = rules.prompt
    if not prompt.split():
        return rules
    word = prompt.split(maxsplit=1)[0]
    looks_like_marker = word[0] + word[-1] in ("[]", "<>")
    added = {token.content for token in vocabulary.tokenizer.get_added_tokens_decoder().values()}
    for part in (prompt, f"{word} ", word):
        known = part in added or (looks_like_marker and not vocabulary.lacks(part))
        if known and prompt.startswith(part):
            # The space behind a marker stays with the text: byte-level BPE sees " word" there.
            return replace(rules, marker=part, prompt=prompt.removeprefix(part))
    if looks_like_marker:
        # Not an error here: the caller's own marker may still take its place.
        rest = prompt.split(word, maxsplit=1)[1]
        return replace(rules, marker=word, prompt=rest.removeprefix(" "))
    return rules  # an ordinary text prompt, which is encoded with the text
