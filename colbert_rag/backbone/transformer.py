"""One packed forward pass for every shape: texts side by side in one row, from ids to states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from colbert_rag.backbone.attention import attend
from colbert_rag.backbone.linear import Linear, fuses
from colbert_rag.backbone.packing import Packing
from colbert_rag.backbone.shape import (
    Adapter,
    Attention,
    Convolution,
    FeedForward,
    Layer,
    Names,
    Norm,
    Shape,
)

STEP = 32
"""On a CPU, rows are computed in multiples of this: the library compiles code for every number of
rows that it meets, which takes as long as some hundred rows, and keeps it."""


class Weights:
    """A checkpoint's tensors by the names of our parts; each is handed out once.

    What is handed out is not held here, so that weights that are laid out anew are in memory twice
    one by one, and not all at once.
    """

    def __init__(self, tensors: dict[str, Tensor], names: Names, language: str = "") -> None:
        """Take over tensors by their stored names, with `.weight` or `.bias` at the end."""
        self._tensors = tensors
        self._keys = {part: key.split() for key in names for part in key.split()}
        self._names = {part: names[" ".join(parts)] for part, parts in self._keys.items()}
        self._language = language

    def table(self, part: str) -> Tensor:
        """A weight without a bias."""
        return self._take(part, "weight", None)

    def linear(self, *parts: str, layer: int | None = None) -> Linear:
        """One layer that computes all parts, one after another in its columns."""
        return Linear(*self.pair(*parts, layer=layer))

    def pair(self, *parts: str, layer: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of all parts, one below the other."""
        weight, bias = (self._joined(parts, kind, layer) for kind in ("weight", "bias"))
        assert weight is not None
        return weight, bias

    def _joined(self, parts: tuple[str, ...], kind: str, layer: int | None) -> Tensor | None:
        first = self._name(parts[0], kind, layer)
        if first not in self._tensors:
            return None
        if list(parts) == self._keys[parts[0]]:
            return self._tensors.pop(first)
        return torch.cat([self._take(part, kind, layer) for part in parts])

    def _take(self, part: str, kind: str, layer: int | None) -> Tensor:
        """One part, cut out of what is stored as one."""
        name, together = self._name(part, kind, layer), self._keys[part]
        last = part == together[-1]
        whole = self._tensors.pop(name) if last else self._tensors[name]
        return whole.chunk(len(together))[together.index(part)]

    def _name(self, part: str, kind: str, layer: int | None) -> str:
        return f"{self._names[part].format(layer=layer, language=self._language)}.{kind}"


Normalise = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class _Context:
    """What all layers of one pass share.

    Attributes:
        packing: How the row is cut into texts.
        turns: Cosines and sines of every token's position, `(tokens, 1, head_width / 2)` each,
            float32, by the base of their frequencies and the width of a head.
        texts: Number of every token's text, `(tokens,)`; None where no layer asks.
    """

    packing: Packing
    turns: Mapping[tuple[float, int], tuple[Tensor, Tensor]]
    texts: Tensor | None


class Transformer:
    """A text encoder with its weights, on one device. Nothing changes after it was built."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        """Take the weights of a shape; `stored(shape, names)` says which they are."""
        self.shape = shape
        self._words = weights.table("word")
        self.device, self.dtype = self._words.device, self._words.dtype
        # The first type is the only one here, so that its row is added to every position.
        self._places = weights.table("position") if shape.positions else None
        self._always = weights.table("type")[0] if shape.types else None
        self._embedding_norm = _norm(
            weights, "embedding_norm", shape.norm if shape.embedding_norm else None
        )
        wider = shape.embedding_width != shape.width
        self._wider = weights.linear("embedding_projection") if wider else None
        self._layers = [
            _Layer(shape, layer, weights, number) for number, layer in enumerate(shape.layers)
        ]
        self._final_norm = _norm(weights, "final_norm", shape.norm if shape.final_norm else None)
        mixers = [layer.mixer for layer in shape.layers]
        self._bases = {
            (mixer.rotary_base, mixer.head_width)
            for mixer in mixers
            if isinstance(mixer, Attention) and mixer.rotary_base is not None
        }
        self._convolves = any(isinstance(mixer, Convolution) for mixer in mixers)
        self._step = STEP if self.device.type == "cpu" and fuses(self.dtype) else 1

    def __call__(self, ids: Tensor, places: Tensor, packing: Packing) -> Tensor:
        """Encode texts that share one row.

        Args:
            ids: `(tokens,)`, int64, on the encoder's device.
            places: Position of every token in its text, as the shape counts, `(tokens,)`.
            packing: How the row is cut into texts.

        Returns:
            Hidden states, `(tokens, width)`, of the encoder's dtype.
        """
        tokens = len(ids)
        missing = -tokens % self._step
        if missing:
            ids, places = (functional.pad(part, (0, missing)) for part in (ids, places))
        context = _Context(
            packing=packing,
            turns={key: _turns(places, *key) for key in self._bases},
            texts=_texts(packing, len(ids)) if self._convolves else None,
        )
        hidden = self._embed(ids, places)
        for layer in self._layers:
            hidden = layer(hidden, context)
        return self._final_norm(hidden)[:tokens]

    def _embed(self, ids: Tensor, places: Tensor) -> Tensor:
        hidden = functional.embedding(ids, self._words)
        if self._always is not None:
            hidden = hidden + self._always
        if self._places is not None:
            hidden = hidden + functional.embedding(places, self._places)
        hidden = self._embedding_norm(hidden)
        return hidden if self._wider is None else self._wider(hidden)


def _norm(weights: Weights, part: str, norm: Norm | None, layer: int | None = None) -> Normalise:
    """A norm with its weights, or nothing to do."""
    if norm is None:
        return lambda hidden: hidden
    weight, bias = weights.pair(part, layer=layer)
    size, epsilon = tuple(weight.shape), norm.epsilon
    if norm.kind == "layer":
        return lambda hidden: functional.layer_norm(hidden, size, weight, bias, epsilon)
    # Queries and keys may be of a wider type than weights.
    return lambda hidden: functional.rms_norm(hidden, size, weight.to(hidden.dtype), epsilon)


class _Layer:
    """Mixing and feed-forward, each added to what went in, with the norms before or after."""

    def __init__(self, shape: Shape, layer: Layer, weights: Weights, number: int) -> None:
        norm = shape.norm if layer.mixer_norm else None
        self._mixer_norm = _norm(weights, "mixer_norm", norm, number)
        kind = _Attention if isinstance(layer.mixer, Attention) else _Convolution
        self._mix = kind(layer.mixer, weights, number)  # type: ignore[arg-type]
        self._feed_forward_norm = _norm(weights, "feed_forward_norm", shape.norm, number)
        self._feed_forward = _FeedForward(layer.feed_forward, weights, number)
        self._adapt: Callable[[Tensor], Tensor] = lambda hidden: hidden
        if shape.adapter is not None:
            self._adapt = _Adapter(shape, shape.adapter, weights, number, self._feed_forward_norm)
        self._norm_first = shape.norm_first

    def __call__(self, hidden: Tensor, context: _Context) -> Tensor:
        if self._norm_first:
            hidden = self._mix(self._mixer_norm(hidden), hidden, context)
            return self._adapt(self._feed_forward(self._feed_forward_norm(hidden), hidden))
        hidden = self._mixer_norm(self._mix(hidden, hidden, context))
        return self._feed_forward_norm(self._adapt(self._feed_forward(hidden, hidden)))


class _Attention:
    def __init__(self, how: Attention, weights: Weights, number: int) -> None:
        self._how = how
        self._project = weights.linear("query", "key", "value", layer=number)
        norms = how.norm
        self._query_norm = _norm(weights, "query_norm", norms, number)
        self._key_norm = _norm(weights, "key_norm", norms, number)
        self._output = weights.linear("output", layer=number)

    def __call__(self, hidden: Tensor, plus: Tensor, context: _Context) -> Tensor:
        how = self._how
        states = self._project(hidden).unflatten(-1, (-1, how.head_width))
        if states.device.type == "cpu":
            # Products of bfloat16 as small as those of attention are slower than float32's, though
            # the large ones of linear layers are faster. It is also more exact.
            states = states.float()
        both, value = states.split([how.heads + how.key_heads, how.key_heads], dim=1)
        if how.norm is not None:
            query, key = both.split([how.heads, how.key_heads], dim=1)
            both = torch.cat([self._query_norm(query), self._key_norm(key)], dim=1)
        if how.rotary_base is not None:
            both = _turned(both, *context.turns[how.rotary_base, how.head_width])
        query, key = both.split([how.heads, how.key_heads], dim=1)
        overflows = hidden.dtype == torch.float16
        mixed = attend(query, key, value, how, context.packing, overflows=overflows)
        return self._output(mixed.flatten(1).to(hidden.dtype), plus=plus)


class _Convolution:
    def __init__(self, how: Convolution, weights: Weights, number: int) -> None:
        self._how = how
        self._project = weights.linear("convolution_in", layer=number)
        weight, self._bias = weights.pair("convolution", layer=number)
        self._taps = weight[:, 0].T.contiguous()  # (taps, width)
        self._output = weights.linear("convolution_out", layer=number)

    def __call__(self, hidden: Tensor, plus: Tensor, context: _Context) -> Tensor:
        seen = context.packing.seen
        if seen is not None and not self._how.sees_unattended:
            hidden = hidden.index_fill(0, seen.hidden, 0.0)
        before, after, gated = self._project(hidden).chunk(3, dim=-1)
        mixed = after * self._convolve(before * gated, context.texts)
        return self._output(mixed, plus=plus)

    def _convolve(self, rows: Tensor, texts: Tensor | None) -> Tensor:
        """Weigh neighbours of the same text; what lies outside of it counts as 0."""
        assert texts is not None
        taps = len(self._taps)
        last = (taps - 1) // 2 if self._how.centred else 0
        out = torch.zeros_like(rows) if self._bias is None else self._bias.expand_as(rows).clone()
        for tap, distance in enumerate(range(last - taps + 1, last + 1)):
            # Token t takes from token t + distance.
            low, high = max(-distance, 0), len(rows) - max(distance, 0)
            if low >= high:
                continue
            here, there = slice(low, high), slice(low + distance, high + distance)
            same = (texts[here] == texts[there]).unsqueeze(1)
            out[here] += torch.where(same, rows[there] * self._taps[tap], 0.0)
        return out


class _FeedForward:
    def __init__(self, how: FeedForward, weights: Weights, number: int) -> None:
        self._activation = how.activation
        self._gate = weights.linear("gate", layer=number) if how.gated else None
        self._up = weights.linear("up", layer=number)
        self._down = weights.linear("down", layer=number)

    def __call__(self, hidden: Tensor, plus: Tensor) -> Tensor:
        if self._gate is None:
            inner = self._up(hidden, activation=self._activation)
        else:
            inner = self._up(hidden, times=self._gate(hidden, activation=self._activation))
        return self._down(inner, plus=plus)


class _Adapter:
    def __init__(
        self, shape: Shape, how: Adapter, weights: Weights, number: int, shared: Normalise
    ) -> None:
        self._norm = (
            shared
            if how.norm == "shared"
            else _norm(weights, "adapter_norm", shape.norm if how.norm == "own" else None, number)
        )
        self._adds_normed = how.adds_normed
        self._activation = shape.layers[number].feed_forward.activation
        self._down = weights.linear("adapter_down", layer=number)
        self._up = weights.linear("adapter_up", layer=number)

    def __call__(self, hidden: Tensor) -> Tensor:
        normed = self._norm(hidden)
        inner = self._down(normed, activation=self._activation)
        return self._up(inner, plus=normed if self._adds_normed else hidden)


def _turns(places: Tensor, base: float, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, `(tokens, 1, width / 2)`, float32."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=places.device) / width
    angles = (places[:, None].float() * (1.0 / base**exponents)).unsqueeze(1)
    return angles.cos(), angles.sin()


def _turned(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Each head's halves turned against each other, in float32."""
    one, other = states.float().chunk(2, dim=-1)
    turned = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    first, second = turned.chunk(2, dim=-1)
    # Written where they belong: this is bound by memory, and was a tenth of ModernBERT's time.
    torch.mul(one, cosines, out=first).addcmul_(other, sines, value=-1)
    torch.mul(other, cosines, out=second).addcmul_(one, sines)
    return turned.to(states.dtype)


def _texts(packing: Packing, tokens: int) -> Tensor:
    """The number of every token's text; rows that fill a step belong to none."""
    rows = torch.arange(tokens, dtype=torch.int32, device=packing.boundaries.device)
    return torch.bucketize(rows, packing.boundaries[1:], right=True)
