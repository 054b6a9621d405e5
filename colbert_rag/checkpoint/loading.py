"""Reads tensors into memory of torch's own; what a file becomes afterwards no longer matters.

Files are not mapped into memory: cut short or written over, a mapped one kills the process or
changes scores in silence.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import torch
from torch import Tensor

from colbert_rag.checkpoint.files import Folder
from colbert_rag.checkpoint.header import damaged, read_header
from colbert_rag.checkpoint.pickles import load_pickle
from colbert_rag.checkpoint.tensors import TensorInfo

TORCH_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}

PICKLED = (".bin", ".pt")
"""How `torch.save` is used to name its files."""

Keep = Callable[[str, Tensor], None]


def load_weights(folder: Folder, file: str, keep: Keep) -> str:
    """Hand over every tensor of a weight file, one after another, and digest what was read.

    Args:
        folder: The checkpoint.
        file: The weight file in it.
        keep: Called with name and tensor; what it does not hold is freed before the next.

    Returns:
        SHA-256 of the file, as it was read.

    Raises:
        CorruptWeightsError: the file is damaged, or changes while it is read.
    """
    if file.endswith(PICKLED):
        tensors, digest = load_pickle(folder, file)
        while tensors:
            keep(*tensors.popitem())
        return digest
    with folder.open(file) as stream:
        found, header = read_header(stream, file)
        sha256 = hashlib.sha256(header)
        for info in found.values():
            memory = torch.empty(info.size, dtype=torch.uint8, device="cpu")
            numbers = memory.numpy().data
            if stream.readinto(numbers) != info.size:
                size = os.fstat(stream.fileno()).st_size
                raise damaged(file, size, f"it ends inside {info.name[:60]!r}")
            sha256.update(numbers)
            keep(info.name, _shaped(memory, info))
    return sha256.hexdigest()


def _shaped(memory: Tensor, info: TensorInfo) -> Tensor:
    return memory.view(TORCH_TYPES[info.dtype]).reshape(info.shape)
