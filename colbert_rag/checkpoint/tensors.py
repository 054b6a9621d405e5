"""One stored tensor, by name, place and shape: what can be known without reading its numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The file, type and shape of one stored tensor; `dtype` is spelled as in safetensors."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


Tensors = dict[str, TensorInfo]
