"""One stored tensor, by name, place and shape: what can be known without reading its numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor.

    Attributes:
        name: As stored.
        file: The file it lies in.
        dtype: Its type, spelled as in safetensors.
        shape: Its shape.
        start: Where its bytes begin in a safetensors file.
        size: How many they are.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    size: int = 0

    @property
    def is_float(self) -> bool:
        """Whether it holds floats."""
        return self.dtype.startswith(("F", "BF", "torch.float"))


Tensors = dict[str, TensorInfo]
"""By stored name."""
