"""Reads pickled weights, only on the caller's request and only as plain tensors."""

from __future__ import annotations

import torch

from colbert_rag.checkpoint.files import Folder, join
from colbert_rag.checkpoint.tensors import TensorInfo, Tensors
from colbert_rag.errors import CorruptWeightsError

SHORT_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


def load_pickle(folder: Folder, file: str) -> dict[str, torch.Tensor]:
    """The tensors of one pickled weight file, on the CPU.

    Raises:
        CorruptWeightsError: the file holds anything but tensors, or is damaged.
    """
    try:
        # weights_only refuses every global but tensor storage, so nothing in the file can run.
        state = torch.load(folder.path / file, map_location="cpu", weights_only=True)
    # Whatever the opcodes of a damaged stream run into: an empty stack gives IndexError, an unknown
    # memo KeyError, and there are more.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptWeightsError(
            f"{file} cannot be read with weights_only=True: {reason}. Nothing in it was run"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    ):
        raise CorruptWeightsError(f"{file} does not hold a dictionary of tensors")
    return dict(state)


def index_pickle(folder: Folder, sub: str) -> Tensors:
    """Every tensor of the pickled weights in a sub-folder, by name as stored."""
    tensors: Tensors = {}
    for path in sorted((folder.path / sub).glob("pytorch*.bin")):
        file = join(sub, path.name)
        for name, tensor in load_pickle(folder, file).items():
            dtype = SHORT_DTYPES.get(tensor.dtype, str(tensor.dtype))
            tensors[name] = TensorInfo(name, file, dtype, tuple(tensor.shape))
    return tensors
