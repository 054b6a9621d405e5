"""The caller's own lengths, expansion and skip-list in place of the checkpoint's.

Markers need the vocabulary, and come later: `markers.with_chosen`.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from colbert_rag.checkpoint.formats import NO_LIMIT
from colbert_rag.checkpoint.recipe import Expansion, Recipe, TextRules
from colbert_rag.errors import MetadataError
from colbert_rag.settings import Settings

logger = logging.getLogger(__name__)

MAX_PROMPT = 10_000
"""Characters of a prompt or a marker, which every text is given: published ones have below 200."""

MAX_EXPANSION = 8192
"""Tokens that a checkpoint may fill every query up to: published ones fill to 32, or 512."""

REPLACED_KEYS = {
    "query_marker": ("query_token_id", "query_prefix"),
    "document_marker": ("doc_token_id", "document_prefix"),
    "query_length": ("query_maxlen", "query_length"),
    "document_length": ("doc_maxlen", "document_length"),
    "query_expansion": ("do_query_expansion",),
    "attend_to_expansion": ("attend_to_mask_tokens", "attend_to_expansion_tokens"),
    "skiplist": ("mask_punctuation", "skiplist_words"),
}
"""For each choice of the caller, the keys of a checkpoint's files that it replaces."""


def decided(settings: Settings) -> frozenset[str]:
    """Keys that are not read: a checkpoint with a broken entry opens once it is overridden."""
    return frozenset(
        key
        for option, keys in REPLACED_KEYS.items()
        if getattr(settings, option) is not None
        for key in keys
    )


def overridden(recipe: Recipe, settings: Settings, longest: int) -> Recipe:
    """The recipe with the caller's choices, markers excepted.

    Args:
        recipe: What the files say.
        settings: What the caller says.
        longest: Positions of the backbone.

    Raises:
        MetadataError: a length exceeds the backbone's positions, or a prompt or an expansion any
            that was ever trained.
    """
    query = _with_length(recipe.query, settings.query_length, longest, "query_length")
    document = _with_length(recipe.document, settings.document_length, longest, "document_length")
    for rules in (query, document):
        if max(len(rules.prompt), len(rules.marker)) > MAX_PROMPT:
            raise MetadataError(
                f"{settings.checkpoint} puts {len(rules.prompt):,} characters of prompt and "
                f"{len(rules.marker):,} of marker in front of every text, expected {MAX_PROMPT:,} "
                "at most"
            )
    expansion = recipe.expansion
    if settings.query_expansion is False:
        expansion = None
    elif settings.query_expansion and expansion is None:
        expansion = Expansion(query.length)
    if expansion is not None:
        attends = settings.attend_to_expansion
        # A checkpoint that fills to its full length goes on doing so at another length; one that
        # fills to a minimum keeps that minimum.
        fills = expansion.length >= recipe.query.length
        expansion = replace(
            expansion,
            length=query.length if fills else min(expansion.length, query.length),
            attends=expansion.attends if attends is None else attends,
        )
        if expansion.length > MAX_EXPANSION and settings.query_length is None:
            raise MetadataError(
                f"{settings.checkpoint} would fill every query up to {expansion.length:,} tokens, "
                f"expected {MAX_EXPANSION:,} at most. Pass query_length="
            )
    elif settings.attend_to_expansion:
        raise MetadataError(
            f"attend_to_expansion=True, but {settings.checkpoint} does not expand queries. Pass "
            "query_expansion=True as well, or leave it out"
        )
    skiplist = recipe.skiplist if settings.skiplist is None else settings.skiplist
    return replace(recipe, query=query, document=document, expansion=expansion, skiplist=skiplist)


def _with_length(rules: TextRules, length: int | None, longest: int, option: str) -> TextRules:
    if length is None:
        if longest < rules.length < NO_LIMIT:
            logger.info(
                "the checkpoint asks for %s %d, the backbone has %d positions: using those",
                option,
                rules.length,
                longest,
            )
        length = min(rules.length, longest)
    elif length > longest:
        raise MetadataError(
            f"{option} is {length}, but the backbone has positions for {longest} tokens at most. "
            "Choose a smaller value"
        )
    return replace(rules, length=length)
