"""The backbones we host, as a table: what each is called, how its tensors are named, what it can.

Hosting means a class of the installed transformers library with the checkpoint's own tensors,
every one of them accounted for. Code from a checkpoint is never imported. To add a backbone, add a
row; to refuse one by name, add a row with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from colbert_rag.errors import UnsupportedBackboneError

Config = dict[str, object]


def _as_published(config: Config) -> Config:
    return config


def _jina_config(config: Config) -> Config:
    """Describe jina-colbert-v2 to the class that transformers has for the same architecture.

    The base of its rotary positions is 10000 unless the checkpoint says otherwise
    (jinaai/xlm-roberta-flash-implementation, configuration_xlm_roberta.py); the host class would
    assume the 20000 of jina-embeddings-v3.
    """
    base = config.get("rotary_emb_base", 10000.0)
    return config | {
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
    }


# The keys of `config.json` that the modules of transformers read to encode, and special ids, which
# it compares with the vocabulary. The rest stays unread: dropout and initialisation serve training,
# `return_dict` or `chunk_size_feed_forward` would change a forward pass, `num_labels` take memory.
_ANY = (
    "model_type vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "max_position_embeddings pad_token_id bos_token_id eos_token_id cls_token_id sep_token_id "
    "mask_token_id"
).split()
_BERT = frozenset(_ANY + "hidden_act type_vocab_size layer_norm_eps".split())
_ROTARY = frozenset(
    _ANY
    + (
        "rope_parameters rope_theta rope_scaling partial_rotary_factor head_dim "
        "original_max_position_embeddings"
    ).split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """One row of the table.

    Attributes:
        name: What we call it.
        model_types: What `config.json` calls it.
        keys: What of `config.json` is read; see above.
        module: Module of transformers with the classes; "" for a refused row.
        model: Class name of the model.
        configuration: Class name of its configuration.
        packs: Whether many texts may share one row, each attending to itself alone.
        position_offset: Position of a text's first token is this plus the padding id, for tables
            that leave the first rows to padding; None where positions start at 0.
        takes_pooler: Whether the constructor accepts `add_pooling_layer`.
        takes_use_cache: Whether `forward` must be told not to keep keys and values.
        signature: Part of a tensor name that only this architecture has.
        remote_code: The row applies only to checkpoints that bring code of their own.
        renames: Pairs of name parts, replaced in order in every tensor name.
        splits: Tensors stored as equal blocks of rows: name part -> the parts they become.
        prepare: Adapts `config.json` to the configuration class.
        fallback_markers: Query and document marker of checkpoints that do not name their own.
        has_languages: One adapter for each language; one must be chosen.
        refused: Why it is not hosted; "" where it is.
    """

    name: str
    model_types: tuple[str, ...]
    keys: frozenset[str] = frozenset(_ANY)
    module: str = ""
    model: str = ""
    configuration: str = ""
    packs: bool = False
    position_offset: int | None = None
    takes_pooler: bool = False
    takes_use_cache: bool = False
    signature: str = ""
    remote_code: bool = False
    renames: tuple[tuple[str, str], ...] = ()
    splits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    prepare: Callable[[Config], Config] = _as_published
    fallback_markers: tuple[str, str] | None = None
    has_languages: bool = False
    refused: str = ""

    def positions(self, config: Mapping[str, object]) -> int | None:
        """The longest text it can take, in tokens, or None where the configuration has no limit."""
        limit = config.get("max_position_embeddings")
        if not isinstance(limit, int):
            return None
        return limit if self.position_offset is None else limit - self.first_position(config)

    def first_position(self, config: Mapping[str, object]) -> int:
        """The position of a text's first token."""
        if self.position_offset is None:
            return 0
        padding = config.get("pad_token_id")
        return self.position_offset + (padding if isinstance(padding, int) else 1)

    def rename(self, name: str) -> str:
        """The name a stored tensor has in the host class."""
        for old, new in (*OLD_NAMES, *self.renames):
            name = name.replace(old, new)
        return name


OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""What BERT's norms were called before 2020, and in every checkpoint re-saved since."""

JINA_RENAMES = (
    ("emb_ln.", "embeddings.LayerNorm."),
    ("encoder.layers.", "layers."),
    ("mixer.out_proj", "self_attn.o_proj"),
    ("norm1", "post_attention_layernorm"),
    ("norm2", "post_mlp_layernorm"),
)

NO_NATIVE_CLASS = (
    "transformers has no class of its own for it, and code from a checkpoint is not run"
)

BACKBONES = (
    # Rows that need more than the model type to be told apart come first.
    Backbone(
        name="JinaBERT v1",
        model_types=("bert",),
        signature="mlp.gated_layers",
        refused=f"it is BERT by model_type only (ALiBi and gated layers); {NO_NATIVE_CLASS}",
    ),
    Backbone(
        name="Jina XLM-RoBERTa",
        model_types=("xlm-roberta",),
        keys=_BERT | {"rotary_emb_base"},
        module="transformers.models.jina_embeddings_v3",
        model="JinaEmbeddingsV3Model",
        configuration="JinaEmbeddingsV3Config",
        packs=True,
        takes_pooler=True,
        signature="mixer.Wqkv",
        renames=JINA_RENAMES,
        splits=(("mixer.Wqkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),),
        prepare=_jina_config,
        fallback_markers=("[QueryMarker]", "[DocumentMarker]"),
    ),
    Backbone(
        name="LFM2.5, bidirectional",
        model_types=("lfm2", "lfm2_bidirectional", "lfm2_5"),
        remote_code=True,
        refused=f"its attention is bidirectional, LFM2's is causal; {NO_NATIVE_CLASS}",
    ),
    Backbone(
        name="Qwen3, bidirectional",
        model_types=("qwen3", "bidirectional_pplx_qwen3"),
        refused=f"late-interaction checkpoints change it to bidirectional; {NO_NATIVE_CLASS}",
    ),
    Backbone(
        name="BERT",
        model_types=("bert",),
        keys=_BERT,
        module="transformers.models.bert",
        model="BertModel",
        configuration="BertConfig",
        packs=True,
        takes_pooler=True,
    ),
    Backbone(
        name="ModernBERT",
        model_types=("modernbert",),
        keys=_ROTARY
        | set(
            "hidden_activation norm_eps norm_bias attention_bias mlp_bias layer_types "
            "local_attention global_attn_every_n_layers global_rope_theta local_rope_theta".split()
        ),
        module="transformers.models.modernbert",
        model="ModernBertModel",
        configuration="ModernBertConfig",
        packs=True,
    ),
    Backbone(
        name="XLM-RoBERTa",
        model_types=("xlm-roberta",),
        keys=_BERT,
        module="transformers.models.xlm_roberta",
        model="XLMRobertaModel",
        configuration="XLMRobertaConfig",
        packs=True,
        position_offset=1,
        takes_pooler=True,
    ),
    Backbone(
        name="RoBERTa",
        model_types=("roberta",),
        keys=_BERT,
        module="transformers.models.roberta",
        model="RobertaModel",
        configuration="RobertaConfig",
        packs=True,
        position_offset=1,
        takes_pooler=True,
    ),
    Backbone(
        name="CamemBERT",
        model_types=("camembert",),
        keys=_BERT,
        module="transformers.models.camembert",
        model="CamembertModel",
        configuration="CamembertConfig",
        packs=True,
        position_offset=1,
        takes_pooler=True,
    ),
    Backbone(
        name="DistilBERT",
        model_types=("distilbert",),
        keys=_BERT | set("dim n_heads n_layers hidden_dim activation sinusoidal_pos_embds".split()),
        module="transformers.models.distilbert",
        model="DistilBertModel",
        configuration="DistilBertConfig",
        packs=True,
    ),
    Backbone(
        name="ELECTRA",
        model_types=("electra",),
        keys=_BERT | {"embedding_size"},
        module="transformers.models.electra",
        model="ElectraModel",
        configuration="ElectraConfig",
        packs=True,
    ),
    Backbone(
        name="XMOD",
        model_types=("xmod",),
        keys=_BERT
        | set(
            "languages default_language pre_norm adapter_reduction_factor adapter_layer_norm "
            "adapter_reuse_layer_norm ln_before_adapter".split()
        ),
        module="transformers.models.xmod",
        model="XmodModel",
        configuration="XmodConfig",
        # Each row of a batch goes through one language's adapter; one packed row has one language.
        packs=True,
        position_offset=1,
        takes_pooler=True,
        has_languages=True,
    ),
    Backbone(
        name="EuroBERT",
        model_types=("eurobert",),
        keys=_ROTARY
        | set("num_key_value_heads hidden_act rms_norm_eps attention_bias mlp_bias".split()),
        module="transformers.models.eurobert",
        model="EuroBertModel",
        configuration="EuroBertConfig",
        packs=True,
    ),
    Backbone(
        name="Jina embeddings v3",
        model_types=("jina_embeddings_v3",),
        keys=_BERT | _ROTARY,
        module="transformers.models.jina_embeddings_v3",
        model="JinaEmbeddingsV3Model",
        configuration="JinaEmbeddingsV3Config",
        packs=True,
        takes_pooler=True,
        fallback_markers=("[QueryMarker]", "[DocumentMarker]"),
    ),
    Backbone(
        name="LFM2",
        model_types=("lfm2",),
        keys=_ROTARY
        | set(
            "num_key_value_heads norm_eps layer_types full_attn_idxs conv_bias conv_L_cache "
            "block_ff_dim block_multiple_of block_ffn_dim_multiplier "
            "block_auto_adjust_ff_dim".split()
        ),
        module="transformers.models.lfm2",
        model="Lfm2Model",
        configuration="Lfm2Config",
        # Its convolutions reach over the end of one text into the next: padding only.
        packs=False,
        takes_use_cache=True,
    ),
)


def find_backbone(model_type: str, tensors: Iterable[str], *, remote_code: bool) -> Backbone:
    """The first row that fits; it may be one that is refused.

    Args:
        model_type: What `config.json` says.
        tensors: Names of the stored tensors.
        remote_code: Whether `config.json` refers to code of its own.

    Raises:
        UnsupportedBackboneError: no row fits.
    """
    names = list(tensors)
    for row in BACKBONES:
        fits = model_type in row.model_types and (remote_code or not row.remote_code)
        if fits and (not row.signature or any(row.signature in name for name in names)):
            return row
    known = ", ".join(row.name for row in BACKBONES if not row.refused)
    raise UnsupportedBackboneError(
        f"model_type is {model_type or 'missing'!r} in config.json, expected one of the backbones "
        f"hosted here: {known}"
        + (". It refers to code of its own, which is never run" if remote_code else "")
    )
