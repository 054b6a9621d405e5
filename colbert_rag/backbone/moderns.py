"""Encoders with norms before each layer: from `config.json` to a `Shape`, and names of parts."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from colbert_rag.backbone.berts import named
from colbert_rag.backbone.fields import Fields
from colbert_rag.backbone.shape import Attention, Convolution, FeedForward, Layer, Norm, Shape

# AnswerDotAI/ModernBERT, src/bert_layers

MODERNBERT = named(
    "layers",
    {
        "word": "embeddings.tok_embeddings",
        "embedding_norm": "embeddings.norm",
        "final_norm": "final_norm",
    },
    {
        "mixer_norm": "attn_norm",
        "query key value": "attn.Wqkv",
        "output": "attn.Wo",
        "feed_forward_norm": "mlp_norm",
        "gate up": "mlp.Wi",
        "down": "mlp.Wo",
    },
)

FULL, SLIDING, CONVOLUTION = "full_attention", "sliding_attention", "conv"


def modernbert(fields: Fields) -> Shape:
    """Rotary positions, gated layers, and attention that is local in two layers of three."""
    width = fields.size("hidden_size")
    heads, head_width = fields.heads(width)
    every = fields.size("global_attn_every_n_layers", default=3)
    pattern = [SLIDING if number % every else FULL for number in range(fields.layers())]
    kinds = _kinds(fields, pattern, {FULL, SLIDING})
    biases, mlp_biases = fields.flag("attention_bias"), fields.flag("mlp_bias")
    everywhere = fields.rotary_base(default=160000.0, kind=FULL, older="global_rope_theta")
    attention = {
        FULL: Attention(
            heads=heads,
            key_heads=heads,
            head_width=head_width,
            bias=biases,
            output_bias=biases,
            rotary_base=everywhere,
        )
    }
    # The older files say null for "the same everywhere".
    nearby = everywhere if "local_rope_theta" in fields.values else 10000.0
    attention[SLIDING] = replace(
        attention[FULL],
        rotary_base=fields.rotary_base(default=nearby, kind=SLIDING, older="local_rope_theta"),
        # Half of the window on each side, and the token itself; the other key is that half.
        window=(fields.limit("sliding_window") or fields.size("local_attention", default=128) // 2)
        + 1,
    )
    feed_forward = FeedForward(
        width=fields.size("intermediate_size"),
        activation=fields.activation("hidden_activation", default="gelu"),
        gated=True,
        bias=mlp_biases,
        output_bias=mlp_biases,
    )
    layers = tuple(
        Layer(mixer=attention[kind], feed_forward=feed_forward, mixer_norm=number > 0)
        for number, kind in enumerate(kinds)
    )
    norm = Norm("layer", fields.number("norm_eps", default=1e-5), fields.flag("norm_bias"))
    return replace(_shape(fields, layers, norm), embedding_norm=True)


def _shape(fields: Fields, layers: tuple[Layer, ...], norm: Norm) -> Shape:
    """What all of them share: norms before each layer, and one at the end."""
    width = fields.size("hidden_size")
    return Shape(
        vocabulary=fields.size("vocab_size"),
        width=width,
        layers=layers,
        norm=norm,
        norm_first=True,
        embedding_width=width,
        embedding_norm=False,
        final_norm=True,
        longest=fields.limit("max_position_embeddings"),
    )


def _kinds(fields: Fields, otherwise: list[str], allowed: set[str]) -> list[str]:
    """What each layer mixes tokens by."""
    kinds = fields.words("layer_types") or otherwise
    if len(kinds) != len(otherwise) or not allowed.issuperset(kinds):
        raise ValueError(
            f"layer_types names {len(kinds)} layers as {', '.join(sorted(set(kinds))[:5])}, "
            f"expected {len(otherwise)} of {', '.join(sorted(allowed))}"
        )
    return kinds


# Llama's layout (meta-llama/llama): EuroBERT, Qwen3

LLAMA = named(
    "layers",
    {"word": "embed_tokens", "final_norm": "norm"},
    {
        "mixer_norm": "input_layernorm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "query_norm": "self_attn.q_norm",
        "key_norm": "self_attn.k_norm",
        "output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
)


def eurobert(fields: Fields) -> Shape:
    """Llama without a causal mask (EuroBERT/EuroBERT-210m)."""
    biases = fields.flag("mlp_bias")
    return _llama(fields, _rms(fields, 1e-5), head_width=None, mlp_biases=biases)


def qwen3(fields: Fields) -> Shape:
    """The same with norms of queries and keys (QwenLM/Qwen3)."""
    _kinds(fields, [FULL] * fields.layers(), {FULL})
    if fields.flag("use_sliding_window"):
        raise ValueError("use_sliding_window is true, expected false: no published one has windows")
    norm = _rms(fields, 1e-6)
    shape = _llama(fields, norm, head_width=128, mlp_biases=False)
    mixer = replace(cast(Attention, shape.layers[0].mixer), norm=norm)
    return replace(shape, layers=tuple(replace(layer, mixer=mixer) for layer in shape.layers))


def _rms(fields: Fields, epsilon: float, name: str = "rms_norm_eps") -> Norm:
    return Norm("rms", fields.number(name, default=epsilon), bias=False)


def _llama(fields: Fields, norm: Norm, *, head_width: int | None, mlp_biases: bool) -> Shape:
    width = fields.size("hidden_size")
    layer = Layer(
        mixer=_grouped(fields, width, head_width, bias=fields.flag("attention_bias")),
        feed_forward=FeedForward(
            width=fields.size("intermediate_size"),
            activation=fields.activation("hidden_act", default="silu"),
            gated=True,
            bias=mlp_biases,
            output_bias=mlp_biases,
        ),
    )
    return _shape(fields, (layer,) * fields.layers(), norm)


def _grouped(
    fields: Fields,
    width: int,
    head_width: int | None,
    *,
    bias: bool,
    base: float = 10000.0,
    key_heads: int | None = None,
) -> Attention:
    """Attention whose heads share keys in groups, with rotary positions."""
    heads = fields.size("num_attention_heads")
    key_heads = fields.size("num_key_value_heads", default=key_heads or heads)
    if heads % key_heads:
        raise ValueError(f"{heads} heads cannot share {key_heads} heads of keys")
    if head_width is None and fields.values.get("head_dim") is None:
        head_width = fields.heads(width)[1]
    return Attention(
        heads=heads,
        key_heads=key_heads,
        head_width=fields.size("head_dim", default=head_width),
        bias=bias,
        output_bias=bias,
        rotary_base=fields.rotary_base(default=base),
    )


# LiquidAI's LFM2 (huggingface/transformers, lfm2)

LFM2 = named(
    "layers",
    {"word": "embed_tokens", "final_norm": "embedding_norm"},
    {
        "mixer_norm": "operator_norm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "query_norm": "self_attn.q_layernorm",
        "key_norm": "self_attn.k_layernorm",
        "output": "self_attn.out_proj",
        "convolution_in": "conv.in_proj",
        "convolution": "conv.conv",
        "convolution_out": "conv.out_proj",
        "feed_forward_norm": "ffn_norm",
        "gate": "feed_forward.w1",
        "up": "feed_forward.w3",
        "down": "feed_forward.w2",
    },
)


def lfm2(fields: Fields) -> Shape:
    """Short convolutions between layers of attention, all causal."""
    return _lfm2(fields, causal=True)


def lfm2_bidirectional(fields: Fields) -> Shape:
    """The same weights seeing both sides (LiquidAI/LFM2.5-ColBERT-350M).

    Its published code hides filled-up positions from attention, not from the convolutions.
    """
    if fields.flag("conv_zero_padding"):
        raise ValueError(
            "conv_zero_padding is true, expected false: no published ColBERT checkpoint hides "
            "padding from its convolutions"
        )
    return _lfm2(fields, causal=False)


def _lfm2(fields: Fields, *, causal: bool) -> Shape:
    width, depth = fields.size("hidden_size"), fields.layers()
    norm = _rms(fields, 1e-5, "norm_eps")
    attends = fields.values.get("full_attn_idxs")
    chosen = attends if isinstance(attends, list) else range(depth)
    pattern = [FULL if number in chosen else CONVOLUTION for number in range(depth)]
    kinds = _kinds(fields, pattern, {FULL, CONVOLUTION})
    mixers: dict[str, Attention | Convolution] = {
        FULL: replace(
            _grouped(fields, width, None, bias=False, base=1000000.0, key_heads=8),
            norm=norm,
            causal=causal,
        ),
        CONVOLUTION: Convolution(
            taps=fields.size("conv_L_cache", default=3),
            centred=not causal,
            bias=fields.flag("conv_bias"),
            sees_unattended=not causal,
        ),
    }
    feed_forward = FeedForward(
        width=_adjusted(fields), activation="silu", gated=True, bias=False, output_bias=False
    )
    layers = tuple(Layer(mixer=mixers[kind], feed_forward=feed_forward) for kind in kinds)
    return _shape(fields, layers, norm)


def _adjusted(fields: Fields) -> int:
    """Two thirds of the width that is stated, rounded up to a multiple, unless told otherwise."""
    stated = fields.size("block_ff_dim", "intermediate_size")
    if not fields.flag("block_auto_adjust_ff_dim", default=True):
        return stated
    multiple = fields.size("block_multiple_of", default=256)
    width = int(fields.number("block_ffn_dim_multiplier", default=1.0) * int(2 * stated / 3))
    return multiple * -(-width // multiple)
