"""Checkpoints that were damaged or made up: they open and score, or are refused with words."""

from __future__ import annotations

import copy
import functools
import json
import os
import random
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from colbert_rag import ColBERT
from colbert_rag.errors import CheckpointError, ScoringError
from tests.helpers.tiny import build
from tests.helpers.variants import VARIANTS

Path_ = tuple[object, ...]
Change = tuple[object, ...]
TEXTS = ["mars is a planet, and red", "", "venus"]
WEIGHTS = "model.safetensors"
ST_CONFIG = "config_sentence_transformers.json"
BASES = (
    "stanford-bert",
    "pylate-bert",
    "pylate-bert-in-folder",
    "native-bert",
    "stanford-bert-sharded",
    "stanford-bert-pickled",
    "stanford-bert-vocab-txt",
    "stanford-electra",
    "stanford-distilbert",
    "stanford-xmod",
    "pylate-modernbert",
    "pylate-eurobert",
    "pylate-lfm2",
    "jina",
    "flagembedding-published",
    "stanford-jinabert",
    "pylate-lfm2-bidirectional",
    "pylate-qwen3-bidirectional",
    "raw-bert",
)
DROP = "(drop)"
ODD: tuple[object, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 512, 2**20, 10**7, 2**31, 2**63, 10**18, 10**400),
    *(0.0, 0.5, -1.5, 1e-300, 1e300, float("inf"), float("nan")),
    *("", "x", " ", "\0", "\ud800", "é", "[MASK]", "..", "/etc/passwd", "a" * 300, "x" * 100_000),
    *([], {}, [[]], [None], ["x"], [0], [10**7] * 3, {"a": {}}, {"": ""}, ["en_XX"] * 3000),
    *([0] * 20_000, ["full_attention"] * 3, {"rope_type": "yarn"}, {"rope_theta": 0}),
    *({"rope_type": "linear", "factor": 1e308}, {"full_attention": 3}, {"type": "dynamic"}),
    DROP,
)
KEYS = (
    "num_labels id2label return_dict chunk_size_feed_forward output_attentions head_dim languages "
    "output_hidden_states is_decoder add_cross_attention dtype torch_dtype attn_implementation "
    "rope_scaling rope_theta rope_parameters partial_rotary_factor layer_types auto_map "
    "_attn_implementation quantization_config per_layer_config pruned_heads "
    "use_residual bias activation_function query_expansion skiplist_words keep_only_token_ids "
    "prompts query_prefix document_prefix query_length document_length model_max_length "
    "added_tokens position_embedding_type do_lower_case strip_accents added_tokens_decoder "
    "mask_token"
).split()
CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "object": b"{}",
    "list": b"[]",
    "null": b"null",
    "utf-16": b"\xff\xfe{}",
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "digits": b"9" * 5000,
    "huge": b'{"a": 1e999}',
    "nan": b'{"a": NaN}',
    "surrogate": b'"\\ud800"',
    "zeros": b"\0" * 9,
    "many lists": b"[" + b"[]," * 1_000_000 + b"0]",
    "many keys": b"{" + b'"a":[],' * 500_000 + b'"b":0}',
    "too large": b"x" * (5 * 2**20),
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 133\n",
}
KINDS: tuple[str, ...] = (
    "absent",
    "fifo",
    "folder",
    "loop",
    "/dev/zero",
    "/proc/self/mem",
    "/proc/version",
    "/etc",
)
if not hasattr(os, "mkfifo"):  # on Windows
    KINDS = ("absent", "folder")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"raw_token_embeddings": True},
    {"query_length": 8, "query_expansion": True},
    {"long_documents": "windows", "document_length": 8},
    {"query_marker": "", "document_marker": "[unused9]"},
    {"language": "xx"},
)


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what is done to it before it is opened."""

    base: str
    changes: tuple[Change, ...]
    options: dict[str, Any] = field(default_factory=dict)


@functools.cache
def _base(name: str) -> Path:
    return build(VARIANTS[name], Path(tempfile.mkdtemp(prefix="fuzz-")) / name)


def prepare(bases: Iterable[str] = BASES) -> None:
    """Build what is damaged later, and import what opening imports."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in bases:
        run(Case(name, (), {"raw_token_embeddings": True} if name == "raw-bert" else {}), None)


def run(case: Case, folder: Path | None) -> None:
    """Open the checkpoint and score with it; what is raised is a defect."""
    source = _base(case.base)
    if folder is not None:
        target = folder / "checkpoint"
        shutil.copytree(source, target)
        for change in case.changes:
            CHANGES[str(change[0])](target, *change[1:])
        source = target
    try:
        model = ColBERT.from_pretrained(
            source, device="cpu", dtype="float32", allow_pickle=True, **case.options
        )
    except CheckpointError as error:
        if not str(error).strip():
            raise AssertionError("no words") from error
        return
    try:
        scores = [place.score for place in model.rank("mars planet", TEXTS)]
    except ScoringError:
        return
    if not all(isinstance(score, float) for score in scores):
        raise AssertionError(f"scores are {scores}")


# What is done to a checkpoint


def _set(value: Any, path: Path_, new: object) -> Any:
    if not path:
        return new
    first, *rest = path
    value = copy.copy(value)
    if isinstance(value, list) and isinstance(first, int):
        if new is DROP and not rest:
            del value[first]
        else:
            value[first] = _set(value[first], tuple(rest), new)
    elif isinstance(value, dict):
        if new == DROP and not rest:
            value.pop(first, None)
        else:
            value[first] = _set(value.get(first, {}), tuple(rest), new)
    return value


def _json(folder: Path, file: str, path: Path_, new: object) -> None:
    try:
        value = json.loads((folder / file).read_bytes())
    except (OSError, ValueError, RecursionError):
        value = {}
    (folder / file).parent.mkdir(exist_ok=True, parents=True)
    try:
        (folder / file).write_text(json.dumps(_set(value, path, new)))
    except (OSError, TypeError, ValueError, IndexError, AttributeError):
        return  # an earlier change made it something else


def _header(folder: Path, file: str, path: Path_, new: object) -> None:
    data = (folder / file).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = _set(json.loads(data[8 : 8 + length]), path, new)
    text = json.dumps(header).encode()
    (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _entries(folder: Path, file: str, count: int) -> None:
    entry = b'"%09d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    length = count * (len(entry % 0) + 1) + 1
    with (folder / file).open("wb") as stream:
        stream.write(struct.pack("<Q", length) + b"{")
        stream.writelines(entry % number + b"," for number in range(count - 1))
        stream.write(entry % (count - 1) + b"}")


def _flip(folder: Path, file: str, place: float, byte: int) -> None:
    data = bytearray((folder / file).read_bytes())
    if data:
        data[int(place * len(data)) % len(data)] = byte
        (folder / file).write_bytes(data)


def _cut(folder: Path, file: str, share: float) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(share * len(data))])


def _write(folder: Path, file: str, what: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True, parents=True)
    (folder / file).write_bytes(CONTENTS[what])


def _kind(folder: Path, file: str, kind: str) -> None:
    path = folder / file
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True, parents=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind != "absent":
        path.symlink_to(kind)


def _swap(folder: Path, file: str, other: str) -> None:
    if file != other:
        shutil.copyfile(folder / other, folder / file)


def _pickle(folder: Path, file: str, what: str) -> None:
    base = _base("stanford-bert-pickled") / "pytorch_model.bin"
    tensors = torch.load(base, weights_only=True)
    name = "bert.embeddings.word_embeddings.weight"
    saved = PICKLES[what](tensors, name)
    (folder / file).parent.mkdir(exist_ok=True, parents=True)
    torch.save(saved, folder / file, _use_new_zipfile_serialization=what != "legacy")
    if what == "packed":
        _pack(folder / file)


def _pack(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def _with(make: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any], str], object]:
    return lambda tensors, name: {**tensors, name: make(tensors[name])}


PICKLES: dict[str, Callable[[dict[str, Any], str], object]] = {
    "whole": lambda tensors, name: tensors,
    "legacy": lambda tensors, name: tensors,
    "ordered": lambda tensors, name: OrderedDict(tensors),
    "list": lambda tensors, name: list(tensors.values()),
    "int keys": lambda tensors, name: dict(enumerate(tensors.values())),
    "tuple keys": lambda tensors, name: {("a", key): value for key, value in tensors.items()},
    "nested": lambda tensors, name: {"state_dict": tensors},
    "text": lambda tensors, name: {**tensors, "note": "x"},
    "packed": _with(lambda tensor: torch.zeros(10_000_000)),
    "meta": _with(lambda tensor: tensor.to("meta")),
    "sparse": _with(torch.Tensor.to_sparse),
    "rows": _with(lambda tensor: tensor.to_sparse_csr()),
    "quantised": _with(lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "expanded": _with(lambda tensor: torch.ones(1).expand(10**6, 10**6)),
    "complex": _with(lambda tensor: tensor.to(torch.complex64)),
    "conjugate": _with(lambda tensor: tensor.to(torch.complex64).conj()),
    "integers": _with(lambda tensor: tensor.to(torch.int32)),
    "doubles": _with(torch.Tensor.double),
    "parameter": _with(torch.nn.Parameter),
    "view": _with(lambda tensor: tensor.t().contiguous().t()),
    "deep": _with(lambda tensor: tensor.reshape(tensor.shape + (1,) * 40)),
    "number": _with(lambda tensor: 5),
    "strings": lambda tensors, name: {**tensors, "\ud800": tensors[name]},
}

CHANGES: dict[str, Callable[..., None]] = {
    "json": _json,
    "header": _header,
    "entries": _entries,
    "flip": _flip,
    "cut": _cut,
    "write": _write,
    "kind": _kind,
    "swap": _swap,
    "pickle": _pickle,
}


# What is drawn


def draw(rng: random.Random) -> Case:
    """One to three changes of one checkpoint."""
    base = rng.choice(BASES)
    changes = tuple(_change(rng, base) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    # A file that is gone or something else cannot be changed once more.
    files: set[object] = set()
    kept = []
    for change in changes:
        if not files & {change[1], *change[2:3]}:
            kept.append(change)
            files.add(change[1])
    return Case(base, tuple(kept), rng.choice(OPTIONS))


def _change(rng: random.Random, base: str) -> Change:
    root = _base(base)
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    file = rng.choice(files)
    kinds = ["flip", "cut", "write", "kind", "swap"]
    if file.endswith((".json", ".metadata")):
        kinds += ["json"] * 15
    elif file.endswith(".safetensors"):
        kinds += ["header"] * 8
    elif file.endswith(".bin"):
        kinds += ["pickle"] * 8
    kind = rng.choice(kinds)
    if kind in ("json", "header"):
        data = (root / file).read_bytes()
        if kind == "header":
            data = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
        value = json.loads(data)
        places = list(_places(value))
        if len(places) > 500:  # the vocabulary would take all draws
            places = [place for place in places if len(place) < 3] + rng.sample(places, 40)
        path = rng.choice(places)
        if isinstance(value, dict) and rng.random() < 0.3 and kind == "json":
            path = (rng.choice(KEYS),)
        return (kind, file, path, _new(rng, value, path))
    arguments: dict[str, Callable[[], tuple[object, ...]]] = {
        "flip": lambda: (rng.random(), rng.randrange(256)),
        "cut": lambda: (rng.random(),),
        "write": lambda: (rng.choice(sorted(CONTENTS)),),
        "kind": lambda: (rng.choice(KINDS),),
        "swap": lambda: (rng.choice(files),),
        "pickle": lambda: (rng.choice(sorted(PICKLES)),),
    }
    return (kind, file, *arguments[kind]())


def _places(value: object, path: Path_ = ()) -> Iterator[Path_]:
    yield path
    items: Iterator[tuple[object, object]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _new(rng: random.Random, value: Any, path: Path_) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else value[key]  # type: ignore[index]
    if isinstance(value, int) and rng.random() < 0.4:
        return rng.choice((value + 1, value - 1, value * 2, -value, value * 1000, value / 2))
    if isinstance(value, list) and value and rng.random() < 0.4:
        return rng.choice((value * 2, value[:-1], value[::-1], value * 1000))
    return rng.choice(ODD)


# What was found, by reading or by drawing: the defect of each is told by its change.


def _config(base: str, **keys: object) -> Case:
    file = "0_Transformer/config.json" if base.endswith("in-folder") else "config.json"
    return Case(base, tuple(("json", file, (key,), value) for key, value in keys.items()))


CORPUS: tuple[Case, ...] = (
    _config("stanford-bert", num_labels=10**7),
    _config("stanford-bert", id2label={"a": 1}, return_dict=False, chunk_size_feed_forward=7),
    _config("stanford-bert", output_attentions=True, output_hidden_states=True),
    _config("stanford-bert", max_position_embeddings=10**9),
    _config("stanford-bert", max_position_embeddings=2**20),
    _config("stanford-bert", vocab_size=10**10),
    _config("stanford-bert", hidden_size=2**20, num_hidden_layers=30),
    _config("stanford-bert", intermediate_size=10**400),
    _config("stanford-bert", pad_token_id="\ud800"),
    _config("pylate-modernbert", local_attention=-32),
    _config("pylate-eurobert", head_dim=10**8),
    _config("pylate-eurobert", head_dim=2**20),
    _config("pylate-eurobert", rope_scaling={"rope_type": "linear", "factor": 1e308}),
    _config("pylate-lfm2", block_ffn_dim_multiplier=1e300, block_auto_adjust_ff_dim=True),
    _config("stanford-xmod", languages=["en_XX", *map(str, range(300_000))]),
    _config("stanford-xmod", adapter_reduction_factor=1e-300),
    Case("pylate-bert", (("json", ST_CONFIG, ("prompts",), {"query": "x" * 4_000_000}),)),
    Case("pylate-bert", (("json", ST_CONFIG, ("query_prefix",), "x" * 4_000_000),)),
    Case("pylate-bert", (("json", "modules.json", (1, "path"), "\ud800"),)),
    Case("pylate-bert", (("json", "modules.json", (1, "path"), "x" * 5000),)),
    Case("pylate-bert", (("write", "1_Dense/config.json", "many keys"),)),
    Case("stanford-bert", (("write", "artifact.metadata", "many lists"),)),
    Case("stanford-bert", (("write", "config.json", "deep object"),)),
    Case("stanford-bert", (("write", "tokenizer.json", "deep list"),)),
    Case("stanford-bert-vocab-txt", (("write", "vocab.txt", "utf-16"),)),
    Case("stanford-bert", (("entries", WEIGHTS, 900_000),)),
    Case("stanford-bert", (("entries", WEIGHTS, 30_000),)),
    Case("stanford-bert", (("header", WEIGHTS, ("linear.weight", "shape"), [1] * 20_000),)),
    Case("stanford-bert", (("header", WEIGHTS, ("linear.weight", "dtype"), "I32"),)),
    Case("stanford-bert", (("json", "artifact.metadata", ("query_maxlen",), 10**400),)),
    Case("stanford-bert", (("json", "tokenizer.json", ("model", "vocab", "and"), 2**31),)),
    *(
        Case("stanford-bert", (("kind", file, kind),))
        for file in ("config.json", "artifact.metadata", "tokenizer.json", WEIGHTS)
        for kind in KINDS
    ),
    *(Case("stanford-bert-pickled", (("pickle", "pytorch_model.bin", what),)) for what in PICKLES),
    *(Case("stanford-bert-pickled", (("kind", "pytorch_model.bin", kind),)) for kind in KINDS),
)
