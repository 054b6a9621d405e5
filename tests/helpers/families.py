"""The backbones of the tiny checkpoints: a table of classes, settings and tensor prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HIDDEN = 32


@dataclass(frozen=True)
class Family:
    """One backbone: its classes, its config file and the prefix of its published tensors."""

    config: str
    model: str
    tokenizer: str
    settings: Mapping[str, Any]
    prefix: str = ""


_BERT = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "hidden_act": "gelu",
    "max_position_embeddings": 320,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
_ROBERTA = {**_BERT, "max_position_embeddings": 322, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_LLAMA = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 320,
}

FAMILIES: dict[str, Family] = {
    "bert": Family("BertConfig", "BertModel", "wordpiece", _BERT, "bert."),
    "electra": Family(
        "ElectraConfig", "ElectraModel", "wordpiece", {**_BERT, "embedding_size": 24}, "electra."
    ),
    "distilbert": Family(
        "DistilBertConfig",
        "DistilBertModel",
        "wordpiece",
        {
            "dim": HIDDEN,
            "n_heads": 4,
            "n_layers": 2,
            "hidden_dim": 48,
            "activation": "gelu",
            "max_position_embeddings": 320,
        },
        "distilbert.",
    ),
    "modernbert": Family(
        "ModernBertConfig",
        "ModernBertModel",
        "modernbert",
        {
            "hidden_size": HIDDEN,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "intermediate_size": 48,
            "max_position_embeddings": 320,
            # The published spelling, which transformers converts; the thetas are Ettin's.
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "local_rope_theta": 160000.0,
            "local_attention": 32,
        },
        "model.",
    ),
    "roberta": Family("RobertaConfig", "RobertaModel", "roberta", _ROBERTA, "roberta."),
    "xlm-roberta": Family("XLMRobertaConfig", "XLMRobertaModel", "unigram", _ROBERTA, "roberta."),
    "camembert": Family("CamembertConfig", "CamembertModel", "unigram", _ROBERTA, "roberta."),
    "xmod": Family(
        "XmodConfig",
        "XmodModel",
        "unigram",
        {**_ROBERTA, "languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
        "roberta.",
    ),
    # Of no class of transformers: `published.py` gives tensors and config file their own names. The
    # heads are no power of two, as in what it stands for, which makes other slopes of ALiBi.
    "jinabert": Family(
        "BertConfig",
        "BertModel",
        "wordpiece",
        {**_BERT, "hidden_size": 48, "num_attention_heads": 12, "intermediate_size": 80},
        "bert.",
    ),
    "eurobert": Family("EuroBertConfig", "EuroBertModel", "eurobert", _LLAMA, "model."),
    "lfm2": Family(
        "Lfm2Config",
        "Lfm2Model",
        "lfm2",
        {
            **_LLAMA,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 3,
        },
        "model.",
    ),
    "lfm2-bidirectional": Family(
        "Lfm2Config",
        "Lfm2Model",
        "lfm2",
        {
            **_LLAMA,
            "num_hidden_layers": 4,
            # The first convolution is below attention, the second sees what attention has mixed.
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 3,
            "norm_eps": 1e-5,
            "rope_theta": 10000.0,
        },
        "model.",
    ),
    "qwen3-bidirectional": Family(
        "Qwen3Config",
        "Qwen3Model",
        "qwen3",
        {
            **_LLAMA,
            "head_dim": 12,  # heads times it is not the width
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
            "hidden_act": "silu",
        },
        "model.",
    ),
    # Hosted by another class of transformers; the file says xlm-roberta and names remote code.
    "jina": Family(
        "JinaEmbeddingsV3Config", "JinaEmbeddingsV3Model", "unigram", _ROBERTA, "roberta."
    ),
}
