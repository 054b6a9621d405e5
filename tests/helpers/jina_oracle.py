"""jina-colbert-v2's published architecture in plain torch, on the published tensors.

Written from jinaai/xlm-roberta-flash-implementation; shares nothing with transformers or with us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.oracle import Body, PlainOracle, load_tensors, load_tokenizer, stanford_oracle


def jina_oracle(folder: Path, *, base: float = 10000.0, **changes: Any) -> PlainOracle:
    """The architecture behind Stanford's tokens, with the markers of jina-colbert-v2."""
    tokenizer = load_tokenizer(folder)
    markers = {
        "query_marker": tokenizer.token_to_id("[QueryMarker]"),
        "document_marker": tokenizer.token_to_id("[DocumentMarker]"),
    }
    body = jina_body(load_tensors(folder), heads=4, base=base)
    return stanford_oracle(folder, "", body=body, **{**markers, **changes})


def jina_body(
    tensors: Mapping[str, Tensor], *, heads: int, base: float = 10000.0, epsilon: float = 1e-5
) -> Body:
    """Post-norm layers, fused `[Q; K; V]`, rotate-half rotary positions, exact GELU."""
    weights = {
        name.removeprefix("roberta."): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith("roberta.")
    }
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder."))

    def linear(rows: Tensor, name: str) -> Tensor:
        return F.linear(rows, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(rows: Tensor, name: str) -> Tensor:
        shape = rows.shape[-1:]
        return F.layer_norm(
            rows, shape, weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon
        )

    def attend(rows: Tensor, name: str, visible: Tensor) -> Tensor:
        # h = heads, t = tokens, w = width of a head
        query, key, value = linear(rows, f"{name}.Wqkv").chunk(3, dim=-1)
        query, key, value = (
            part.view(len(rows), heads, -1).transpose(0, 1) for part in (query, key, value)
        )
        query, key = _rotate(query, base), _rotate(key, base)
        logits = torch.einsum("htw,hsw->hts", query, key) / math.sqrt(query.shape[-1])
        logits = logits + (~visible).float() * -10000.0
        mixed = torch.einsum("hts,hsw->thw", logits.softmax(dim=-1), value)
        return linear(mixed.reshape(len(rows), -1), f"{name}.out_proj")

    def run(ids: list[int], attention: list[bool]) -> Tensor:
        words = weights["embeddings.word_embeddings.weight"][torch.tensor(ids)]
        rows = norm(words + weights["embeddings.token_type_embeddings.weight"][0], "emb_ln")
        for layer in range(depth):
            name = f"encoder.layers.{layer}"
            mixed = attend(rows, f"{name}.mixer", torch.tensor(attention))
            rows = norm(rows + mixed, f"{name}.norm1")
            inner = F.gelu(linear(rows, f"{name}.mlp.fc1"))
            rows = norm(rows + linear(inner, f"{name}.mlp.fc2"), f"{name}.norm2")
        return rows

    return run


def _rotate(heads: Tensor, base: float) -> Tensor:
    """Rotary positions over the whole head, halves rotated against each other (NeoX)."""
    _, tokens, width = heads.shape
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(tokens, dtype=torch.float32)[:, None] * frequencies[None]
    cosines, sines = angles.cos(), angles.sin()
    first, second = heads[..., : width // 2], heads[..., width // 2 :]
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
