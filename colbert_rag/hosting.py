"""From a `Checkpoint` to modules with its weights: strict, nothing random, none of its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import chain

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import PreTrainedModel

from colbert_rag.attention import ATTENTION
from colbert_rag.backbones import Backbone
from colbert_rag.checkpoint import Checkpoint, Projection
from colbert_rag.checkpoint.border import border
from colbert_rag.checkpoint.loading import load_weights
from colbert_rag.checkpoint.source import check_published
from colbert_rag.errors import (
    ColBERTRagError,
    CorruptWeightsError,
    MetadataError,
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
        stored = layer.residual not in ("none", "identity")
        residual = nn.Parameter(read(layer.residual), requires_grad=False) if stored else None
        self.register_parameter("residual", residual)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(rows, in_features)` to `(rows, out_features)`."""
        out: Tensor = self.activation(nn.functional.linear(hidden, self.weight, self.bias))
        if self.residual is not None:
            return out + nn.functional.linear(hidden, self.residual)
        return out + hidden if self.adds_input else out


MAX_BUFFER_BYTES = 64 * 2**20
"""What a model may make beside its parameters: positions and rotary frequencies take a thousandth
of it, and a configuration that says otherwise must not take the machine's memory."""


class _Unallocated(TorchFunctionMode):
    """While active, parameters take no memory and no time to initialise, and buffers little.

    Modules make parameters with `torch.empty` and buffers with other functions. Building a whole
    model on the meta device would lose the buffers that no checkpoint carries (positions, rotary
    frequencies).
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and made.device.type != "meta":
            self.bytes += made.nbytes
            if self.bytes > MAX_BUFFER_BYTES:
                raise ValueError(f"its buffers take more than {MAX_BUFFER_BYTES:,} bytes")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """Modules with the weights of a checkpoint.

    Attributes:
        model: The backbone, in evaluation mode.
        projection: The projection layers in order.
        fingerprint: Of these very weights, with the recipe.
    """

    model: PreTrainedModel
    projection: nn.Sequential
    fingerprint: str


def host(
    checkpoint: Checkpoint, *, device: str, dtype: torch.dtype, language: str | None = None
) -> Hosted:
    """Load the backbone and the projection.

    Args:
        checkpoint: What to load.
        device: Where to.
        dtype: Float type of every parameter. Rotary frequencies stay float32.
        language: Which adapter of a backbone that has one per language.

    Raises:
        UnsupportedBackboneError: the backbone is one we refuse.
        TensorMismatchError: a tensor is missing, left over, or of the wrong shape.
        ProjectionError: two projections in one checkpoint differ.
        MetadataError: the configuration is not one the backbone accepts.
        CorruptWeightsError: a file is damaged, or was changed since the checkpoint was opened.
    """
    row = checkpoint.backbone
    if row.refused:
        raise UnsupportedBackboneError(f"{checkpoint.name} is {row.name}: {row.refused}")
    with border(checkpoint.name):
        model = _empty_model(checkpoint, language)
        names = _compared(model, checkpoint)
        tensors, digests = _read(checkpoint, dtype)
        state = dict(
            chain.from_iterable(
                _split(row, name, tensors[checkpoint.tensors[stored].file, stored])
                for stored, name in names.items()
            )
        )
        model.load_state_dict(state, strict=True, assign=True)
        model.requires_grad_(False)
        layers = [
            ProjectionLayer(
                layer,
                lambda name, file=layer.file: tensors[file, name].to(dtype),  # type: ignore[misc]
            )
            for layer in checkpoint.projection
        ]
        _compare_duplicate(checkpoint, tensors)
        fingerprint = checkpoint.fingerprint(digests)
        # Last, so that weights, configuration and tokenizer are those of one moment.
        if not checkpoint.files.unchanged:
            raise CorruptWeightsError(
                f"files of {checkpoint.name} were changed while it was being opened. Open it again "
                "when nobody writes to it"
            )
    # Through the base class, because transformers' own versions of these are not typed.
    nn.Module.eval(nn.Module.to(model, device))
    head = nn.Sequential(*layers).to(device).eval()
    return Hosted(model=model, projection=head, fingerprint=fingerprint)


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


def _empty_model(checkpoint: Checkpoint, language: str | None) -> PreTrainedModel:
    row = checkpoint.backbone
    module = row.module.rsplit(".", 1)[-1]
    # The one modelling module that is needed: importing transformers' Auto classes costs seconds.
    modelling = import_module(f"{row.module}.modeling_{module}")
    configuration = import_module(f"{row.module}.configuration_{module}")
    try:
        config = getattr(configuration, row.configuration).from_dict(
            row.prepare(dict(checkpoint.config))
        )
        config._attn_implementation = ATTENTION
        if row.has_languages:
            _choose_language(config, language)
        options = {"add_pooling_layer": False} if row.takes_pooler else {}
        # Buffers are made where the caller's default device says, unless told otherwise.
        with torch.device("cpu"), _Unallocated():
            model: PreTrainedModel = getattr(modelling, row.model)(config, **options)
    except ColBERTRagError:
        raise
    # Whatever transformers makes of sizes and types that fit no model: a dozen classes, some of
    # them the hub client's own.
    except Exception as error:
        raise MetadataError(
            f"config.json of {checkpoint.name} does not describe a {row.name} model: {error}"
        ) from error
    return model


def _choose_language(config: object, language: str | None) -> None:
    known = list(getattr(config, "languages", ()))
    chosen = language or getattr(config, "default_language", None) or "en_XX"
    if chosen not in known:
        raise ValueError(f"language is {chosen!r}, the checkpoint has adapters for {known}")
    config.default_language = chosen  # type: ignore[attr-defined]


def _compared(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Stored names and what the host class calls them; nothing may be missing or left over.

    `from_pretrained` only reports missing tensors and leaves them random. From what the files
    say of their tensors alone, before any is read: sizes that do not fit cost nothing.
    """
    row = checkpoint.backbone
    names = {stored: row.rename(name) for name, stored in checkpoint.backbone_tensors.items()}
    found: dict[str, tuple[int, ...]] = {}
    for stored, name in names.items():
        info = checkpoint.tensors[stored]
        if not info.is_float:
            raise TensorMismatchError(
                f"{stored} of {checkpoint.name} has the type {info.dtype}, expected a float type: "
                "quantised weights are not hosted"
            )
        # On the meta device a tensor is its shape.
        stand_in = torch.empty(info.shape, device="meta")
        found |= {part: tuple(block.shape) for part, block in _split(row, name, stand_in)}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of the wrong shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
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


def _split(row: Backbone, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Cut a fused tensor into the parts the host class keeps apart: equal blocks of rows."""
    for fused, parts in row.splits:
        if fused in name:
            blocks = tensor.chunk(len(parts))
            return [
                (name.replace(fused, part), block)
                for part, block in zip(parts, blocks, strict=True)
            ]
    return [(name, tensor)]


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
