"""Reads the projection layers of a checkpoint, and refuses any that does not fit."""

from __future__ import annotations

from colbert_rag.checkpoint.files import Folder, Section, join
from colbert_rag.checkpoint.recipe import Projection
from colbert_rag.checkpoint.tensors import TensorInfo
from colbert_rag.checkpoint.weights import index_separate_head, index_tensors
from colbert_rag.errors import MissingProjectionError, ProjectionError, UnsupportedModuleError

ACTIVATIONS = {
    f"torch.nn.modules.{module}.{name}": name
    for module, name in (
        ("linear", "Identity"),
        ("activation", "ReLU"),
        ("activation", "GELU"),
        ("activation", "Tanh"),
        ("activation", "SiLU"),
    )
} | {f"torch.nn.{name}": name for name in ("Identity", "ReLU", "GELU", "Tanh", "SiLU")}
"""Every activation a Dense layer may name, by exact dotted path. sentence-transformers replaces an
unknown one by Tanh and goes on, which gives wrong scores without an error."""


def inline_projection(head: TensorInfo, bias: TensorInfo | None) -> Projection:
    """One linear layer, such as Stanford keeps beside the backbone.

    Raises:
        ProjectionError: the bias does not fit the weight.
    """
    out_features, in_features = head.shape
    _check_bias(head, bias)
    return Projection(
        in_features=in_features,
        out_features=out_features,
        weight=head.name,
        file=head.file,
        bias=bias.name if bias else None,
    )


def dense_projection(folder: Folder, sub: str, *, allow_pickle: bool) -> Projection:
    """One PyLate or sentence-transformers Dense layer.

    Raises:
        MissingProjectionError: the layer has no weight.
        ProjectionError: tensors and configuration disagree.
        UnsupportedModuleError: the activation is not in the allowlist.
    """
    config = folder.read(join(sub, "config.json"))
    tensors = index_tensors(folder, sub, allow_pickle=allow_pickle)
    if "linear.weight" not in tensors or len(tensors["linear.weight"].shape) != 2:
        raise MissingProjectionError(
            f"{sub} has no linear.weight of two dimensions; tensors seen: "
            f"{', '.join(sorted(tensors)[:5]) or 'none'}"
        )
    weight = tensors["linear.weight"]
    out_features, in_features = weight.shape
    for key, found in (("in_features", in_features), ("out_features", out_features)):
        stated = config.get(key, int)
        if stated is not None and stated != found:
            raise ProjectionError(
                f"{sub}: config.json says {key} {stated}, but linear.weight has shape "
                f"{weight.shape}"
            )
    unknown = sorted(set(tensors) - {"linear.weight", "linear.bias", "residual.weight"})
    if unknown:
        shown = ", ".join(unknown[:5])
        raise ProjectionError(f"{sub} holds tensors of no known Dense layer: {shown}")
    if config.get("bias", bool) and "linear.bias" not in tensors:
        raise ProjectionError(f"{sub}: config.json promises a bias, but there is no linear.bias")
    _check_bias(weight, tensors.get("linear.bias"))
    return Projection(
        in_features=in_features,
        out_features=out_features,
        weight="linear.weight",
        file=weight.file,
        activation=_activation(sub, config),
        bias="linear.bias" if "linear.bias" in tensors else None,
        residual=_residual(sub, config, weight, tensors.get("residual.weight")),
    )


def separate_projection(folder: Folder, sub: str, *, allow_pickle: bool) -> Projection:
    """The projection that FlagEmbedding keeps in a file of its own: `weight` and `bias`, no more.

    Raises:
        PickleWeightsError: it is a pickle, and `allow_pickle` is false.
        ProjectionError: the file holds anything else, or shapes that do not fit.
    """
    file, tensors = index_separate_head(folder, sub, allow_pickle=allow_pickle)
    weight = tensors.get("weight")
    if set(tensors) != {"weight", "bias"} or weight is None or len(weight.shape) != 2:
        found = {name: tensors[name].shape for name in sorted(tensors)[:5]}
        raise ProjectionError(
            f"{file} holds {found or 'nothing'}, expected a weight of two dimensions and a bias, "
            "and nothing else. Is this the file that was published?"
        )
    return inline_projection(weight, tensors["bias"])


def same_as_inline(inline: Projection, layers: tuple[Projection, ...]) -> Projection:
    """The one Dense layer that repeats the inline projection; their values are compared later.

    Raises:
        ProjectionError: the Dense layers compute something else.
    """
    first = layers[0]
    plain = first.activation == "Identity" and first.residual == "none"
    if len(layers) > 1 or not plain or (first.bias is None) != (inline.bias is None):
        raise ProjectionError(
            f"the checkpoint carries two projections that differ: {inline.weight} beside the "
            f"backbone, and {len(layers)} Dense layer(s) from {first.file} on with activation "
            f"{first.activation}. Remove the one that was not trained with this backbone"
        )
    return first


def _check_bias(weight: TensorInfo, bias: TensorInfo | None) -> None:
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ProjectionError(
            f"{bias.file}: {bias.name} has shape {bias.shape}, expected {weight.shape[:1]} beside "
            f"{weight.name} of shape {weight.shape}"
        )


def _activation(sub: str, config: Section) -> str:
    name = config.get("activation_function", str)
    if name is None:
        return "Identity"
    if name not in ACTIVATIONS:
        raise UnsupportedModuleError(
            f"{sub}: activation_function is {name!r}, expected one of "
            f"{', '.join(sorted(set(ACTIVATIONS.values())))} of torch.nn. No other class is "
            "imported, because importing a name from a checkpoint would run its code"
        )
    return ACTIVATIONS[name]


def _residual(sub: str, config: Section, weight: TensorInfo, residual: TensorInfo | None) -> str:
    out_features, in_features = weight.shape
    if not config.get("use_residual", bool):
        if residual is not None:
            raise ProjectionError(
                f"{sub} holds a residual.weight, but its config.json does not say use_residual"
            )
        return "none"
    if in_features == out_features and residual is None:
        return "identity"
    if residual is None:
        raise ProjectionError(
            f"{sub}: use_residual from {in_features} to {out_features} needs a residual.weight, "
            "which is not there"
        )
    if residual.shape != weight.shape:
        raise ProjectionError(
            f"{sub}: residual.weight has shape {residual.shape}, expected {weight.shape}"
        )
    return residual.name


def check_chain(layers: tuple[Projection, ...], hidden_size: int) -> None:
    """Each layer takes what the one before gives, starting from the backbone.

    Raises:
        ProjectionError: a width does not match.
    """
    width, giver = hidden_size, "the backbone's hidden states"
    for layer in layers:
        if layer.in_features != width:
            raise ProjectionError(
                f"{layer.file}: {layer.weight} takes {layer.in_features} features, but {giver} "
                f"have {width}. This projection belongs to another backbone"
            )
        width, giver = layer.out_features, f"the outputs of {layer.file}"
