"""Names and shapes of the tensors in a checkpoint, read from file headers alone."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from colbert_rag.checkpoint.files import Folder, join
from colbert_rag.errors import CorruptWeightsError, NotACheckpointError, PickleWeightsError

MAX_HEADER_BYTES = 100 * 2**20
"""The limit the safetensors format itself sets."""

DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1}
DTYPE_BYTES |= {"U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}

BODY_PREFIXES = (
    "bert.",
    "roberta.",
    "model.",
    "distilbert.",
    "electra.",
    "deberta.",
    "xlm_roberta.",
)
"""How `save_pretrained` of a model with a head names the tensors of its backbone."""

HEAD_NAMES = ("linear.weight", "colbert_linear.weight")
"""The inline projection: outside the body prefix in every published checkpoint."""

UNUSED = ("pooler.", "cls.", "lm_head.")
"""Tensors that published checkpoints carry and late interaction never uses."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is, without its values."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


Tensors = dict[str, TensorInfo]


def index_tensors(folder: Folder, sub: str, *, allow_pickle: bool) -> Tensors:
    """Every tensor of the weights in a sub-folder, by name as stored.

    Args:
        folder: The checkpoint.
        sub: The sub-folder that holds the weights, "" for the checkpoint itself.
        allow_pickle: Accept `pytorch_model.bin`, which is loaded whole to see what it holds.

    Raises:
        NotACheckpointError: there are no weights.
        PickleWeightsError: there is only a pickle, and `allow_pickle` is false.
        CorruptWeightsError: a file or the shard index is damaged.
    """
    single, index = join(sub, "model.safetensors"), join(sub, "model.safetensors.index.json")
    if folder.has(single):
        return read_header(folder.path, single)
    if folder.has(index):
        return _read_shards(folder, sub, index)
    pickles = sorted(
        file.name for file in (folder.path / sub).glob("*.bin") if file.name.startswith("pytorch")
    )
    if pickles and not allow_pickle:
        raise PickleWeightsError(
            f"{folder.path / sub} holds its weights only as a pickle ({', '.join(pickles)}), which "
            "could run code when read. Convert it once with "
            "safetensors.torch.save_file(torch.load('pytorch_model.bin', weights_only=True), "
            "'model.safetensors'), or pass allow_pickle=True to read it with weights_only=True"
        )
    if pickles:
        # Imported here because reading a pickle needs torch, which nothing else here does.
        from colbert_rag.checkpoint.pickles import index_pickle

        return index_pickle(folder, sub)
    raise NotACheckpointError(
        f"{folder.path / sub} has no model weights: looked for model.safetensors and "
        "model.safetensors.index.json. Is the download complete?"
    )


def _read_shards(folder: Folder, sub: str, index: str) -> Tensors:
    places = folder.read(index).section("weight_map").values
    if not places:
        raise CorruptWeightsError(f"{index} has no weight_map")
    shards = {folder.inside(str(shard), named_in=index) for shard in places.values()}
    tensors: Tensors = {}
    for shard in sorted(shards):
        name = join(sub, shard)
        if not folder.has(name):
            raise CorruptWeightsError(
                f"{index} names the shard {shard}, which is not there. Is the download complete?"
            )
        tensors |= read_header(folder.path, name)
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise CorruptWeightsError(f"{index} promises tensors that no shard holds: {lost[:5]}")
    return tensors


def read_header(root: Path, file: str) -> Tensors:
    """The tensors a safetensors file describes, and whether it is as long as it says.

    Raises:
        CorruptWeightsError: the file is truncated, or its header is not what the format demands.
    """
    path = root / file
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CorruptWeightsError(
                f"{file} is not a safetensors file, or is truncated: {size:,} bytes, header of "
                f"{length:,} bytes. Download it again"
            )
        try:
            header = json.loads(stream.read(length))
            tensors, end = _parse(header, file)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptWeightsError(
                f"{file} has an unreadable header: {error}. Download it again"
            ) from error
    if size != 8 + length + end:
        raise CorruptWeightsError(
            f"{file} has {size:,} bytes, but its header describes {8 + length + end:,}. The file "
            "is truncated or damaged: download it again"
        )
    return tensors


def _parse(header: dict[str, dict[str, Any]], file: str) -> tuple[Tensors, int]:
    tensors: Tensors = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, stop = (int(place) for place in entry["data_offsets"])
        if dtype in DTYPE_BYTES and stop - start != prod(shape) * DTYPE_BYTES[dtype]:
            raise ValueError(f"tensor {name} has shape {shape} but {stop - start} bytes")
        tensors[name] = TensorInfo(name, file, dtype, shape)
        end = max(end, stop)
    return tensors, end


def body_prefix(names: list[str]) -> str:
    """The prefix that at least nine tenths of the backbone's tensors share, or "".

    The head lies outside it, and so may a pooler, hence not all.
    """
    body = [name for name in names if name not in HEAD_NAMES]
    for prefix in BODY_PREFIXES:
        if body and sum(name.startswith(prefix) for name in body) >= 0.9 * len(body):
            return prefix
    return ""


def find_head(tensors: Tensors) -> TensorInfo | None:
    """The inline projection among the tensors, wherever the prefix put it.

    Matched exactly: by suffix alone, every `...linear.weight` of a backbone would do.
    """
    prefix = body_prefix(list(tensors))
    for name in HEAD_NAMES:
        for stored in (name, prefix + name):
            if stored in tensors and len(tensors[stored].shape) == 2:
                return tensors[stored]
    return None
