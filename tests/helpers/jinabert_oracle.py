"""jina-colbert-v1-en's published architecture in plain torch, on the published tensors.

Written from backends/candle/src/models/jina.rs and backends/candle/src/alibi.rs of
huggingface/text-embeddings-inference (@0d124dc), and Press et al., "Train Short, Test
Long", section 3, for the slopes; shares nothing with transformers or with us.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.oracle import Body, PlainOracle, load_tensors, stanford_oracle


def jinabert_oracle(folder: Path, **changes: Any) -> PlainOracle:
    """The architecture behind Stanford's tokens."""
    config = json.loads((folder / "config.json").read_text())
    body = jinabert_body(load_tensors(folder), heads=config["num_attention_heads"])
    return stanford_oracle(folder, "", body=body, **changes)


def slopes(heads: int) -> list[float]:
    """The slope of each head: powers of 2**(-8/n) for the largest power of two n up to `heads`.

    Heads beyond n take every other slope of 2n heads, from the first on.
    """
    known = 2 ** int(math.log2(heads))
    first = [2.0 ** (-8.0 * (position + 1) / known) for position in range(known)]
    between = [2.0 ** (-8.0 * (position + 1) / (2 * known)) for position in range(0, 2 * known, 2)]
    return first + between[: heads - known]


def jinabert_body(
    tensors: Mapping[str, Tensor], *, heads: int, alibi: bool = True, epsilon: float = 1e-12
) -> Body:
    """Post-norm layers, attention with biases and ALiBi both ways, an exact GELU that is gated."""
    weights = {
        name.removeprefix("bert."): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith("bert.")
    }
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder."))

    def linear(rows: Tensor, name: str) -> Tensor:
        return F.linear(rows, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(rows: Tensor, name: str) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(rows, rows.shape[-1:], weight, bias, epsilon)

    def attend(rows: Tensor, name: str, visible: Tensor) -> Tensor:
        # h = heads, t = tokens, w = width of a head
        query, key, value = (
            linear(rows, f"{name}.self.{part}").view(len(rows), heads, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        logits = torch.einsum("htw,hsw->hts", query, key) / math.sqrt(query.shape[-1])
        if alibi:
            places = torch.arange(len(rows))
            distances = (places[None] - places[:, None]).abs()
            logits = logits - torch.tensor(slopes(heads))[:, None, None] * distances
        logits = logits.masked_fill(~visible, -math.inf)
        mixed = torch.einsum("hts,hsw->thw", logits.softmax(dim=-1), value)
        return linear(mixed.reshape(len(rows), -1), f"{name}.output.dense")

    def feed(rows: Tensor, name: str) -> Tensor:
        activated, gate = linear(rows, f"{name}.gated_layers").chunk(2, dim=-1)
        return linear(F.gelu(activated) * gate, f"{name}.wo")

    def run(ids: list[int], attention: list[bool]) -> Tensor:
        words = weights["embeddings.word_embeddings.weight"][torch.tensor(ids)]
        types = weights["embeddings.token_type_embeddings.weight"][0]
        rows = norm(words + types, "embeddings.LayerNorm")
        for layer in range(depth):
            name = f"encoder.layer.{layer}"
            mixed = attend(rows, f"{name}.attention", torch.tensor(attention))
            rows = norm(rows + mixed, f"{name}.attention.output.LayerNorm")
            rows = norm(rows + feed(rows, f"{name}.mlp"), f"{name}.mlp.layernorm")
        return rows

    return run
