"""The backbones we host, as a table: what each is called, what it computes, how tensors are named.

Hosting means the one encoder of `transformer.py` with the checkpoint's own tensors, every one of
them accounted for. Code from a checkpoint is never imported. To add a backbone, add a row; to
refuse one by name, add a row with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from colbert_rag.backbone import berts, moderns
from colbert_rag.backbone.fields import Fields
from colbert_rag.backbone.shape import Names, Shape
from colbert_rag.errors import UnsupportedBackboneError

Config = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """One row of the table.

    Attributes:
        name: What we call it.
        model_types: What `config.json` calls it.
        shape: From `config.json` to the arithmetic; None for a refused row.
        names: What its files call our parts.
        signature: Part of a tensor name that only this architecture has.
        says: What `config.json` must say for the row to apply, beside the model type.
        fallback_markers: Query and document marker of checkpoints that do not name their own.
        has_languages: One adapter for each language; one must be chosen.
        refused: Why it is not hosted; "" where it is.
    """

    name: str
    model_types: tuple[str, ...]
    shape: Callable[[Fields], Shape] | None = None
    names: Names = field(default_factory=dict, repr=False)
    signature: str = ""
    says: Callable[[Config], bool] = lambda _config: True
    fallback_markers: tuple[str, str] | None = None
    has_languages: bool = False
    refused: str = ""


OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""What BERT's norms were called before 2020, and in every checkpoint re-saved since."""


def _classes(config: Config) -> set[str]:
    """The classes that `architectures` and `auto_map` name, without the modules they lie in."""
    architectures, remote = config.get("architectures"), config.get("auto_map")
    named = list(architectures) if isinstance(architectures, list) else []
    named += [remote.get("AutoModel")] if isinstance(remote, dict) else [remote] if remote else []
    return {str(name).rsplit(".", 1)[-1] for name in named}


def _lfm2_looks_both_ways(config: Config) -> bool:
    """LFM2.5-ColBERT says so in both places; one may be lost, but they may not contradict."""
    classes = _classes(config)
    native = config.get("model_type") == "lfm2_bidirectional"
    return (native or bool(classes)) and classes <= {"Lfm2BidirectionalModel"}


def _lfm2_looks_back(config: Config) -> bool:
    """LFM2-ColBERT says `Lfm2Model`; code of its own would be another model's."""
    classes = _classes(config)
    causal = bool(classes) and classes <= {"Lfm2Model", "Lfm2ForCausalLM"}
    return causal and not config.get("auto_map")


def _qwen3_looks_both_ways(config: Config) -> bool:
    said = config.get("use_bidirectional_attention")
    return said is True or (said is None and config.get("model_type") == "bidirectional_pplx_qwen3")


JINA_MARKERS = ("[QueryMarker]", "[DocumentMarker]")

BACKBONES = (
    # Rows that need more than the model type to be told apart come first.
    Backbone(
        name="JinaBERT v1",
        model_types=("bert",),
        shape=berts.jina_bert,
        names=berts.JINA_BERT,
        signature="mlp.gated_layers",
    ),
    Backbone(
        name="Jina XLM-RoBERTa",
        model_types=("xlm-roberta",),
        shape=berts.jina,
        names=berts.JINA,
        signature="mixer.Wqkv",
        fallback_markers=JINA_MARKERS,
    ),
    Backbone(
        name="LFM2.5, bidirectional",
        model_types=("lfm2", "lfm2_bidirectional"),
        shape=moderns.lfm2_bidirectional,
        names=moderns.LFM2,
        says=_lfm2_looks_both_ways,
    ),
    Backbone(
        name="Qwen3, bidirectional",
        model_types=("qwen3", "bidirectional_pplx_qwen3"),
        shape=moderns.qwen3,
        names=moderns.LLAMA,
        says=_qwen3_looks_both_ways,
    ),
    Backbone(
        name="Qwen3",
        model_types=("qwen3", "bidirectional_pplx_qwen3"),
        refused="nothing in config.json says that it sees both sides, as late-interaction "
        "checkpoints of Qwen3 do; opened as the causal model that it seems to be, it would give "
        "wrong scores",
    ),
    Backbone(name="BERT", model_types=("bert",), shape=berts.bert, names=berts.BERT),
    Backbone(
        name="ModernBERT",
        model_types=("modernbert",),
        shape=moderns.modernbert,
        names=moderns.MODERNBERT,
    ),
    Backbone(
        name="XLM-RoBERTa", model_types=("xlm-roberta",), shape=berts.roberta, names=berts.BERT
    ),
    Backbone(name="RoBERTa", model_types=("roberta",), shape=berts.roberta, names=berts.BERT),
    Backbone(name="CamemBERT", model_types=("camembert",), shape=berts.roberta, names=berts.BERT),
    Backbone(
        name="DistilBERT",
        model_types=("distilbert",),
        shape=berts.distilbert,
        names=berts.DISTILBERT,
    ),
    Backbone(name="ELECTRA", model_types=("electra",), shape=berts.electra, names=berts.ELECTRA),
    Backbone(
        name="XMOD",
        model_types=("xmod",),
        shape=berts.xmod,
        names=berts.XMOD,
        has_languages=True,
    ),
    Backbone(
        name="EuroBERT", model_types=("eurobert",), shape=moderns.eurobert, names=moderns.LLAMA
    ),
    Backbone(
        name="Jina embeddings v3",
        model_types=("jina_embeddings_v3",),
        shape=berts.jina_v3,
        names=berts.JINA_V3,
        fallback_markers=JINA_MARKERS,
    ),
    Backbone(
        name="LFM2",
        model_types=("lfm2",),
        shape=moderns.lfm2,
        names=moderns.LFM2,
        says=_lfm2_looks_back,
    ),
    Backbone(
        name="LFM2 or LFM2.5",
        model_types=("lfm2", "lfm2_bidirectional"),
        refused="config.json must say which of the two: either Lfm2Model in architectures and no "
        "auto_map, or Lfm2BidirectionalModel. Their tensors are the same, and the wrong one gives "
        "wrong scores",
    ),
)


def find_backbone(config: Config, tensors: Iterable[str]) -> Backbone:
    """The first row that fits; it may be one that is refused.

    Args:
        config: The whole of `config.json`.
        tensors: Names of the stored tensors.

    Raises:
        UnsupportedBackboneError: no row fits.
    """
    names, model_type = list(tensors), config.get("model_type")
    for row in BACKBONES:
        if (
            model_type in row.model_types
            and row.says(config)
            and (not row.signature or any(row.signature in name for name in names))
        ):
            return row
    known = ", ".join(row.name for row in BACKBONES if not row.refused)
    raise UnsupportedBackboneError(
        f"model_type is {model_type or 'missing'!r} in config.json, expected one of the backbones "
        f"hosted here: {known}"
        + (". It refers to code of its own, which is never run" if "auto_map" in config else "")
    )


def our_name(stored: str) -> str:
    """A stored name with what BERT's norms are called today."""
    for old, new in OLD_NAMES:
        stored = stored.replace(old, new)
    return stored
