"""From a `Checkpoint` to an encoder with its weights: strict, nothing random, none of its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from colbert_rag.backbone.shape import Shape, stored
from colbert_rag.backbone.table import our_name
from colbert_rag.backbone.transformer import Transformer, Weights
from colbert_rag.checkpoint import Checkpoint, Projection
from colbert_rag.checkpoint.border import border
from colbert_rag.checkpoint.loading import load_weights
from colbert_rag.checkpoint.source import check_published
from colbert_rag.computing import computing
from colbert_rag.errors import (
    CorruptWeightsError,
    ProjectionError,
    TensorMismatchError,
    UnsupportedBackboneError,
)


class ProjectionLayer(nn.Module):
    """One layer from hidden states towards token vectors."""

    bias: nn.Parameter | None
    residual: nn.Parameter | None

    def __init__(self, layer: Projection, read: Callable[[str], Tensor]) -> None:
        """Build the layer around its tensors.

        Args:
            layer: What the checkpoint says.
            read: Gives a stored tensor by name.
        """
        super().__init__()
        self.weight = nn.Parameter(read(layer.weight), requires_grad=False)
        bias = None if layer.bias is None else nn.Parameter(read(layer.bias), requires_grad=False)
        self.register_parameter("bias", bias)
        self.activation = getattr(nn, layer.activation)()
        self.adds_input = layer.residual == "identity"
        projects = layer.residual not in ("none", "identity")
        residual = nn.Parameter(read(layer.residual), requires_grad=False) if projects else None
        self.register_parameter("residual", residual)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(rows, in_features)` to `(rows, out_features)`."""
        out: Tensor = self.activation(nn.functional.linear(hidden, self.weight, self.bias))
        if self.residual is not None:
            return out + nn.functional.linear(hidden, self.residual)
        return out + hidden if self.adds_input else out


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """An encoder with the weights of a checkpoint.

    Attributes:
        model: The backbone.
        projection: The projection layers in order.
        fingerprint: Of these very weights, with the recipe.
    """

    model: Transformer
    projection: nn.Sequential
    fingerprint: str


def host(checkpoint: Checkpoint, *, device: str, dtype: torch.dtype) -> Hosted:
    """Load the backbone and the projection.

    Args:
        checkpoint: What to load.
        device: Where to.
        dtype: Float type of every parameter. Rotary positions are computed in float32.

    Raises:
        UnsupportedBackboneError: the backbone is one we refuse.
        TensorMismatchError: a tensor is missing, left over, or of the wrong shape.
        ProjectionError: two projections in one checkpoint differ.
        CorruptWeightsError: a file is damaged, or was changed since the checkpoint was opened.
    """
    row, shape = checkpoint.backbone, checkpoint.shape
    if shape is None:
        raise UnsupportedBackboneError(f"{checkpoint.name} is {row.name}: {row.refused}")
    with border(checkpoint.name):
        names = _compared(shape, checkpoint)
        tensors, digests = _read(checkpoint, dtype)
        layers = [
            ProjectionLayer(
                layer,
                lambda name, file=layer.file: tensors[file, name].to(dtype),  # type: ignore[misc]
            )
            for layer in checkpoint.projection
        ]
        _compare_duplicate(checkpoint, tensors)
        body = {
            ours: tensors.pop((checkpoint.tensors[name].file, name)).to(device)
            for name, ours in names.items()
        }
        language = "" if shape.adapter is None else shape.adapter.language
        with torch.inference_mode(), computing():
            model = Transformer(shape, Weights(body, row.names, language))
        fingerprint = checkpoint.fingerprint(digests)
        # Last, so that weights, configuration and tokenizer are those of one moment.
        if not checkpoint.files.unchanged:
            raise CorruptWeightsError(
                f"files of {checkpoint.name} were changed while it was being opened. Open it again "
                "when nobody writes to it"
            )
    return Hosted(
        model=model,
        projection=nn.Sequential(*layers).to(device).eval(),
        fingerprint=fingerprint,
    )


Loaded = dict[tuple[str, str], Tensor]


def _read(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Loaded, dict[str, str]]:
    """Every tensor that is used, by file and stored name, and the digest of each weight file.

    Those of the backbone have the dtype, as holding both would take memory twice; those of
    projections, which are small and compared with each other, have their own.
    """
    body = set(checkpoint.backbone_tensors.values())
    heads = [*checkpoint.projection, *filter(None, [checkpoint.duplicate])]
    exact = {
        (layer.file, name)
        for layer in heads
        for name in (layer.weight, layer.bias, layer.residual)
        if name is not None
    }
    tensors: Loaded = {}
    digests: dict[str, str] = {}
    for file in sorted({*checkpoint.weight_files, *(layer.file for layer in heads)}):

        def keep(name: str, tensor: Tensor, file: str = file) -> None:
            if (file, name) in exact:
                tensors[file, name] = tensor
            elif name in body and checkpoint.tensors[name].file == file:
                tensors[file, name] = tensor.to(dtype)

        digests[file] = load_weights(checkpoint.files, file, keep)
    digests = {file: digests[file] for file in checkpoint.weight_files}
    check_published(checkpoint.name, digests)
    return tensors, digests


def _compared(shape: Shape, checkpoint: Checkpoint) -> dict[str, str]:
    """Stored names, and the ones that are usual today; nothing may be missing or left over.

    `from_pretrained` of transformers only reports missing tensors and leaves them random. From what
    the files say of their tensors alone, before any is read: sizes that do not fit cost nothing.
    """
    row = checkpoint.backbone
    names = {name: our_name(bare) for bare, name in checkpoint.backbone_tensors.items()}
    found: dict[str, tuple[int, ...]] = {}
    for name, ours in names.items():
        info = checkpoint.tensors[name]
        if not info.is_float:
            raise TensorMismatchError(
                f"{name} of {checkpoint.name} has the type {info.dtype}, expected a float type: "
                "quantised weights are not hosted"
            )
        found[ours] = tuple(info.shape)
    expected = stored(shape, row.names)
    wrong = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of the wrong shape": [
            f"{name} {found[name]} instead of {size}"
            for name, size in expected.items()
            if name in found and found[name] != size
        ],
    }
    if any(wrong.values()):
        parts = [
            f"{len(names)} {kind}: {', '.join(names[:5])}" for kind, names in wrong.items() if names
        ]
        raise TensorMismatchError(
            f"the weights of {checkpoint.name} are not those of a {row.name} model; tensors "
            f"{'; '.join(parts)}. config.json and weights must come from the same checkpoint"
        )
    return names


def _compare_duplicate(checkpoint: Checkpoint, tensors: Mapping[tuple[str, str], Tensor]) -> None:
    """A checkpoint that describes its projection twice must mean the same one."""
    second = checkpoint.duplicate
    if second is None:
        return
    first = checkpoint.projection[0]
    one = tensors[first.file, first.weight].to(torch.float32)
    other = tensors[second.file, second.weight].to(torch.float32)
    if one.shape != other.shape or not torch.equal(one, other):
        raise ProjectionError(
            f"{checkpoint.name} carries two projections that differ: {first.weight} in "
            f"{first.file} and {second.weight} in {second.file}. Remove the one that was not "
            "trained with this backbone"
        )
