"""The published on-disk formats, as a table tried in order.

A format is recognised by the files and tensors that are there. `architectures` and `model_type`
are never trusted alone: published checkpoints carry wrong ones, and the libraries that believe
them invent a random projection.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

from colbert_rag.checkpoint.files import Folder, Section, join
from colbert_rag.checkpoint.projection import dense_projection, inline_projection
from colbert_rag.checkpoint.recipe import Expansion, Projection, Recipe, TextRules
from colbert_rag.checkpoint.weights import Tensors, find_head
from colbert_rag.errors import MetadataError, MissingProjectionError, UnsupportedModuleError

PUNCTUATION = tuple(string.punctuation)
NO_LIMIT = 10**9
ST_CONFIG = "config_sentence_transformers.json"
PYLATE_KEYS = frozenset(
    "query_prefix document_prefix query_length document_length attend_to_expansion_tokens "
    "skiplist_words do_query_expansion".split()
)
MODULE_CLASSES = (
    "Transformer",
    "Dense",
    "MultiVectorMask",
    "Normalize",
    "Pooling",
    "HierarchicalTokenPooling",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the files show before any format is chosen.

    Attributes:
        folder: The checkpoint.
        body: Sub-folder of the backbone, "" for the checkpoint itself.
        tensors: Tensors stored with the backbone.
        modules: `(class name, sub-folder)` of every entry in `modules.json`.
        allow_pickle: Whether pickled weights may be read.
    """

    folder: Folder
    body: str
    tensors: Tensors
    modules: tuple[tuple[str, str], ...]
    allow_pickle: bool

    @property
    def st_config(self) -> Section:
        """What sentence-transformers and PyLate say about the whole model."""
        return self.folder.read(ST_CONFIG)

    @property
    def dense(self) -> tuple[str, ...]:
        """Sub-folders of the Dense layers, in order."""
        return self.paths("Dense")

    def paths(self, module: str) -> tuple[str, ...]:
        """Sub-folders of the modules of one class, in order."""
        return tuple(path for name, path in self.modules if name == module)

    def dense_layers(self) -> tuple[Projection, ...]:
        """The Dense layers, read."""
        return tuple(
            dense_projection(self.folder, sub, allow_pickle=self.allow_pickle) for sub in self.dense
        )


@dataclass(frozen=True, slots=True)
class Format:
    """One way a checkpoint is laid out on disk.

    Attributes:
        name: What we call it.
        matches: Whether the files are of this format.
        projection: Reads the projection layers, in order.
        recipe: Reads the rules for text.
    """

    name: str
    matches: Callable[[Layout], bool]
    projection: Callable[[Layout], tuple[Projection, ...]]
    recipe: Callable[[Layout], Recipe]


def read_modules(folder: Folder) -> tuple[tuple[str, str], ...]:
    """Class names and sub-folders in `modules.json`; only the last part of a class path counts.

    Raises:
        UnsupportedModuleError: a class outside the allowlist.
        UnsafePathError: a path that leaves the checkpoint.
        MetadataError: the file is not a list of modules.
    """
    modules = []
    for entry in folder.read_list("modules.json"):
        class_path = entry.get("type", str)
        path = entry.get("path", str)
        if class_path is None or path is None:
            raise MetadataError("modules.json has an entry without type or path")
        name = class_path.rsplit(".", 1)[-1]
        if name not in MODULE_CLASSES:
            raise UnsupportedModuleError(
                f"modules.json names the module {class_path!r}, expected one of "
                f"{', '.join(MODULE_CLASSES)}. No other class is imported, because importing a "
                "name from a checkpoint would run its code"
            )
        modules.append((name, folder.inside(path, named_in="modules.json")))
    return tuple(modules)


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
        split_markers=True,
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
    Format("stanford", _is_stanford, _stanford_projection, _stanford_recipe),
    # sentence-transformers >= 6, whatever it loaded before saving.
    Format("sentence-transformers", _is_native, _native_projection, _native_recipe),
    # PyLate: GTE-ModernColBERT-v1, ColBERT-Zero, mxbai-edge-colbert, LFM2-ColBERT.
    Format("pylate", _is_pylate, Layout.dense_layers, _pylate_recipe),
)


def raw_recipe(layout: Layout) -> Recipe:
    """The rules for a plain encoder's own token vectors: nothing is added, nothing skipped."""
    longest = tokenizer_limit(layout)
    return Recipe(
        query=TextRules("", "", min(128, longest)), document=TextRules("", "", min(256, longest))
    )
