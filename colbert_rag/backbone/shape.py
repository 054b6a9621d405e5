"""The arithmetic of a text encoder, as values, and the tensors that it needs.

Published encoders differ in few things, and combine them freely. So there is no class for each:
`table.py` says how a `config.json` becomes a `Shape`, and `transformer.py` computes any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


@dataclass(frozen=True, slots=True)
class Norm:
    """Scales a vector to unit variance ("layer") or to unit mean square ("rms"), then by weights.

    Attributes:
        kind: "layer" subtracts the mean first, "rms" does not (Zhang and Sennrich, 2019).
        epsilon: Added under the root.
        bias: Whether a vector is added at the end.
    """

    kind: Literal["layer", "rms"]
    epsilon: float
    bias: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """A token takes from the tokens of its text, by the similarity of query and key.

    Attributes:
        heads: How many attend side by side.
        key_heads: How many have keys and values of their own; each serves `heads / key_heads`.
        head_width: Numbers of a head's query, key and value.
        bias: Whether the projections to query, key and value add one.
        output_bias: Whether the projection back does.
        rotary_base: Queries and keys are turned by their position, halves against each other, with
            frequencies `base ** (-2 i / head_width)` (Su et al., 2021; GPT-NeoX's layout); None
            leaves them as they are.
        alibi: Similarities lose `slope * distance`, a slope for each head (Press et al., 2022), in
            both directions.
        norm: Of every query and key, before they are turned.
        window: A token sees others at a distance below this; None for all.
        causal: Whether it sees only those before it, and itself.
    """

    heads: int
    key_heads: int
    head_width: int
    bias: bool
    output_bias: bool
    rotary_base: float | None = None
    alibi: bool = False
    norm: Norm | None = None
    window: int | None = None
    causal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A token takes from its neighbours, by fixed weights between two gates (LFM2, Liquid AI 2025).

    Attributes:
        taps: How many tokens each weighs.
        centred: Whether half of the others follow it; else all come before it.
        bias: Of every projection, and of the weights.
        sees_unattended: Whether tokens that attention must not see count here.
    """

    taps: int
    centred: bool
    bias: bool
    sees_unattended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """Each token by itself: wider, activated, and back.

    Attributes:
        width: Numbers in between.
        activation: What is applied there.
        gated: Whether it is applied to a second projection, which then multiplies the first
            (Shazeer, 2020: GEGLU with "gelu", SwiGLU with "silu").
        bias: Whether the projections that widen add one.
        output_bias: Whether the projection back does.
    """

    width: int
    activation: Activation
    gated: bool
    bias: bool
    output_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A narrow detour after the feed-forward layer, one for each language (X-MOD, Pfeiffer 2022).

    Attributes:
        width: Numbers in between.
        languages: For which there are weights.
        language: Whose are used.
        norm: "own", the feed-forward layer's ("shared"), or "none", before the detour.
        adds_normed: Whether the detour is added to what was normed, or to what came in.
    """

    width: int
    languages: tuple[str, ...]
    language: str
    norm: Literal["own", "shared", "none"]
    adds_normed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Mixing of tokens, then feed-forward, each added to what went in.

    Attributes:
        mixer: How tokens take from each other.
        feed_forward: What each does by itself.
        mixer_norm: Whether there is a norm for the mixer; ModernBERT's first layer has none.
    """

    mixer: Attention | Convolution
    feed_forward: FeedForward
    mixer_norm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A whole encoder, from ids to hidden states.

    Attributes:
        vocabulary: Rows of the table of words.
        width: Numbers of a hidden state.
        layers: From the first to the last.
        norm: What every norm of the encoder is.
        norm_first: Norms come before mixer and feed-forward, else after the addition.
        embedding_width: Numbers of an embedding; where it is not `width`, a projection follows.
        embedding_norm: Whether the sum of embeddings is normed.
        positions: Rows of a table of learned positions, or 0.
        types: Rows of a table of token types, of which the first is used, or 0.
        final_norm: Whether the last hidden states are normed.
        adapter: After every feed-forward layer.
        padding: Positions begin behind the id of padding, which has the position of that number,
            wherever it stands (RoBERTa); None where they begin at 0.
        longest: Tokens of the longest text, or None where there is no limit.
    """

    vocabulary: int
    width: int
    layers: tuple[Layer, ...]
    norm: Norm
    norm_first: bool
    embedding_width: int
    embedding_norm: bool
    positions: int = 0
    types: int = 0
    final_norm: bool = False
    adapter: Adapter | None = None
    padding: int | None = None
    longest: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One set of weights, by our name for it.

    Attributes:
        name: "query", "down" and so on.
        size: Of its weight.
        bias: Whether a bias of `size[0]` belongs to it.
        layer: Number of the layer, or None outside.
        language: Of an adapter, or "".
    """

    name: str
    size: tuple[int, ...]
    bias: bool = False
    layer: int | None = None
    language: str = ""


def parts(shape: Shape) -> Iterator[Part]:
    """Every set of weights that a shape needs."""
    width, narrow = shape.width, shape.embedding_width
    yield Part("word", (shape.vocabulary, narrow))
    if shape.positions:
        yield Part("position", (shape.positions, narrow))
    if shape.types:
        yield Part("type", (shape.types, narrow))
    if shape.embedding_norm:
        yield Part("embedding_norm", (narrow,), shape.norm.bias)
    if narrow != width:
        yield Part("embedding_projection", (width, narrow), bias=True)
    for number, layer in enumerate(shape.layers):
        if layer.mixer_norm:
            yield Part("mixer_norm", (width,), shape.norm.bias, number)
        mixer = layer.mixer
        found = _attention(mixer, width) if isinstance(mixer, Attention) else _taps(mixer, width)
        for name, size, bias in (*found, *_feed_forward(layer.feed_forward, width)):
            yield Part(name, size, bias, number)
        yield Part("feed_forward_norm", (width,), shape.norm.bias, number)
        if shape.adapter is not None:
            yield from _adapters(shape.adapter, shape, number)
    if shape.final_norm:
        yield Part("final_norm", (width,), shape.norm.bias)


_Found = Iterator[tuple[str, tuple[int, ...], bool]]


def _attention(mixer: Attention, width: int) -> _Found:
    rows, key_rows = mixer.heads * mixer.head_width, mixer.key_heads * mixer.head_width
    yield "query", (rows, width), mixer.bias
    yield "key", (key_rows, width), mixer.bias
    yield "value", (key_rows, width), mixer.bias
    if mixer.norm is not None:
        yield "query_norm", (mixer.head_width,), mixer.norm.bias
        yield "key_norm", (mixer.head_width,), mixer.norm.bias
    yield "output", (width, rows), mixer.output_bias


def _taps(mixer: Convolution, width: int) -> _Found:
    yield "convolution_in", (3 * width, width), mixer.bias
    yield "convolution", (width, 1, mixer.taps), mixer.bias
    yield "convolution_out", (width, width), mixer.bias


def _feed_forward(layer: FeedForward, width: int) -> _Found:
    if layer.gated:
        yield "gate", (layer.width, width), layer.bias
    yield "up", (layer.width, width), layer.bias
    yield "down", (width, layer.width), layer.output_bias


def _adapters(adapter: Adapter, shape: Shape, number: int) -> Iterator[Part]:
    if adapter.norm == "own":
        yield Part("adapter_norm", (shape.width,), shape.norm.bias, number)
    for language in adapter.languages:
        yield Part("adapter_down", (adapter.width, shape.width), True, number, language)
        yield Part("adapter_up", (shape.width, adapter.width), True, number, language)


Names = Mapping[str, str]
"""What a family's files call our parts: part -> stored name without `.weight`, with `{layer}` and
`{language}` in it. Parts that are stored as one tensor, one below the other, share a key: `"query
key value"`."""


def stored(shape: Shape, names: Names) -> dict[str, tuple[int, ...]]:
    """Every tensor that the files must hold, no more and no fewer: stored name -> size."""
    joined = {part: key for key in names for part in key.split()}
    sizes: dict[str, tuple[int, ...]] = {}
    for part in parts(shape):
        name = names[joined[part.name]].format(layer=part.layer, language=part.language)
        rows, *rest = part.size
        kinds = {"weight": (rows, *rest)} | ({"bias": (rows,)} if part.bias else {})
        for kind, (more, *others) in kinds.items():
            above = sizes.get(f"{name}.{kind}", (0,))[0]
            sizes[f"{name}.{kind}"] = (above + more, *others)
    return sizes
