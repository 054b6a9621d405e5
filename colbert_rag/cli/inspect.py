"""`colbert-rag inspect`: what a checkpoint is, and whether it would open, from its files alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colbert_rag.cli.options import add_recipe, settings_of
from colbert_rag.cli.output import say_facts, say_json, size
from colbert_rag.display import one_line
from colbert_rag.errors import CheckpointError, UnsupportedBackboneError
from colbert_rag.settings import Settings

if TYPE_CHECKING:
    from colbert_rag.checkpoint import Description, Projection, Recipe, TextRules
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

DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""What safetensors calls the float types."""

UNLIMITED = 10**6
"""From this length on there is no limit: tokenizers write 1e30 for none."""


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was found: as much of it as could be read, and every reason to refuse.

    Attributes:
        folder: Where the checkpoint lies.
        refused: Why it would not open; empty where it would.
        description: What its files say; its markers are final only where there is a tokenizer.
        tokenizer: Text to ids, as a model would have it.
    """

    folder: Path
    refused: tuple[CheckpointError, ...]
    description: Description | None = None
    tokenizer: TextTokenizer | None = None


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
    record = _record(settings, found)
    if arguments.json:
        say_json(record)
    else:
        say_facts(_facts(record))
    return 1 if found.refused else 0


def _look(settings: Settings) -> _Findings:
    """Read what can be read.

    Raises:
        CheckpointError: there is no such folder or hub repository, hence nothing to describe.
    """
    # Imported here because the hub's client takes half a second, and `--help` needs none of it.
    from colbert_rag.checkpoint.border import border
    from colbert_rag.checkpoint.checkpoint import describe, finish
    from colbert_rag.checkpoint.source import locate
    from colbert_rag.tokenizer import TextTokenizer

    try:
        description = describe(settings)
    except CheckpointError as error:
        with border(settings.checkpoint):  # what kept it from being described is met again
            return _Findings(locate(settings), (error,))
    refused: list[CheckpointError] = []
    row = description.backbone
    if row.refused:
        refused.append(UnsupportedBackboneError(f"{row.name}: {row.refused}"))
    rows = None if description.shape is None else description.shape.vocabulary
    tokenizer = None
    try:
        description = checkpoint = finish(description, settings)
        with border(settings.checkpoint):
            tokenizer = TextTokenizer(
                checkpoint.recipe,
                checkpoint.vocabulary,
                rows=rows,
            )
    except CheckpointError as error:
        refused.append(error)
    return _Findings(description.folder, tuple(refused), description, tokenizer)


def _record(settings: Settings, found: _Findings) -> dict[str, Any]:
    record: dict[str, Any] = {
        "checkpoint": settings.checkpoint,
        "folder": str(found.folder),
        "opens": not found.refused,
        "refused": [
            {"error": type(error).__name__, "message": str(error)} for error in found.refused
        ],
    }
    if found.description is None:
        return record
    return (
        record
        | _model_record(found.description)
        | _text_record(found.description.recipe, found.tokenizer)
    )


def _model_record(model: Description) -> dict[str, Any]:
    shape = model.shape
    adapter = None if shape is None else shape.adapter
    stored = [model.tensors[name] for name in model.backbone_tensors.values()]
    return {
        "format": model.format,
        "backbone": {
            "name": model.backbone.name,
            "model_type": model.model_type,
            "layers": None if shape is None else len(shape.layers),
            "hidden_size": model.hidden_size,
            "positions": None if shape is None else shape.longest,
            "languages": [] if adapter is None else list(adapter.languages),
        },
        "dim": model.dim,
        "projection": [
            {
                "in": layer.in_features,
                "out": layer.out_features,
                "activation": layer.activation,
                "bias": layer.bias is not None,
                "residual": layer.residual != "none",
            }
            for layer in model.projection
        ],
        "parameters": sum(prod(tensor.shape) for tensor in stored)
        + sum(map(_parameters, model.projection)),
        "dtypes": sorted({DTYPE_NAMES.get(tensor.dtype, tensor.dtype) for tensor in stored}),
        "files": list(model.weight_files),
        "bytes": model.weight_bytes,
    }


def _parameters(layer: Projection) -> int:
    """How many numbers a layer takes from the files."""
    matrices = 1 + (layer.residual not in ("none", "identity"))
    return layer.in_features * layer.out_features * matrices + layer.out_features * (
        layer.bias is not None
    )


def _text_record(recipe: Recipe, tokenizer: TextTokenizer | None) -> dict[str, Any]:
    expansion = recipe.expansion and {
        "token": None if tokenizer is None else tokenizer.expansion_token,
        "length": recipe.expansion.length,
        "attends": recipe.expansion.attends,
    }
    return {
        "query": _rules_record(recipe.query),
        "document": _rules_record(recipe.document),
        "expansion": expansion,
        "skiplist": list(recipe.skiplist),
        "skips_first": recipe.skips_first,
        "vocabulary": None if tokenizer is None else tokenizer.vocabulary.size,
    }


def _rules_record(rules: TextRules) -> dict[str, Any]:
    length = rules.length if rules.length < UNLIMITED else None
    return {"marker": rules.marker, "prompt": rules.prompt, "length": length}


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The record in words."""
    yield "Checkpoint", record["checkpoint"]
    if record["folder"] != record["checkpoint"]:
        yield "Folder", record["folder"]
    if "format" in record:
        yield from _model_facts(record)
        yield from _text_facts(record)
        count = f"{record['parameters']:,} parameters in {' and '.join(record['dtypes'])}"
        yield "Weights", f"{count}; {size(record['bytes'])} in {', '.join(record['files'])}"
    else:
        files = (file for file in Path(record["folder"]).iterdir() if file.is_file())
        listed = (f"{file.name} ({size(file.stat().st_size)})" for file in sorted(files))
        yield "Files", ", ".join(listed) or "none"
    for error in record["refused"]:
        yield "Refused", f"{error['error']}: {one_line(error['message'])}"
    if record["opens"]:
        yield "Opens", "yes, as far as files tell; tensors are compared when the model loads"


def _model_facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    backbone = record["backbone"]
    parts = [
        f"{backbone['name']} (model_type {backbone['model_type']})",
        f"{backbone['layers']} layers" if backbone["layers"] else "",
        f"{backbone['hidden_size']} wide",
        f"{backbone['positions']:,} tokens at most" if backbone["positions"] else "",
    ]
    yield "Format", record["format"]
    yield "Backbone", ", ".join(filter(None, parts))
    if backbone["languages"]:
        yield "Languages", f"{', '.join(backbone['languages'])}; one is chosen with --language"
    steps = [str(backbone["hidden_size"])]
    for layer in record["projection"]:
        extras = [
            "" if layer["activation"] == "Identity" else layer["activation"],
            "bias" if layer["bias"] else "",
            "residual" if layer["residual"] else "",
        ]
        named = ", ".join(filter(None, extras))
        steps.append(f"{layer['out']}{f' ({named})' if named else ''}")
    yield "Projection", " -> ".join(steps) if record["projection"] else "none, as asked for"
    yield "Token vector", f"{record['dim']} wide"


def _text_facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    filled = ""
    if (expansion := record["expansion"]) is not None:
        seen = "seen" if expansion["attends"] else "not seen"
        token = expansion["token"] or "the mask token"
        filled = f", filled up to {expansion['length']} with {token} ({seen} by the encoder)"
    yield "Queries", _rules(record["query"]) + filled
    yield "Documents", _rules(record["document"])
    skipped = record["skiplist"]
    yield "Skip-list", f"{len(skipped)} words: {' '.join(skipped)}" if skipped else "none"
    if record["skips_first"]:
        yield "Not scored", "the first token of every query and document"
    if record["vocabulary"] is not None:
        yield "Vocabulary", f"{record['vocabulary']:,} entries"


def _rules(rules: Mapping[str, Any]) -> str:
    parts = [
        f"marker {rules['marker']!r}" if rules["marker"] else "no marker",
        f"prompt {rules['prompt']!r}" if rules["prompt"] else "",
        f"{rules['length']:,} tokens at most" if rules["length"] is not None else "any length",
    ]
    return ", ".join(filter(None, parts))
