"""LFM2.5-ColBERT's and pplx-embed-v1-late's architectures in plain torch, on the published tensors.

Both are decoders made to look both ways. Written from `Lfm2BidirectionalModel` of transformers
(contributed in June 2026, not in the version that the tests install) and from the description of
both repositories' own code in public ports; shares nothing with transformers or with us. With
`causal=True` they are the decoders, so that the parts can be compared with transformers.

The convolution of LFM2.5 reads unattended tokens as they are: the ColBERT repository's code does
not zero them, though the one of LFM2.5-Embedding does. So these are the values of one text alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.families import FAMILIES
from tests.helpers.oracle import (
    FUNCTIONS,
    Body,
    PlainOracle,
    load_layer,
    load_tensors,
    pylate_oracle,
)
from tests.helpers.tiny import Spec

Config = Mapping[str, Any]
Weights = Mapping[str, Tensor]


def bidirectional_oracle(spec: Spec, folder: Path, **changes: Any) -> PlainOracle:
    """The architecture of a tiny PyLate checkpoint behind PyLate's tokens."""
    layers = [
        load_layer(folder / f"{position}_Dense", FUNCTIONS[head.activation], residual=head.residual)
        for position, head in enumerate(spec.heads, start=1)
    ]
    config = json.loads((folder / "config.json").read_text())
    body = BODIES[spec.backbone](load_tensors(folder), config)
    return pylate_oracle(folder, FAMILIES[spec.backbone].model, layers, body=body, **changes)


def lfm2_body(tensors: Weights, config: Config, *, causal: bool = False) -> Body:
    """Pre-norm layers of a gated three-tap convolution or attention, then a SwiGLU."""
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    epsilon = config["norm_eps"]

    def convolve(rows: Tensor, name: str) -> Tensor:
        before, after, values = F.linear(rows, weights[f"{name}.in_proj.weight"]).chunk(3, dim=-1)
        taps = weights[f"{name}.conv.weight"][:, 0]  # (width, 3), the last tap is the newest token
        outside = torch.zeros(2, rows.shape[1])
        values = before * values
        # Tap i of a causal convolution sees token t - 2 + i; of a centred one, t - 1 + i.
        padded = torch.cat([outside, values] if causal else [outside[:1], values, outside[:1]])
        summed = sum(padded[tap : tap + len(rows)] * taps[:, tap] for tap in range(3))
        return F.linear(after * summed, weights[f"{name}.out_proj.weight"])

    def run(ids: list[int], attention: list[bool]) -> Tensor:
        rows = weights["embed_tokens.weight"][torch.tensor(ids)]
        for layer, kind in enumerate(config["layer_types"]):
            name = f"layers.{layer}"
            normed = _norm(rows, weights[f"{name}.operator_norm.weight"], epsilon)
            if kind == "conv":
                rows = rows + convolve(normed, f"{name}.conv")
            else:
                names = ("q_layernorm", "k_layernorm", "out_proj")
                rows = rows + _attend(
                    normed, weights, f"{name}.self_attn", names, config, epsilon, attention, causal
                )
            normed = _norm(rows, weights[f"{name}.ffn_norm.weight"], epsilon)
            rows = rows + _feed(normed, weights, f"{name}.feed_forward", ("w1", "w3", "w2"))
        return _norm(rows, weights["embedding_norm.weight"], epsilon)

    return run


def qwen3_body(tensors: Weights, config: Config, *, causal: bool = False) -> Body:
    """Pre-norm layers of attention and a SwiGLU; queries and keys are normalised in each head."""
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    epsilon = config["rms_norm_eps"]

    def run(ids: list[int], attention: list[bool]) -> Tensor:
        rows = weights["embed_tokens.weight"][torch.tensor(ids)]
        for layer in range(config["num_hidden_layers"]):
            name = f"layers.{layer}"
            normed = _norm(rows, weights[f"{name}.input_layernorm.weight"], epsilon)
            names = ("q_norm", "k_norm", "o_proj")
            rows = rows + _attend(
                normed, weights, f"{name}.self_attn", names, config, epsilon, attention, causal
            )
            normed = _norm(rows, weights[f"{name}.post_attention_layernorm.weight"], epsilon)
            names = ("gate_proj", "up_proj", "down_proj")
            rows = rows + _feed(normed, weights, f"{name}.mlp", names)
        return _norm(rows, weights["norm.weight"], epsilon)

    return run


BODIES: dict[str, Callable[[Weights, Config], Body]] = {
    "lfm2-bidirectional": lfm2_body,
    "qwen3-bidirectional": qwen3_body,
}


def _norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return rows / (rows.square().mean(dim=-1, keepdim=True) + epsilon).sqrt() * weight


def _feed(rows: Tensor, weights: Weights, name: str, names: tuple[str, str, str]) -> Tensor:
    gate, up, down = (weights[f"{name}.{part}.weight"] for part in names)
    return F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)


def _attend(
    rows: Tensor,
    weights: Weights,
    name: str,
    names: tuple[str, str, str],
    config: Config,
    epsilon: float,
    attention: list[bool],
    causal: bool,
) -> Tensor:
    """Grouped attention: neighbouring query heads share one key head."""
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    query_norm, key_norm, out = (weights[f"{name}.{part}.weight"] for part in names)
    # h = heads, t = tokens, w = width of a head
    query, key, value = (
        F.linear(rows, weights[f"{name}.{part}_proj.weight"]).view(len(rows), count, -1)
        for part, count in (("q", heads), ("k", key_heads), ("v", key_heads))
    )
    base = (config.get("rope_parameters") or config)["rope_theta"]
    query = _rotate(_norm(query, query_norm, epsilon), base)
    key = _rotate(_norm(key, key_norm, epsilon), base)
    mixed = []
    visible = torch.tensor(attention).expand(len(rows), len(rows))
    visible = visible.tril() if causal else visible
    for head in range(heads):
        served = head // (heads // key_heads)
        logits = query[:, head] @ key[:, served].T / math.sqrt(query.shape[-1])
        seen = logits.masked_fill(~visible, -math.inf).softmax(dim=-1)
        mixed.append(seen @ value[:, served])
    return F.linear(torch.cat(mixed, dim=-1), out)


def _rotate(heads: Tensor, base: float) -> Tensor:
    """Rotary positions over the whole head, halves rotated against each other (NeoX)."""
    tokens, _, width = heads.shape
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(tokens, dtype=torch.float32)[:, None, None] * frequencies
    first, second = heads.chunk(2, dim=-1)
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
