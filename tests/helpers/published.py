"""How a tiny backbone is published where its class is not one of transformers.

Each function takes the config file and the tensors of a class of transformers, with the sizes of
the tiny checkpoint, and gives those of the repository it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]
Tensors = dict[str, Tensor]


def _jina(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """jinaai/jina-colbert-v2 (byte count of revision a9dc5cd), from `JinaEmbeddingsV3Model`."""
    renames = {
        r"^embeddings\.LayerNorm\.": "emb_ln.",
        r"^layers\.": "encoder.layers.",
        r"self_attn\.o_proj": "mixer.out_proj",
        r"post_attention_layernorm": "norm1",
        r"post_mlp_layernorm": "norm2",
    }
    published: Tensors = {}
    for name, tensor in tensors.items():
        fused = re.sub(r"self_attn\.q_proj", "mixer.Wqkv", name)
        if fused != name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, tensor = fused, torch.cat(parts)
        if re.search(r"self_attn\.[kv]_proj", name):
            continue
        for pattern, replacement in renames.items():
            name = re.sub(pattern, replacement, name)
        published[name] = tensor
    remote = "jinaai/xlm-roberta-flash-implementation--"
    config = {
        **{key: value for key, value in config.items() if key != "rope_parameters"},
        "model_type": "xlm-roberta",
        "auto_map": {
            "AutoConfig": f"{remote}configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": f"{remote}modeling_xlm_roberta.XLMRobertaModel",
        },
        "position_embedding_type": "rotary",
        "use_flash_attn": True,
    }
    return config, published


def _jinabert(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """jinaai/jina-colbert-v1-en, from a `BertModel` whose feed-forward is twice as wide.

    Names are those of backends/candle/src/models/jina.rs in huggingface/text-embeddings-inference,
    the config file that of its test of jina-embeddings-v2-base-en.
    """
    inner = config["intermediate_size"] // 2
    published: Tensors = {}
    for name, tensor in tensors.items():
        if "position_embeddings" in name or name.endswith("intermediate.dense.bias"):
            continue
        name = name.replace("intermediate.dense.", "mlp.gated_layers.")
        if re.search(r"layer\.\d+\.output\.", name):
            name = name.replace("output.dense.", "mlp.wo.")
            name = name.replace("output.LayerNorm.", "mlp.layernorm.")
        published[name] = tensor[:, :inner] if name.endswith("mlp.wo.weight") else tensor
    remote = "jinaai/jina-bert-implementation--"
    return {
        **config,
        "model_type": "bert",
        "intermediate_size": inner,
        "auto_map": {
            "AutoConfig": f"{remote}configuration_bert.JinaBertConfig",
            "AutoModel": f"{remote}modeling_bert.JinaBertModel",
        },
        "position_embedding_type": "alibi",
        "feed_forward_type": "geglu",
        "emb_pooler": "mean",
        "model_max_length": 8192,
    }, published


def _lfm2_bidirectional(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """LiquidAI/LFM2.5-ColBERT-350M: LFM2's tensors and model type; two other keys tell it apart."""
    remote = {"AutoModel": "modeling_lfm2_bidirectional.Lfm2BidirectionalModel"}
    return {
        **config,
        "architectures": ["Lfm2BidirectionalModel"],
        "auto_map": remote,
        "disable_flash_attention": True,
    }, tensors


def _qwen3_bidirectional(config: Config, tensors: Tensors) -> tuple[Config, Tensors]:
    """perplexity-ai/pplx-embed-v1-late-0.6b: Qwen3's tensors under another model type."""
    return {
        **config,
        "architectures": ["PPLXQwen3Model"],
        "model_type": "bidirectional_pplx_qwen3",
        "auto_map": {
            "AutoConfig": "configuration.PPLXQwen3Config",
            "AutoModel": "modeling.PPLXQwen3Model",
        },
        "use_bidirectional_attention": True,
        "use_cache": False,
    }, tensors


PUBLISHED: dict[str, Callable[[Config, Tensors], tuple[Config, Tensors]]] = {
    "jina": _jina,
    "jinabert": _jinabert,
    "lfm2-bidirectional": _lfm2_bidirectional,
    "qwen3-bidirectional": _qwen3_bidirectional,
}
"""By backbone; one that is not here is published as transformers saves it."""
