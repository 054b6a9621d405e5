"""The references for architectures that are no class of transformers agree with parts that are.

Each is what a class of transformers computes but for one or two things, which are put into it here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from tests.helpers.answers import distance
from tests.helpers.bidirectional_oracle import lfm2_body, qwen3_body
from tests.helpers.jinabert_oracle import jinabert_body, slopes
from tests.helpers.oracle import load_tensors

IDS = [*range(8, 40), 11, 9, 30, 8]
SOME = [True] * 20 + [False] * 16
"""What is seen of them: the rest as an expansion that is not attended."""


def read_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def decoder(folder: Path, name: str, **changes: Any) -> Any:
    """The causal class of transformers with a checkpoint's tensors, eager, in float32."""
    cls = getattr(transformers, name)
    config = cls.config_class.from_dict(
        {**read_config(folder), **changes}, attn_implementation="eager"
    )
    model = cls(config).eval()
    model.load_state_dict(load_tensors(folder), strict=True)
    return model


# JinaBERT


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20])
def test_slopes_are_those_of_bloom(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    # The bias of the second of two keys is the slope itself.
    expected = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)

    assert slopes(heads) == pytest.approx(expected[:, 0, 1].tolist(), rel=1e-6)


@pytest.mark.parametrize("name", ["stanford-jinabert", "stanford-jinabert-four-heads"])
def test_jinabert_is_berts_attention_with_a_bias_and_modernberts_feed_forward(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    from transformers.models.bert.modeling_bert import BertAttention
    from transformers.models.modernbert.modeling_modernbert import ModernBertMLP

    tensors, config = load_tensors(checkpoint(name)), read_config(checkpoint(name))
    heads = config["num_attention_heads"]
    sizes = {key: config[key] for key in ("hidden_size", "num_attention_heads")}
    bert = transformers.BertConfig(
        **sizes, intermediate_size=config["intermediate_size"], attn_implementation="eager"
    )
    modern = transformers.ModernBertConfig(
        **sizes, intermediate_size=config["intermediate_size"], hidden_activation="gelu"
    )
    places = torch.arange(len(IDS))
    bias = -torch.tensor(slopes(heads))[:, None, None] * (places[None] - places[:, None]).abs()
    bias = bias.masked_fill(~torch.tensor(SOME), torch.finfo(torch.float32).min)[None]

    def norm(rows: Tensor, name: str) -> Tensor:
        weight, shift = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return F.layer_norm(rows, rows.shape[-1:], weight, shift, 1e-12)

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }

    with torch.inference_mode():
        words = tensors["bert.embeddings.word_embeddings.weight"][torch.tensor(IDS)]
        types = tensors["bert.embeddings.token_type_embeddings.weight"][0]
        rows = norm(words + types, "bert.embeddings.LayerNorm")[None]
        for layer in range(config["num_hidden_layers"]):
            prefix = f"bert.encoder.layer.{layer}"
            attention = BertAttention(bert).eval()
            attention.load_state_dict(part(f"{prefix}.attention."), strict=True)
            rows = attention(rows, attention_mask=bias)[0]
            feed = ModernBertMLP(modern).eval()
            feed.Wi.weight = torch.nn.Parameter(tensors[f"{prefix}.mlp.gated_layers.weight"])
            feed.Wo.weight = torch.nn.Parameter(tensors[f"{prefix}.mlp.wo.weight"])
            fed = feed(rows) + tensors[f"{prefix}.mlp.wo.bias"]
            rows = norm(rows + fed, f"{prefix}.mlp.layernorm")
        found = jinabert_body(tensors, heads=heads)(IDS, SOME)
        without = jinabert_body(tensors, heads=heads, alibi=False)(IDS, SOME)

    assert distance(found, rows[0]) <= 1e-5
    assert distance(found, without) > 0.1


# LFM2.5


def test_lfm2_made_causal_is_the_class_of_transformers(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("pylate-lfm2-bidirectional")
    model = decoder(folder, "Lfm2Model")
    causal = lfm2_body(load_tensors(folder), read_config(folder), causal=True)

    with torch.inference_mode():
        expected = model(torch.tensor([IDS]), use_cache=False).last_hidden_state[0]
        found = causal(IDS, [True] * len(IDS))

    assert distance(found, expected) <= 1e-5


@pytest.mark.parametrize("attention", [[True] * len(IDS), SOME], ids=["all", "some"])
def test_lfm2_that_looks_both_ways_is_that_class_with_two_changes(
    attention: list[bool], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of `Lfm2BidirectionalModel`: who is seen, and where the convolution lies."""
    from transformers.models.lfm2 import modeling_lfm2

    def centred(hidden: Tensor, weight: Tensor, bias: None, **_options: object) -> Tensor:
        return F.conv1d(hidden, weight[:, None], bias, padding=1, groups=len(weight))

    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_fn", centred)
    folder = checkpoint("pylate-lfm2-bidirectional")
    model = decoder(folder, "Lfm2Model")
    both = lfm2_body(load_tensors(folder), read_config(folder))
    hidden = torch.zeros(1, 1, len(IDS), len(IDS))
    hidden[..., ~torch.tensor(attention)] = torch.finfo(torch.float32).min
    masks = {"full_attention": hidden, "conv": None}  # None: no token is zeroed

    with torch.inference_mode():
        ids = torch.tensor([IDS])
        expected = model(ids, attention_mask=masks, use_cache=False).last_hidden_state[0]
        found = both(IDS, attention)
        causal = lfm2_body(load_tensors(folder), read_config(folder), causal=True)(IDS, attention)

    assert distance(found, expected) <= 1e-5
    assert distance(found, causal) > 0.1


def test_the_convolution_of_lfm2_reads_tokens_that_attention_does_not(
    checkpoint: Callable[[str], Path],
) -> None:
    folder = checkpoint("pylate-lfm2-bidirectional")
    both = lfm2_body(load_tensors(folder), read_config(folder))
    other = [*IDS[:20], *[8] * 16]

    # The last token that is attended has an unattended one behind it.
    assert distance(both(IDS, SOME)[19], both(other, SOME)[19]) > 0.1


# Qwen3


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("attention", [[True] * len(IDS), SOME], ids=["all", "some"])
def test_qwen3_is_the_class_of_transformers(
    causal: bool, attention: list[bool], checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint("pylate-qwen3-bidirectional")
    model = decoder(folder, "Qwen3Model", model_type="qwen3", is_causal=causal)
    body = qwen3_body(load_tensors(folder), read_config(folder), causal=causal)
    other = qwen3_body(load_tensors(folder), read_config(folder), causal=not causal)

    with torch.inference_mode():
        mask = torch.tensor([attention]).long()
        output = model(torch.tensor([IDS]), attention_mask=mask, use_cache=False)
        found = body(IDS, attention)

    assert distance(found, output.last_hidden_state[0]) <= 1e-5
    assert distance(found, other(IDS, attention)) > 0.1
