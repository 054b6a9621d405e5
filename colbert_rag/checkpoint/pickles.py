"""Reads pickled weights, only on the caller's request and only as plain tensors."""

from __future__ import annotations

import hashlib
import os
import zipfile
from io import BufferedReader

import torch
from torch import Tensor

from colbert_rag.checkpoint.files import Folder
from colbert_rag.checkpoint.header import MAX_DIMENSIONS
from colbert_rag.checkpoint.tensors import TensorInfo, Tensors
from colbert_rag.errors import CorruptWeightsError

SHORT_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


def load_pickle(folder: Folder, file: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of one pickled weight file, on the CPU, and the SHA-256 of the file.

    Raises:
        CorruptWeightsError: the file holds anything but tensors, or is damaged.
    """
    with folder.open(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            _refuse_compressed(stream, size)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            # weights_only refuses every global but tensor storage, so nothing in the file can run.
            state = torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
        # Whatever the opcodes of a damaged stream run into: an empty stack gives IndexError, an
        # unknown memo KeyError, and there are more.
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CorruptWeightsError(
                f"{file} cannot be read with weights_only=True: {reason}. Nothing in it was run"
            ) from error
    if not isinstance(state, dict):
        raise CorruptWeightsError(f"{file} does not hold a dictionary of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain(tensor, size):
            raise CorruptWeightsError(
                f"{file} does not hold a dictionary of tensors: under {str(name)[:60]!r} it has "
                f"{type(tensor).__name__}, expected numbers that lie in the file as they are"
            )
    return {name: tensor.detach() for name, tensor in state.items()}, digest


def _refuse_compressed(stream: BufferedReader, size: int) -> None:
    """Tensors are stored as they are: a packed file could unpack to any size."""
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise ValueError(f"its {size:,} bytes unpack to {unpacked:,}")
    stream.seek(0)


def _is_plain(tensor: object, limit: int) -> bool:
    """Whether it is an ordinary tensor, with no more numbers than the file can hold."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.dim() <= MAX_DIMENSIONS
        and tensor.numel() * tensor.element_size() <= limit
    )


def index_pickle(folder: Folder, file: str) -> Tensors:
    """Every tensor of one pickled weight file, by name as stored.

    Raises:
        CorruptWeightsError: as `load_pickle`.
    """
    return {
        name: TensorInfo(
            name, file, SHORT_DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape)
        )
        for name, tensor in load_pickle(folder, file)[0].items()
    }
