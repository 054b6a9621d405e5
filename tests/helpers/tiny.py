"""Real ColBERT checkpoints of about 60 KiB, written in the layouts that are published.

A `Spec` says what to build; every trap a published checkpoint sets is a field of it, and the table
of named specs is `tests/helpers/variants.py`. Weights are larger than a fresh initialisation would
make them: with a standard deviation of 0.02 all token vectors nearly coincide and a wrong position,
mask or rotary base would hide below any tolerance.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn

from tests.helpers.families import FAMILIES
from tests.helpers.published import PUBLISHED
from tests.helpers.tiny_tokenizers import TOKENIZERS, TinyTokenizer

DROP = object()  # as a value in a mapping of changes: remove this key
NO_FILE: Mapping[str, Any] = {}  # as the settings of a spec: write no such file
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Head:
    """One projection layer; the first of a chain reads the backbone."""

    rows: int
    bias: bool = False
    activation: str = "torch.nn.modules.linear.Identity"
    residual: bool = False


@dataclass(frozen=True)
class Spec:
    """What to build. Fields after `format` default to an unremarkable published checkpoint."""

    format: str = "stanford"  # a key of WRITERS
    backbone: str = "bert"
    heads: tuple[Head, ...] = (Head(16),)
    tokenizer: str = ""  # another one than the family's
    tokens: tuple[str, ...] = ()  # added to the vocabulary, and to the embedding table
    spare_rows: int = 0  # embedding rows beyond the vocabulary
    config: Json = field(default_factory=dict)  # changes to config.json
    settings: Json = field(default_factory=dict)  # changes to the file that holds the lengths
    prefix: str | None = None  # of the body's tensors; None is the family's own
    old_names: bool = False  # LayerNorm.gamma/.beta and a position_ids buffer
    shards: int = 1
    dtype: torch.dtype = torch.float32
    head_dtype: torch.dtype | None = None
    saved_padding: bool = False  # tokenizer.json truncates at 12 and pads to 12
    pad_is_mask: bool = False  # what PyLate leaves in the tokenizer's config
    vocab_txt: bool = False  # no tokenizer.json
    folder: str = ""  # of the Transformer module
    dense_class: str = "pylate.models.Dense.Dense"
    modules: tuple[str, ...] = ()  # further entries of modules.json, by class path
    lower_case: bool = False
    native: Json = field(default_factory=dict)  # arguments of the modules of a native save
    pickled: bool = False  # pytorch_model.bin
    seed: int = 0


def build(spec: Spec, folder: Path) -> Path:
    """Write the checkpoint of `spec` into the empty or missing `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[spec.format](spec, folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; the value `DROP` removes one."""
    write_json(path, _changed(read_json(path), changes))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a safetensors file with what `change` makes of its tensors."""
    tensors = change(load_file(path))
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A change of tensors that removes some."""
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def plus(**added: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A change of tensors that adds or replaces some; `__` in a name stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in added.items()}
    return lambda tensors: {**tensors, **named}


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def _changed(value: Json, changes: Json) -> dict[str, Any]:
    return {key: item for key, item in {**value, **changes}.items() if item is not DROP}


# Layouts


def _stanford(spec: Spec, folder: Path) -> None:
    tokenizer = _write_tokenizer(spec, folder)
    config, body = _body(spec, tokenizer)
    markers = spec.tokens or ("[unused0]", "[unused1]")
    metadata = {
        "query_token_id": markers[0],
        "doc_token_id": markers[1],
        "query_token": "[Q]",
        "doc_token": "[D]",
        "query_maxlen": 32,
        "doc_maxlen": 40,
        "dim": spec.heads[-1].rows,
        "attend_to_mask_tokens": False,
        "mask_punctuation": True,
        "similarity": "cosine",
        "interaction": "colbert",
        "checkpoint": "/private/path/of/the/trainer",
        "root": "/private/root",
    }
    write_json(folder / "config.json", {"architectures": ["HF_ColBERT"], **config})
    if spec.settings is not NO_FILE:
        write_json(folder / "artifact.metadata", _changed(metadata, spec.settings))
    (head,) = spec.heads
    linear = _head_tensors(spec, _width(spec), head, seed=1)
    _write_weights(spec, folder, {**body, **linear})


def _pylate(spec: Spec, folder: Path) -> None:
    body_folder = folder / spec.folder
    tokenizer = _write_tokenizer(spec, body_folder)
    config, body = _body(spec, tokenizer)
    config = {"architectures": [FAMILIES[spec.backbone].model], **config}
    write_json(body_folder / "config.json", config)
    _write_weights(spec, body_folder, body)
    # A by-product of the last text that was encoded before saving; never a cap.
    sentence_bert = {"max_seq_length": 11, "do_lower_case": spec.lower_case}
    write_json(body_folder / "sentence_bert_config.json", sentence_bert)
    modules = [("sentence_transformers.models.Transformer", spec.folder)]
    width = _width(spec)
    for position, head in enumerate(spec.heads, start=1):
        _write_dense(spec, folder / f"{position}_Dense", width, head, seed=position)
        modules.append((spec.dense_class, f"{position}_Dense"))
        width = head.rows
    # Normalize has nothing to store, and its folder is often absent.
    extra = enumerate(spec.modules, start=len(modules))
    modules += [(name, f"{position}_{name.rsplit('.')[-1]}") for position, name in extra]
    if any(name.endswith("Pooling") for name in spec.modules):
        pooling = {"word_embedding_dimension": _width(spec), "pooling_mode_mean_tokens": True}
        write_json(folder / f"{len(spec.heads) + 1}_Pooling" / "config.json", pooling)
    entries = [
        {"idx": position, "name": str(position), "path": path, "type": name}
        for position, (name, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)
    settings = {
        "model_type": "ColBERT",
        "__version__": {"sentence_transformers": "5.3.0", "pytorch": "2.10.0"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": spec.tokens[0] if spec.tokens else "",
        "document_prefix": spec.tokens[1] if spec.tokens else "",
        "query_length": 32,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
        "do_query_expansion": True,
    }
    settings = _changed(settings, spec.settings)
    write_json(folder / "config_sentence_transformers.json", settings)


def _native(spec: Spec, folder: Path) -> None:
    """Let sentence-transformers write its own format, so that it is the real one."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    options = dict(spec.native)
    prompts = options.pop("prompts", dict(zip(("query", "document"), spec.tokens, strict=False)))
    masking = {"skiplist_words": list("!,.?"), **options.pop("mask", {})}
    raw = folder / "raw"
    _raw(spec, raw)
    modules: list[nn.Module] = [Transformer(str(raw), **options)]
    width = _width(spec)
    for position, head in enumerate(spec.heads, start=1):
        dense = Dense(
            width,
            head.rows,
            bias=head.bias,
            activation_function=getattr(nn, head.activation.rsplit(".")[-1])(),
            module_input_name="token_embeddings",
            use_residual=head.residual,
        )
        dense.load_state_dict(_head_tensors(spec, width, head, seed=position))
        modules.append(dense)
        width = head.rows
    modules.append(MultiVectorMask(**masking))
    modules.append(Normalize(module_input_name="token_embeddings"))
    encoder = MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu")
    encoder.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(raw)
    if spec.shards > 1:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        _write_shards(spec, folder, tensors)


def _converted(spec: Spec, folder: Path) -> None:
    """Let sentence-transformers open a Stanford checkpoint and save it again."""
    from sentence_transformers import MultiVectorEncoder

    _stanford(spec, folder / "stanford")
    encoder = MultiVectorEncoder(str(folder / "stanford"), device="cpu", local_files_only=True)
    encoder.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(folder / "stanford")


def _raw(spec: Spec, folder: Path) -> None:
    tokenizer = _write_tokenizer(spec, folder)
    config, body = _body(spec, tokenizer)
    config = {"architectures": [FAMILIES[spec.backbone].model], **config}
    write_json(folder / "config.json", config)
    single = Spec(dtype=spec.dtype, pickled=spec.pickled, shards=1)
    _write_weights(single if spec.format == "native" else spec, folder, body)


def _flagembedding(spec: Spec, folder: Path) -> None:
    """BAAI/bge-m3: a dense model to sentence-transformers, with two heads in files of their own."""
    _raw(spec, folder)
    edit_json(folder / "tokenizer_config.json", **spec.settings)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    entries = [
        {
            "idx": position,
            "name": str(position),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for position, (name, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)
    pooling = {"word_embedding_dimension": _width(spec), "pooling_mode_cls_token": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.33.0", "pytorch": "2.1.2"}
    write_json(folder / "config_sentence_transformers.json", {"__version__": versions})
    sentence_bert = {"max_seq_length": 8192, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", sentence_bert)
    (head,) = spec.heads
    named = _head_tensors(spec, _width(spec), head, seed=1)
    tensors = {name.removeprefix("linear."): tensor for name, tensor in named.items()}
    if spec.pickled:
        torch.save(tensors, folder / "colbert_linear.pt")
    else:
        save_file(tensors, folder / "colbert_linear.safetensors")
    sparse = {"weight": torch.ones(1, _width(spec)), "bias": torch.zeros(1)}
    torch.save(sparse, folder / "sparse_linear.pt")


WRITERS = {
    "stanford": _stanford,
    "pylate": _pylate,
    "native": _native,
    "converted": _converted,
    "raw": _raw,
    "flagembedding": _flagembedding,
}


# Parts


def _width(spec: Spec) -> int:
    """Of the backbone's hidden states; DistilBERT calls it dim."""
    settings = FAMILIES[spec.backbone].settings
    return int(settings.get("hidden_size") or settings["dim"])


def _body(spec: Spec, tokenizer: TinyTokenizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config file and the published tensors of the backbone."""
    family = FAMILIES[spec.backbone]
    rows = tokenizer.rules.get_vocab_size() + spec.spare_rows
    special = {
        f"{role}_id": tokenizer.id(role) for role in tokenizer.special if role != "unk_token"
    }
    # ModernBERT's published config calls [CLS] and [SEP] by these names too.
    first, last = special.get("cls_token_id"), special.get("sep_token_id")
    ends = {"bos_token_id": first, "eos_token_id": last}
    config = {"vocab_size": rows, **ends, **special, **family.settings}
    config = _changed(config, spec.config)
    config_class = getattr(transformers, family.config)
    model = getattr(transformers, family.model)(config_class.from_dict(dict(config)))
    _randomise(model, spec.seed)
    tensors = {name: tensor.to(spec.dtype) for name, tensor in model.state_dict().items()}
    config["model_type"] = config_class.model_type
    if spec.backbone in PUBLISHED:
        config, tensors = PUBLISHED[spec.backbone](config, tensors)
        config = _changed(config, spec.config)  # also to what only the published file says
    if spec.old_names:
        tensors = {_old_name(name): tensor for name, tensor in tensors.items()}
        positions = torch.arange(config["max_position_embeddings"])[None]
        tensors["embeddings.position_ids"] = positions
    default = family.prefix if spec.format in ("stanford", "converted") else ""
    prefix = default if spec.prefix is None else spec.prefix
    config["dtype"] = str(spec.dtype).removeprefix("torch.")
    return config, {prefix + name: tensor for name, tensor in tensors.items()}


def _randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                scale = 0.2
            elif "embed" in name and "projection" not in name:
                scale = 0.7
            else:
                scale = 1.2 / math.sqrt(parameter[0].numel())
            shift = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(noise * scale + shift)


def _old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def _head_tensors(spec: Spec, width: int, head: Head, *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + 10 * spec.seed + seed)
    shapes = {"linear.weight": (head.rows, width)}
    if head.bias:
        shapes["linear.bias"] = (head.rows,)
    if head.residual and width != head.rows:
        shapes["residual.weight"] = (head.rows, width)
    dtype = spec.head_dtype or spec.dtype
    return {
        name: (torch.randn(shape, generator=generator) / math.sqrt(width)).to(dtype)
        for name, shape in shapes.items()
    }


def _write_dense(spec: Spec, folder: Path, width: int, head: Head, *, seed: int) -> None:
    config = {
        "in_features": width,
        "out_features": head.rows,
        "bias": head.bias,
        "activation_function": head.activation,
        "use_residual": head.residual,
    }
    write_json(folder / "config.json", config)
    save_file(_head_tensors(spec, width, head, seed=seed), folder / "model.safetensors")


def _write_weights(spec: Spec, folder: Path, tensors: dict[str, Tensor]) -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if spec.pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    elif spec.shards > 1:
        _write_shards(spec, folder, tensors)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_shards(spec: Spec, folder: Path, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    files = [f"model-{i + 1:05}-of-{spec.shards:05}.safetensors" for i in range(spec.shards)]
    weight_map = {name: files[i % spec.shards] for i, name in enumerate(names)}
    for file in files:
        shard = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _write_tokenizer(spec: Spec, folder: Path) -> TinyTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TOKENIZERS[spec.tokenizer or FAMILIES[spec.backbone].tokenizer]()
    known = tokenizer.rules.get_vocab()
    tokenizer.rules.add_tokens(
        [
            AddedToken(token, normalized=True, special=False)
            for token in spec.tokens
            if token not in known
        ]
    )
    special = dict(tokenizer.special)
    if spec.pad_is_mask:
        special["pad_token"] = special.get("mask_token", special.get("eos_token", ""))
    names = {
        **special,
        "model_max_length": 512,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if spec.vocab_txt:
        _write_vocab_txt(tokenizer, folder, names)
        return tokenizer
    if spec.saved_padding:
        tokenizer.rules.enable_truncation(12)
        tokenizer.rules.enable_padding(
            length=12, pad_id=tokenizer.id("pad_token"), pad_token=tokenizer.special["pad_token"]
        )
    tokenizer.rules.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", names)
    write_json(folder / "special_tokens_map.json", special)
    return tokenizer


def _write_vocab_txt(tokenizer: TinyTokenizer, folder: Path, names: dict[str, Any]) -> None:
    ids = tokenizer.rules.get_vocab()
    lines = "".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    names = {**names, "tokenizer_class": "BertTokenizer", "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", names)
    write_json(folder / "special_tokens_map.json", tokenizer.special)
