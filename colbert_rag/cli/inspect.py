"""`colbert-rag inspect`: what a checkpoint is, and whether it would open, from its files alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_rag.cli.options import add_recipe, settings_of
from colbert_rag.cli.output import say_facts, say_json, size
from colbert_rag.display import one_line
from colbert_rag.errors import CheckpointError, UnsupportedBackboneError
from colbert_rag.settings import Settings

if TYPE_CHECKING:
    from colbert_rag.checkpoint import Checkpoint, Recipe, TextRules
    from colbert_rag.tokenizer import TextTokenizer

DESCRIPTION = """\
Describe a checkpoint by what its files say: format, backbone, widths, markers,
lengths, expansion, skip-list and size. Weights are not loaded, and no code of
the checkpoint is run. One that would be refused is described as far as
possible, with the reasons; the exit status is then 1. A hub id that is not in
the cache is downloaded first."""

EPILOG = """\
examples:
  colbert-rag inspect answerdotai/answerai-colbert-small-v1
  colbert-rag inspect ./my-checkpoint --json | jq .refused
  colbert-rag inspect sentence-transformers/all-MiniLM-L6-v2 --raw"""

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""What safetensors calls the float types."""

UNLIMITED = 10**6
"""Lengths above are no limit: tokenizers write 1e30 for none."""


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was found: as much of it as could be read, and every reason to refuse."""

    folder: Path
    refused: tuple[CheckpointError, ...]
    checkpoint: Checkpoint | None = None
    tokenizer: TextTokenizer | None = None

    @property
    def recipe(self) -> Recipe | None:
        """The rules for texts; the tokenizer's copy has all markers resolved."""
        if self.tokenizer is not None:
            return self.tokenizer.recipe
        return None if self.checkpoint is None else self.checkpoint.recipe

    @property
    def expansion_token(self) -> str | None:
        """What queries are filled with."""
        if self.recipe is None or self.recipe.expansion is None or self.tokenizer is None:
            return None
        specials = self.tokenizer.specials
        number = specials.eos if specials.mask is None else specials.mask
        known = None if number is None else self.tokenizer.tokenizer.id_to_token(number)
        return self.recipe.expansion.token or known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options] CHECKPOINT"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="hub id or folder")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Describe; the exit status says whether the checkpoint would open."""
    settings = settings_of(arguments)
    found = _look(settings)
    if arguments.json:
        say_json(_record(settings, found))
    else:
        say_facts(_facts(settings, found))
    return 1 if found.refused else 0


def _look(settings: Settings) -> _Findings:
    """Read what can be read.

    Raises:
        CheckpointError: there is no such folder or hub repository, hence nothing to describe.
    """
    # Imported here because the hub's client takes half a second, and `--help` needs none of it.
    from colbert_rag.checkpoint import open_checkpoint
    from colbert_rag.checkpoint.source import locate
    from colbert_rag.tokenizer import TextTokenizer

    try:
        checkpoint = open_checkpoint(settings)
    except CheckpointError as error:
        return _Findings(locate(settings), (error,))
    refused: list[CheckpointError] = []
    row = checkpoint.backbone
    if row.refused:
        refused.append(UnsupportedBackboneError(f"{row.name}: {row.refused}"))
    rows = checkpoint.config.get("vocab_size")
    tokenizer = None
    try:
        tokenizer = TextTokenizer.of(checkpoint, rows=rows if isinstance(rows, int) else None)
    except CheckpointError as error:
        refused.append(error)
    return _Findings(checkpoint.folder, tuple(refused), checkpoint, tokenizer)


def _record(settings: Settings, found: _Findings) -> dict[str, object]:
    checkpoint, recipe = found.checkpoint, found.recipe
    record: dict[str, object] = {
        "checkpoint": settings.checkpoint,
        "folder": str(found.folder),
        "opens": not found.refused,
        "refused": [
            {"error": type(error).__name__, "message": str(error)} for error in found.refused
        ],
    }
    if checkpoint is None or recipe is None:
        return record
    expansion = recipe.expansion
    return record | {
        "format": checkpoint.format,
        "backbone": {
            "name": checkpoint.backbone.name,
            "model_type": checkpoint.model_type,
            "layers": _layers(checkpoint),
            "hidden_size": checkpoint.hidden_size,
            "positions": checkpoint.backbone.positions(checkpoint.config),
            "packs": checkpoint.backbone.packs,
            "languages": _languages(checkpoint),
        },
        "dim": checkpoint.dim,
        "projection": [
            {
                "in": layer.in_features,
                "out": layer.out_features,
                "activation": layer.activation,
                "bias": layer.bias is not None,
                "residual": layer.residual != "none",
            }
            for layer in checkpoint.projection
        ],
        "query": _rules_record(recipe.query),
        "document": _rules_record(recipe.document),
        "expansion": None
        if expansion is None
        else {
            "token": found.expansion_token,
            "length": expansion.length,
            "attends": expansion.attends,
        },
        "skiplist": list(recipe.skiplist),
        "vocabulary": None if found.tokenizer is None else found.tokenizer.size,
        "parameters": _parameters(checkpoint),
        "dtypes": _dtypes(checkpoint),
        "files": list(checkpoint.weight_files),
        "bytes": checkpoint.weight_bytes,
    }


def _rules_record(rules: TextRules) -> dict[str, object]:
    length = rules.length if rules.length < UNLIMITED else None
    return {"marker": rules.marker, "prompt": rules.prompt, "length": length}


def _facts(settings: Settings, found: _Findings) -> Iterator[tuple[str, str]]:
    yield "Checkpoint", settings.checkpoint
    if str(found.folder) != settings.checkpoint:
        yield "Folder", str(found.folder)
    if found.checkpoint is not None and found.recipe is not None:
        yield from _checkpoint_facts(found.checkpoint)
        yield from _recipe_facts(found, found.recipe)
        yield "Weights", _weights(found.checkpoint)
    else:
        files = (file for file in found.folder.iterdir() if file.is_file())
        listed = (f"{file.name} ({size(file.stat().st_size)})" for file in sorted(files))
        yield "Files", ", ".join(listed) or "none"
    for error in found.refused:
        yield "Refused", f"{type(error).__name__}: {one_line(str(error))}"
    if not found.refused:
        yield "Opens", "yes, as far as files tell; tensors are compared when the model loads"


def _checkpoint_facts(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    backbone = checkpoint.backbone
    positions = backbone.positions(checkpoint.config)
    parts = [
        f"{backbone.name} (model_type {checkpoint.model_type})",
        f"{layers} layers" if (layers := _layers(checkpoint)) else "",
        f"{checkpoint.hidden_size} wide",
        f"{positions:,} tokens at most" if positions else "",
        "" if backbone.refused else "packed" if backbone.packs else "padded",
    ]
    yield "Format", checkpoint.format
    yield "Backbone", ", ".join(filter(None, parts))
    if languages := _languages(checkpoint):
        yield "Languages", f"{', '.join(languages)}; one is chosen with --language"
    steps = [str(checkpoint.hidden_size)]
    for layer in checkpoint.projection:
        extras = [
            "" if layer.activation == "Identity" else layer.activation,
            "bias" if layer.bias else "",
            "residual" if layer.residual != "none" else "",
        ]
        named = ", ".join(filter(None, extras))
        steps.append(f"{layer.out_features}{f' ({named})' if named else ''}")
    yield "Projection", " -> ".join(steps) if checkpoint.projection else "none, as asked for"
    yield "Token vector", f"{checkpoint.dim} wide"


def _recipe_facts(found: _Findings, recipe: Recipe) -> Iterator[tuple[str, str]]:
    filled = ""
    if (expansion := recipe.expansion) is not None:
        seen = "seen" if expansion.attends else "not seen"
        token = found.expansion_token or "the mask token"
        filled = f", filled up to {expansion.length} with {token} ({seen} by the encoder)"
    yield "Queries", _rules(recipe.query) + filled
    yield "Documents", _rules(recipe.document)
    skipped = f"{len(recipe.skiplist)} words: {' '.join(recipe.skiplist)}"
    yield "Skip-list", skipped if recipe.skiplist else "none"
    if found.tokenizer is not None:
        yield "Vocabulary", f"{found.tokenizer.size:,} entries"


def _rules(rules: TextRules) -> str:
    parts = [
        f"marker {rules.marker!r}" if rules.marker else "no marker",
        f"prompt {rules.prompt!r}" if rules.prompt else "",
        f"{rules.length:,} tokens at most" if rules.length < UNLIMITED else "any length",
    ]
    return ", ".join(filter(None, parts))


def _weights(checkpoint: Checkpoint) -> str:
    count = f"{_parameters(checkpoint):,} parameters in {' and '.join(_dtypes(checkpoint))}"
    return f"{count}; {size(checkpoint.weight_bytes)} in {', '.join(checkpoint.weight_files)}"


def _parameters(checkpoint: Checkpoint) -> int:
    """How many numbers the model takes from the files."""
    names = checkpoint.backbone_tensors.values()
    return sum(prod(checkpoint.tensors[name].shape) for name in names) + sum(
        layer.in_features * layer.out_features * (1 + (layer.residual not in ("none", "identity")))
        + layer.out_features * (layer.bias is not None)
        for layer in checkpoint.projection
    )


def _dtypes(checkpoint: Checkpoint) -> list[str]:
    names = checkpoint.backbone_tensors.values()
    stored = {checkpoint.tensors[name].dtype for name in names}
    return sorted(DTYPES.get(dtype, dtype) for dtype in stored)


def _layers(checkpoint: Checkpoint) -> int | None:
    config = checkpoint.config
    layers = config.get("num_hidden_layers") or config.get("n_layers")  # DistilBERT's name for it
    return layers if isinstance(layers, int) else None


def _languages(checkpoint: Checkpoint) -> list[str]:
    """Names of the adapters of a backbone that has one for each language."""
    languages = checkpoint.config.get("languages")
    if not checkpoint.backbone.has_languages or not isinstance(languages, list):
        return []
    return [str(name) for name in languages]
