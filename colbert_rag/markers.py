"""Markers: the tokens that tell a query from a document, each exactly one vocabulary entry."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches

from tokenizers import Tokenizer

from colbert_rag.checkpoint import Recipe, TextRules
from colbert_rag.errors import MarkerError


def find_marker(marker: str, tokenizer: Tokenizer, kind: str) -> int | None:
    """The id of a marker; None for the empty one.

    Inserted by id, never as text: "[unused0]" as text becomes four pieces.

    Raises:
        MarkerError: the vocabulary has no such entry.
    """
    if not marker:
        return None
    number = tokenizer.token_to_id(marker)
    if number is not None:
        return number
    vocabulary = tokenizer.get_vocab()
    near = [
        *(token for token in vocabulary if token.strip() == marker.strip()),
        *get_close_matches(marker, [token for token in vocabulary if token[:1] in "[<"], n=3),
    ]
    raise MarkerError(
        f"the {kind} marker {marker!r} is not in the vocabulary. Near entries: "
        f"{list(dict.fromkeys(near)) or 'none'}. Pass {kind}_marker= with an entry of the "
        "vocabulary ('' for none). A model that was trained without its marker saw the unknown "
        "token in its place: pass that token to get the same scores"
    )


def split_markers(recipe: Recipe, tokenizer: Tokenizer) -> Recipe:
    """Find the marker that sentence-transformers writes in front of a prompt's text.

    It saves `"[Q] search_query: "`; the marker is the longest leading part that is one entry.
    """
    if not recipe.split_markers:
        return recipe
    return replace(
        recipe,
        query=_split_marker(recipe.query, tokenizer, "query"),
        document=_split_marker(recipe.document, tokenizer, "document"),
        split_markers=False,
    )


def _split_marker(rules: TextRules, tokenizer: Tokenizer, kind: str) -> TextRules:
    prompt = rules.prompt
    if rules.marker or not prompt.split():
        return rules
    word = prompt.split(maxsplit=1)[0]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    looks_like_marker = word[0] + word[-1] in ("[]", "<>")
    for part in (prompt, f"{word} ", word):
        known = part in added or (looks_like_marker and tokenizer.token_to_id(part) is not None)
        if known and prompt.startswith(part):
            # The space behind a marker stays with the text: byte-level BPE sees " word" there.
            return replace(rules, marker=part, prompt=prompt.removeprefix(part))
    if looks_like_marker:
        raise MarkerError(
            f"the {kind} prompt {prompt!r} starts with the marker {word!r}, which is not in the "
            f"vocabulary. Pass {kind}_marker= with an entry of the vocabulary"
        )
    return rules  # an ordinary text prompt, which is encoded with the text
