"""The published on-disk formats, as a table tried in order.

A format is recognised by the files and tensors that are there. `architectures` and `model_type`
are never trusted alone: published checkpoints carry wrong ones, and the libraries that believe
them invent a random projection.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

from colbert_rag.backbone.table import Backbone
from colbert_rag.checkpoint.files import Section, join
from colbert_rag.checkpoint.layout import Layout
from colbert_rag.checkpoint.markers import as_read, split_prompts, with_fallback
from colbert_rag.checkpoint.projection import (
    inline_projection,
    same_as_inline,
    separate_projection,
)
from colbert_rag.checkpoint.recipe import Expansion, Projection, Recipe, TextRules
from colbert_rag.checkpoint.vocabulary import Vocabulary
from colbert_rag.checkpoint.weights import HEAD_NAMES, SEPARATE_HEADS, find_head
from colbert_rag.errors import (
    MetadataError,
    MissingProjectionError,
    UnsupportedModuleError,
)

PUNCTUATION = tuple(string.punctuation)
NO_LIMIT = 10**9
PYLATE_KEYS = frozenset(
    "query_prefix document_prefix query_length document_length attend_to_expansion_tokens "
    "skiplist_words do_query_expansion".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way a checkpoint is laid out on disk.

    Attributes:
        name: What we call it.
        matches: Whether the files are of this format.
        projection: Reads the projection layers, in order.
        recipe: Reads the rules for text.
        markers: Finds the markers that are used, once the vocabulary is loaded.
        duplicate: Reads a second description of the projection, or gives None.
    """

    name: str
    matches: Callable[[Layout], bool]
    projection: Callable[[Layout], tuple[Projection, ...]]
    recipe: Callable[[Layout], Recipe]
    markers: Callable[[Recipe, Vocabulary, Backbone], Recipe]
    duplicate: Callable[[Layout, tuple[Projection, ...]], Projection | None]


# Stanford: stanford-futuredata/ColBERT, colbert/infra/config/settings.py and
# colbert/modeling/tokenization.


def _is_stanford(layout: Layout) -> bool:
    if find_head(layout.tensors) is None:
        return False
    architectures = layout.folder.read(join(layout.body, "config.json")).words("architectures")
    # A stale modules.json without Dense lies beside the weights of mxbai-colbert-large-v1;
    # answerai-colbert-small-v1 ships both descriptions of one model. The inline head decides.
    return (
        layout.folder.has("artifact.metadata")
        or "HF_ColBERT" in (architectures or ())
        or not layout.dense
    )


def _stanford_projection(layout: Layout) -> tuple[Projection, ...]:
    head = find_head(layout.tensors)
    if head is None:  # pragma: no cover - _is_stanford has just found it
        raise MissingProjectionError(f"{layout.folder.path} has no inline projection")
    return (inline_projection(head, layout.tensors.get(head.name.replace("weight", "bias"))),)


def _dense_duplicate(layout: Layout, projection: tuple[Projection, ...]) -> Projection | None:
    return same_as_inline(projection[0], layout.dense_layers()) if layout.dense else None


def _stanford_recipe(layout: Layout) -> Recipe:
    metadata = layout.folder.read("artifact.metadata")
    interaction = metadata.get("interaction", str)
    if interaction not in (None, "colbert"):
        raise MetadataError(
            f"artifact.metadata: interaction is {interaction!r}, expected 'colbert'. Only MaxSim "
            "over all query tokens is computed here"
        )
    query_length = metadata.length("query_maxlen", 32)
    skips = metadata.get("mask_punctuation", bool)
    return Recipe(
        query=TextRules(_stanford_marker(metadata, "query_token_id", 0), "", query_length),
        document=TextRules(
            _stanford_marker(metadata, "doc_token_id", 1),
            "",
            metadata.length("doc_maxlen", 220),
        ),
        expansion=Expansion(query_length, metadata.get("attend_to_mask_tokens", bool) or False),
        skiplist=() if skips is False else PUNCTUATION,
        skiplist_lookup="first-piece",
        padding_is_blank=True,
    )


def _stanford_marker(metadata: Section, key: str, unused: int) -> str:
    return metadata.get(key, str) or f"[unused{unused}]"


# PyLate: lightonai/pylate, pylate/models/colbert.py.


def _is_pylate(layout: Layout) -> bool:
    if not layout.dense or not layout.paths("Transformer"):
        return False
    config = layout.st_config
    speaks_pylate = config.get("model_type", str) == "ColBERT" or any(
        key in config for key in PYLATE_KEYS
    )
    # Transformer, Pooling and Dense without a PyLate key is a dense sentence model: its Dense
    # projects one pooled vector and says nothing about tokens.
    return speaks_pylate or not layout.paths("Pooling")


def _pylate_recipe(layout: Layout) -> Recipe:
    config = layout.st_config
    query_length = config.length("query_length", 32)
    expands = config.get("do_query_expansion", bool)
    attends = config.get("attend_to_expansion_tokens", bool) or False
    skiplist = config.words("skiplist_words")
    lowercases = layout.folder.read(join(layout.body, "sentence_bert_config.json")).get(
        "do_lower_case", bool
    )
    return Recipe(
        query=_pylate_rules(config, "query", "[Q] ", query_length),
        document=_pylate_rules(config, "document", "[D] ", config.length("document_length", 180)),
        expansion=None if expands is False else Expansion(query_length, attends),
        skiplist=PUNCTUATION if skiplist is None else skiplist,
        strips=True,
        lowercases=lowercases or False,
    )


def _pylate_rules(config: Section, kind: str, default: str, length: int) -> TextRules:
    marker = config.get(f"{kind}_prefix", str)
    prompt = config.section("prompts").get(kind, str) or ""
    return TextRules(default if marker is None else marker, prompt, length)


def _inline_duplicate(layout: Layout, _projection: tuple[Projection, ...]) -> Projection | None:
    head = find_head(layout.tensors)
    return None if head is None else inline_projection(head, None)


# sentence-transformers >= 6: sentence_transformers/multi_vector_encoder/model.py and
# sentence_transformers/base/modules/transformer.py.


def _is_native(layout: Layout) -> bool:
    return bool(layout.paths("MultiVectorMask")) or (
        layout.st_config.get("model_type", str) == "MultiVectorEncoder" and bool(layout.modules)
    )


def _native_projection(layout: Layout) -> tuple[Projection, ...]:
    layers = layout.dense_layers()
    if not layers:
        raise MissingProjectionError(
            f"{layout.folder.path} is a multi-vector model without a Dense layer. To use its "
            "token vectors as they are, pass raw_token_embeddings=True"
        )
    return layers


def _native_recipe(layout: Layout) -> Recipe:
    text = layout.folder.read(join(layout.body, "sentence_bert_config.json"))
    prompts = layout.st_config.section("prompts")
    longest = tokenizer_limit(layout)
    expansion = _native_expansion(text.section("query_expansion"))
    query_length = text.length("query_length", longest)
    if expansion is not None and text.section("query_expansion").get("strategy", str) == "fixed":
        query_length = expansion.length
    mask = (*layout.paths("MultiVectorMask"), None)[0]
    masking = Section("", {}) if mask is None else layout.folder.read(join(mask, "config.json"))
    if masking.get("keep_only_token_ids", list):
        raise UnsupportedModuleError(
            f"{masking.file}: keep_only_token_ids restricts documents to image tokens; only text "
            "checkpoints are opened here"
        )
    return Recipe(
        query=TextRules("", prompts.get("query", str) or "", query_length),
        document=TextRules(
            "", prompts.get("document", str) or "", text.length("document_length", longest)
        ),
        expansion=expansion,
        skiplist=masking.words("skiplist_words") or (),
        skiplist_on=frozenset(masking.words("skiplist_tasks") or ("document",)),
    )


def _native_expansion(settings: Section) -> Expansion | None:
    if not settings.values:
        return None
    strategy, length = settings.get("strategy", str), settings.get("length", int)
    if strategy not in ("fixed", "min") or length is None:
        raise MetadataError(
            f"{settings.file}: strategy is {strategy!r} and length {length!r}, expected 'fixed' or "
            "'min' and a number of tokens"
        )
    return Expansion(length, settings.get("attend", bool) or False, settings.get("token", str))


# FlagEmbedding: FlagOpen/FlagEmbedding, FlagEmbedding/finetune/embedder/encoder_only/m3/modeling.py
# (`_colbert_embedding`, `compute_colbert_score`) and FlagEmbedding/inference/embedder/encoder_only/
# m3.py (`_process_colbert_vecs`).


def _is_flagembedding(layout: Layout) -> bool:
    # modules.json, config.json and 1_Pooling of BGE-M3 describe the dense model that it is too.
    return any(layout.folder.has(join(layout.body, name)) for name in SEPARATE_HEADS)


def _flagembedding_projection(layout: Layout) -> tuple[Projection, ...]:
    return (separate_projection(layout.folder, layout.body, allow_pickle=layout.allow_pickle),)


def _flagembedding_recipe(layout: Layout) -> Recipe:
    # No file names lengths for token vectors, and FlagEmbedding asks for one on each call: 8192 in
    # its examples and in its first versions, 512 by default since. The longer one is what BGE-M3 is
    # known for and its tokenizer states; texts that fit in the shorter one are the same in both.
    longest = tokenizer_limit(layout)
    rules = TextRules("", "", longest)
    return Recipe(query=rules, document=rules, skips_first=True)


def tokenizer_limit(layout: Layout) -> int:
    """The tokenizer's own limit, for formats that leave a length to it; "no limit" is 1e30."""
    limit = layout.folder.read(join(layout.body, "tokenizer_config.json")).values.get(
        "model_max_length"
    )
    known = isinstance(limit, int | float) and 0 < limit < 1e9
    return int(limit) if known and isinstance(limit, int | float) else NO_LIMIT


FORMATS = (
    # Stanford ColBERT and everything saved by it: colbertv2.0, answerai-colbert-small-v1,
    # jina-colbert-v2, mxbai-colbert-large-v1.
    Format(
        name="stanford",
        matches=_is_stanford,
        projection=_stanford_projection,
        recipe=_stanford_recipe,
        markers=with_fallback,
        duplicate=_dense_duplicate,
    ),
    # sentence-transformers >= 6, whatever it loaded before saving.
    Format(
        name="sentence-transformers",
        matches=_is_native,
        projection=_native_projection,
        recipe=_native_recipe,
        markers=split_prompts,
        duplicate=_inline_duplicate,
    ),
    # PyLate: GTE-ModernColBERT-v1, ColBERT-Zero, mxbai-edge-colbert, LFM2-ColBERT.
    Format(
        name="pylate",
        matches=_is_pylate,
        projection=Layout.dense_layers,
        recipe=_pylate_recipe,
        markers=as_read,
        duplicate=_inline_duplicate,
    ),
    # FlagEmbedding's M3: BGE-M3 and what is fine-tuned from it. Last, since any of the others says
    # how the vectors of its tokens are meant, and the file of this one alone does not.
    Format(
        name="flagembedding",
        matches=_is_flagembedding,
        projection=_flagembedding_projection,
        recipe=_flagembedding_recipe,
        markers=as_read,
        duplicate=lambda _layout, _projection: None,
    ),
)


def _raw_recipe(layout: Layout) -> Recipe:
    """The rules for a plain encoder's own token vectors: nothing is added, nothing skipped."""
    longest = tokenizer_limit(layout)
    return Recipe(
        query=TextRules("", "", min(128, longest)), document=TextRules("", "", min(256, longest))
    )


RAW = Format(
    name="raw token embeddings",
    matches=lambda _layout: False,  # never found, only asked for
    projection=lambda _layout: (),
    recipe=_raw_recipe,
    markers=as_read,
    duplicate=lambda _layout, _projection: None,
)


def find_format(layout: Layout, *, raw: bool) -> Format:
    """The first format that fits the files.

    Args:
        layout: What the files show.
        raw: Whether the caller wants the encoder's own token vectors.

    Raises:
        MissingProjectionError: no format fits, or `raw` would ignore a trained projection.
    """
    form = next((form for form in FORMATS if form.matches(layout)), None)
    where = layout.folder.path
    if raw and form is not None:
        raise MissingProjectionError(
            f"{where} is a {form.name} checkpoint with a trained projection, and "
            "raw_token_embeddings=True would ignore it. Open it without that option"
        )
    if raw:
        return RAW
    if form is not None:
        return form
    raise MissingProjectionError(
        f"no late-interaction projection found in {where}: looked for "
        f"{' or '.join(HEAD_NAMES)} in the weights, for Dense layers in modules.json and for "
        f"{SEPARATE_HEADS[1]}; "
        f"tensors seen: {', '.join(sorted(layout.tensors)[:4]) or 'none'}. An untrained projection "
        "would rank at random, so none is made up. To use the encoder's own token vectors, pass "
        "raw_token_embeddings=True"
    )
