"""From a `Checkpoint` to modules with its weights: strict, nothing random, none of its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import PreTrainedModel

from colbert_rag.attention import ATTENTION
from colbert_rag.backbones import Backbone
from colbert_rag.checkpoint import Checkpoint, Projection
from colbert_rag.checkpoint.files import Folder
from colbert_rag.checkpoint.pickles import load_pickle
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


class _Unallocated(TorchFunctionMode):
    """While active, parameters take no memory and no time to initialise.

    Modules make parameters with `torch.empty` and buffers with other functions. Building a whole
    model on the meta device would lose the buffers that no checkpoint carries (positions, rotary
    frequencies).
    """

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
        return func(*args, **kwargs)


def host(
    checkpoint: Checkpoint, *, device: str, dtype: torch.dtype, language: str | None = None
) -> tuple[PreTrainedModel, nn.Sequential]:
    """Load the backbone and the projection.

    Args:
        checkpoint: What to load.
        device: Where to.
        dtype: Float type of every parameter. Rotary frequencies stay float32.
        language: Which adapter of a backbone that has one per language.

    Returns:
        The backbone, in evaluation mode, and the projection layers in order.

    Raises:
        UnsupportedBackboneError: the backbone is one we refuse.
        TensorMismatchError: a tensor is missing, left over, or of the wrong shape.
        ProjectionError: two projections in one checkpoint differ.
        MetadataError: the configuration is not one the backbone accepts.
    """
    row = checkpoint.backbone
    if row.refused:
        raise UnsupportedBackboneError(f"{checkpoint.name} is {row.name}: {row.refused}")
    reader = _Reader(checkpoint)
    model = _empty_model(checkpoint, language)
    _fill(model, checkpoint, reader, dtype)
    layers = [
        ProjectionLayer(layer, partial(reader.read, layer.file, dtype=dtype))
        for layer in checkpoint.projection
    ]
    _compare_duplicate(checkpoint, reader)
    head = nn.Sequential(*layers)
    # Through the base class, because transformers' own versions of these are not typed.
    nn.Module.eval(nn.Module.to(model, device))
    return model, head.to(device).eval()


class _Reader:
    """Reads tensors by file and stored name, opening each file once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = Folder(checkpoint.folder)
        self._files: dict[str, Callable[[str], Tensor]] = {}

    def read(self, file: str, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        if file not in self._files:
            self._files[file] = self._open(file)
        tensor = self._files[file](name)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def _open(self, file: str) -> Callable[[str], Tensor]:
        if file.endswith(".bin"):
            return load_pickle(self.folder, file).__getitem__
        try:
            opened = safe_open(self.folder.path / file, framework="pt", device="cpu")
        except SafetensorError as error:
            raise CorruptWeightsError(f"{file} cannot be read: {error}") from error
        read: Callable[[str], Tensor] = opened.get_tensor
        return read


def _empty_model(checkpoint: Checkpoint, language: str | None) -> PreTrainedModel:
    row = checkpoint.backbone
    module = row.module.rsplit(".", 1)[-1]
    # The one modelling module that is needed: importing transformers' Auto classes costs seconds.
    modelling = import_module(f"{row.module}.modeling_{module}")
    configuration = import_module(f"{row.module}.configuration_{module}")
    _refuse_more_layers_than_tensors(checkpoint)
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


def _refuse_more_layers_than_tensors(checkpoint: Checkpoint) -> None:
    # Even without memory for its numbers, a model of a million layers takes hours to set up.
    for name in ("num_hidden_layers", "n_layers"):
        layers = checkpoint.config.get(name, 0)
        if isinstance(layers, int) and layers > len(checkpoint.backbone_tensors):
            raise MetadataError(
                f"config.json of {checkpoint.name} has {name}={layers}, but there are weights for "
                f"{len(checkpoint.backbone_tensors)} tensors in all"
            )


def _choose_language(config: object, language: str | None) -> None:
    known = list(getattr(config, "languages", ()))
    chosen = language or getattr(config, "default_language", None) or "en_XX"
    if chosen not in known:
        raise ValueError(f"language is {chosen!r}, the checkpoint has adapters for {known}")
    config.default_language = chosen  # type: ignore[attr-defined]


def _fill(model: nn.Module, checkpoint: Checkpoint, reader: _Reader, dtype: torch.dtype) -> None:
    """Assign every tensor; `from_pretrained` only reports missing ones and leaves them random."""
    row = checkpoint.backbone
    state: dict[str, Tensor] = {}
    for name, stored in checkpoint.backbone_tensors.items():
        tensor = reader.read(checkpoint.tensors[stored].file, stored, dtype=dtype)
        state.update(_split(row, row.rename(name), tensor))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = sorted(set(expected) - set(state))
    unexpected = sorted(set(state) - set(expected))
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if missing or unexpected or misshapen:
        parts = [
            f"{len(names)} {kind}: {', '.join(names[:5])}"
            for kind, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of the wrong shape", misshapen),
            )
            if names
        ]
        raise TensorMismatchError(
            f"the weights of {checkpoint.name} are not those of a {row.name} model; tensors "
            f"{'; '.join(parts)}. config.json and weights must come from the same checkpoint"
        )
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False)


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


def _compare_duplicate(checkpoint: Checkpoint, reader: _Reader) -> None:
    """A checkpoint that describes its projection twice must mean the same one."""
    second = checkpoint.duplicate
    if second is None:
        return
    first = checkpoint.projection[0]
    one = reader.read(first.file, first.weight, dtype=torch.float32)
    other = reader.read(second.file, second.weight, dtype=torch.float32)
    if one.shape != other.shape or not torch.equal(one, other):
        raise ProjectionError(
            f"{checkpoint.name} carries two projections that differ: {first.weight} in "
            f"{first.file} and {second.weight} in {second.file}. Remove the one that was not "
            "trained with this backbone"
        )
