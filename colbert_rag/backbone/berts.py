"""BERT and what was made of it: from `config.json` to a `Shape`, and what files call our parts."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from colbert_rag.backbone.fields import Fields
from colbert_rag.backbone.shape import (
    Activation,
    Adapter,
    Attention,
    FeedForward,
    Layer,
    Names,
    Norm,
    Shape,
)


def named(layers: str, outside: dict[str, str], inside: dict[str, str]) -> Names:
    """Names of parts: those outside of layers, and those in them, behind `layers` and a number."""
    return outside | {part: f"{layers}.{{layer}}.{name}" for part, name in inside.items()}


# google-research/bert, modeling.py

BERT = named(
    "encoder.layer",
    {
        "word": "embeddings.word_embeddings",
        "position": "embeddings.position_embeddings",
        "type": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    },
    {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "mixer_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    },
)


def bert(fields: Fields) -> Shape:
    """Learned positions and types, norms after each addition, biases everywhere."""
    width = fields.size("hidden_size")
    heads, head_width = fields.heads(width)
    positions = fields.size("max_position_embeddings")
    vocabulary = fields.size("vocab_size")
    fields.token("pad_token_id", vocabulary)  # a row beyond the table is another model's
    layer = Layer(
        mixer=Attention(
            heads=heads, key_heads=heads, head_width=head_width, bias=True, output_bias=True
        ),
        feed_forward=FeedForward(
            width=fields.size("intermediate_size"),
            activation=fields.activation("hidden_act", default="gelu"),
            gated=False,
            bias=True,
            output_bias=True,
        ),
    )
    return Shape(
        vocabulary=vocabulary,
        width=width,
        layers=(layer,) * fields.layers(),
        norm=Norm("layer", fields.number("layer_norm_eps", default=1e-12)),
        norm_first=False,
        embedding_width=width,
        embedding_norm=True,
        positions=positions,
        types=fields.size("type_vocab_size", default=2),
        longest=positions,
    )


def roberta(fields: Fields) -> Shape:
    """BERT with positions that begin behind the padding id (facebookresearch/fairseq)."""
    shape = bert(fields)
    padding = 1
    if "pad_token_id" in fields.values:
        stated = fields.token("pad_token_id", shape.vocabulary)
        if stated is None:
            raise ValueError(
                "pad_token_id is no token, expected the id that positions begin behind"
            )
        padding = stated
    return replace(shape, padding=padding, longest=shape.positions - padding - 1)


ELECTRA = {**BERT, "embedding_projection": "embeddings_project"}


def electra(fields: Fields) -> Shape:
    """BERT with embeddings that may be narrower (google-research/electra)."""
    return replace(bert(fields), embedding_width=fields.size("embedding_size", default=128))


DISTILBERT = named(
    "transformer.layer",
    {part: BERT[part] for part in ("word", "position", "embedding_norm")},
    {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "output": "attention.out_lin",
        "mixer_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "feed_forward_norm": "output_layer_norm",
    },
)

_DISTILBERT_KEYS = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
}


def distilbert(fields: Fields) -> Shape:
    """BERT without types, under names of its own (huggingface/transformers)."""
    own = {
        "intermediate_size": fields.values.get("hidden_dim", 3072),
        "hidden_act": fields.values.get("activation"),
        "layer_norm_eps": 1e-12,
    }
    return replace(bert(fields.under(_DISTILBERT_KEYS, **own)), types=0)


XMOD = {
    **BERT,
    "adapter_norm": "encoder.layer.{layer}.output.adapter_layer_norm",
    "adapter_down": "encoder.layer.{layer}.output.adapter_modules.{language}.dense1",
    "adapter_up": "encoder.layer.{layer}.output.adapter_modules.{language}.dense2",
    "final_norm": "encoder.LayerNorm",
}


def xmod(fields: Fields) -> Shape:
    """RoBERTa with an adapter for each language (facebookresearch/fairseq, examples/xmod)."""
    shape = roberta(fields)
    languages = tuple(fields.words("languages") or ["en_XX"])
    language = fields.values.get("default_language") or "en_XX"
    if language not in languages:
        raise ValueError(f"language is {language!r}, the checkpoint has adapters for {languages}")
    shared = fields.flag("adapter_reuse_layer_norm", default=True)
    adapter = Adapter(
        width=shape.width // fields.size("adapter_reduction_factor", default=2),
        languages=languages,
        language=str(language),
        norm="own" if fields.flag("adapter_layer_norm") else "shared" if shared else "none",
        adds_normed=fields.flag("ln_before_adapter", default=True),
    )
    first = fields.flag("pre_norm")
    return replace(shape, adapter=adapter, norm_first=first, final_norm=first)


# jinaai/xlm-roberta-flash-implementation: jina-colbert-v2

_JINA_EMBEDDINGS = {"word": BERT["word"], "type": BERT["type"]}

JINA = named(
    "encoder.layers",
    {**_JINA_EMBEDDINGS, "embedding_norm": "emb_ln"},
    {
        "query key value": "mixer.Wqkv",
        "output": "mixer.out_proj",
        "mixer_norm": "norm1",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "feed_forward_norm": "norm2",
    },
)

JINA_V3 = named(
    "layers",
    {**_JINA_EMBEDDINGS, "embedding_norm": BERT["embedding_norm"]},
    {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "mixer_norm": "post_attention_layernorm",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "feed_forward_norm": "post_mlp_layernorm",
    },
)


def jina(fields: Fields) -> Shape:
    """BERT with rotary positions.

    Their base is 10000 unless the checkpoint says otherwise (configuration_xlm_roberta.py), and not
    the 20000 of jina-embeddings-v3, which is otherwise the same.
    """
    return _jina(fields, fields.number("rotary_emb_base", default=10000.0))


def jina_v3(fields: Fields) -> Shape:
    """The same in the layout of transformers (huggingface/transformers, jina_embeddings_v3)."""
    return _jina(fields, fields.rotary_base(default=20000.0))


def _jina(fields: Fields, base: float) -> Shape:
    own = {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    given = {name: fields.values.get(name, default) for name, default in own.items()}
    return _attending(bert(fields.with_values(**given)), rotary_base=base)


# jinaai/jina-bert-implementation: jina-colbert-v1-en

JINA_BERT = {part: name for part, name in BERT.items() if part not in ("position", "up")} | {
    "gate up": "encoder.layer.{layer}.mlp.gated_layers",
    "down": "encoder.layer.{layer}.mlp.wo",
    "feed_forward_norm": "encoder.layer.{layer}.mlp.layernorm",
}

_GATES = {"geglu": "gelu", "reglu": "relu"}


def jina_bert(fields: Fields) -> Shape:
    """BERT with ALiBi in place of positions, and gated layers."""
    position = fields.values.get("position_embedding_type", "alibi")
    if position != "alibi":
        raise ValueError(f"position_embedding_type is {position!r}, expected 'alibi'")
    kind = fields.values.get("feed_forward_type", "geglu")
    if kind not in _GATES:
        raise ValueError(f"feed_forward_type is {kind!r}, expected one of {', '.join(_GATES)}")
    shape = _attending(bert(fields), alibi=True)
    gated = replace(
        shape.layers[0].feed_forward,
        gated=True,
        bias=False,
        activation=cast(Activation, _GATES[str(kind)]),
    )
    return replace(
        shape, layers=tuple(replace(layer, feed_forward=gated) for layer in shape.layers)
    )


def _attending(shape: Shape, *, rotary_base: float | None = None, alibi: bool = False) -> Shape:
    """The same, but told of positions by attention alone."""
    mixer = replace(cast(Attention, shape.layers[0].mixer), rotary_base=rotary_base, alibi=alibi)
    layers = tuple(replace(layer, mixer=mixer) for layer in shape.layers)
    return replace(shape, positions=0, layers=layers)
