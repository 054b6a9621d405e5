"""Reads the header of a safetensors file, which may be hostile; never by mapping the file.

A mapped file that somebody cuts short kills the process that reads it. What the header must be is
written in github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import math
import os
from io import BufferedReader
from typing import Any

from colbert_rag.checkpoint.tensors import TensorInfo, Tensors
from colbert_rag.errors import CorruptWeightsError

MAX_HEADER_BYTES = 2 * 2**20
"""The largest of a model that is hosted here, X-MOD with 81 languages, has half a MiB."""

MAX_DIMENSIONS = 8

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one number, by type. Types below a byte belong to quantised models."""


def read_header(stream: BufferedReader, file: str) -> tuple[Tensors, bytes]:
    """The tensors that an open safetensors file describes, in the order of their bytes.

    Args:
        stream: The file at its start; left where the first tensor begins.
        file: Its name, for messages and in the result.

    Returns:
        The tensors by name, and the bytes that were read.

    Raises:
        CorruptWeightsError: the file is not as long as it says, or its header is not what the
            format demands.
    """
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise damaged(file, size, "too short for its header")
    if length > MAX_HEADER_BYTES:
        raise damaged(file, size, f"its header has {length:,} of {MAX_HEADER_BYTES:,} bytes")
    raw = stream.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"))
        entries.pop("__metadata__", None)
        places = [_entry(file, name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(file, size, f"its header cannot be read ({error})") from error
    places.sort(key=lambda info: (info.start, info.size))
    stop = 8 + length
    for info in places:
        if info.start != stop:
            raise damaged(file, size, f"{info.name[:60]!r} does not follow the tensor before it")
        stop += info.size
    if stop != size:
        raise damaged(file, size, f"its tensors end at {stop:,}")
    return {info.name: info for info in places}, prefix + raw


def _entry(file: str, name: str, entry: dict[str, Any], start: int) -> TensorInfo:
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape or data_offsets of {name[:60]!r} are no whole numbers")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name[:60]!r} has {len(shape):,} of {MAX_DIMENSIONS} dimensions")
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype of {name[:60]!r} is none of {', '.join(ITEM_BYTES)}")
    size = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != size:
        raise ValueError(f"{name[:60]!r} does not have the bytes of its shape")
    return TensorInfo(name, file, dtype, tuple(shape), start + begin, size)


def damaged(file: str, size: int, why: str) -> CorruptWeightsError:
    """What is raised for a file that is not what it claims to be."""
    return CorruptWeightsError(
        f"{file} is not a safetensors file, or is truncated or damaged: {size:,} bytes, {why}. "
        "Download it again"
    )
