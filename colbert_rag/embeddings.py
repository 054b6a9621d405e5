"""The one container for token vectors: ragged rows and the offsets that cut them into texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class TokenEmbeddings:
    """Token vectors of many texts, without padding.

    Text `i` owns rows `offsets[i]:offsets[i + 1]` of `values`.

    Attributes:
        values: `(rows, dim)`, any float dtype, on any device.
        offsets: `(texts + 1,)`, int64, always on the CPU: lengths are needed as host integers, and
            reading them from an accelerator would wait for it.
    """

    values: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        """Refuse offsets that do not describe `values`.

        Raises:
            ValueError: `values` is not two-dimensional, or `offsets` is not an int64 vector that
                rises from 0 to the number of rows.
        """
        values, offsets = self.values, self.offsets
        if values.ndim != 2:
            raise ValueError(f"values has shape {tuple(values.shape)}, expected (rows, dim)")
        if offsets.ndim != 1 or offsets.dtype != torch.int64 or len(offsets) == 0:
            raise ValueError(
                f"offsets has shape {tuple(offsets.shape)} and dtype {offsets.dtype}, "
                "expected (texts + 1,) of int64"
            )
        if offsets.device.type != "cpu":
            object.__setattr__(self, "offsets", offsets.cpu())
            offsets = self.offsets
        if offsets[0] != 0 or offsets[-1] != len(values) or bool((offsets.diff() < 0).any()):
            raise ValueError(
                f"offsets must rise from 0 to {len(values)} (the rows of values), "
                f"found {offsets[0]} to {offsets[-1]}"
            )

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Sequence[int] | Tensor) -> TokenEmbeddings:
        """Cut `values` into texts of these numbers of rows, `(texts,)`, one after another."""
        return cls(values, _offsets(lengths))

    @classmethod
    def from_list(cls, texts: Sequence[Tensor], *, dim: int | None = None) -> TokenEmbeddings:
        """Join one `(rows, dim)` tensor per text; `dim` is needed only for an empty list."""
        if not texts:
            none = torch.zeros(0, dim or 0, dtype=torch.float32, device="cpu")
            return cls.from_lengths(none, [])
        return cls.from_lengths(torch.cat(list(texts)), [len(text) for text in texts])

    @classmethod
    def cat(cls, parts: Iterable[TokenEmbeddings]) -> TokenEmbeddings:
        """Append the texts of all parts, in order; at least one part is needed."""
        parts = list(parts)
        lengths = torch.cat([part.lengths for part in parts])
        return cls.from_lengths(torch.cat([part.values for part in parts]), lengths)

    @property
    def dim(self) -> int:
        """The width of a vector."""
        return self.values.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Rows of each text, `(texts,)`, int64, on the CPU."""
        return self.offsets.diff()

    @property
    def device(self) -> torch.device:
        """Where `values` lives."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The float type of `values`."""
        return self.values.dtype

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Tensor]:
        """Yield `(rows, dim)` views, one per text."""
        yield from self.values.split(self.lengths.tolist())

    @overload
    def __getitem__(self, key: int) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Tensor) -> TokenEmbeddings: ...
    def __getitem__(self, key: int | slice | Sequence[int] | Tensor) -> Tensor | TokenEmbeddings:
        """One text as a `(rows, dim)` view, or several texts as `TokenEmbeddings`.

        A contiguous slice shares memory; any other selection copies its rows.

        Raises:
            IndexError: a position is outside the texts.
        """
        if isinstance(key, int):
            key = self._position(key)
            return self.values[self.offsets[key] : self.offsets[key + 1]]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                stop = max(stop, start)
                rows = self.values[self.offsets[start] : self.offsets[stop]]
                return TokenEmbeddings(rows, self.offsets[start : stop + 1] - self.offsets[start])
            key = list(range(start, stop, step))
        if isinstance(key, Tensor):
            key = key.nonzero()[:, 0].tolist() if key.dtype == torch.bool else key.tolist()
        order = _integers([self._position(position) for position in key])
        lengths = self.lengths[order]
        offsets = _offsets(lengths)
        # Row r of the result belongs to selected text t and sits r - offsets[t] rows into it.
        rows = torch.arange(int(offsets[-1]), device="cpu") - offsets[:-1].repeat_interleave(
            lengths
        )
        rows += self.offsets[order].repeat_interleave(lengths)
        return TokenEmbeddings(self.values[rows.to(self.device)], offsets)

    def _position(self, key: int) -> int:
        if not -len(self) <= key < len(self):
            raise IndexError(f"text {key} is outside the {len(self)} texts held here")
        return key % len(self)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TokenEmbeddings:
        """The same texts on another device or in another float type; offsets stay on the CPU."""
        return TokenEmbeddings(self.values.to(device=device, dtype=dtype), self.offsets)

    def to_list(self) -> list[Tensor]:
        """One `(rows, dim)` view per text."""
        return list(self)

    def save(self, path: str | Path) -> None:
        """Write values and offsets to a safetensors file.

        Raises:
            OSError: it cannot be written; what was there is as it was.
        """
        tensors = {"values": self.values.contiguous().cpu(), "offsets": self.offsets.contiguous()}
        try:
            save_file(tensors, path)
        except SafetensorError as error:
            raise OSError(
                f"{path} could not be written ({error}): see that its folder is there, is writable "
                "and has space, and save again"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> TokenEmbeddings:
        """Read what `save` wrote, onto the CPU.

        Raises:
            ValueError: the file is not one that `save` wrote.
        """
        try:
            with safe_open(path, framework="pt") as file:
                return cls(file.get_tensor("values"), file.get_tensor("offsets"))
        except SafetensorError as error:
            raise ValueError(f"{path} does not hold token embeddings: {error}") from error

    def __repr__(self) -> str:
        """Say how much is held, without printing a tensor."""
        return (
            f"TokenEmbeddings({len(self)} texts, {len(self.values)} rows x {self.dim}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )


def _integers(numbers: Sequence[int]) -> Tensor:
    # The device is said, because the caller may have set another default.
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _offsets(lengths: Sequence[int] | Tensor) -> Tensor:
    """Turn lengths `(texts,)` into offsets `(texts + 1,)`."""
    if not isinstance(lengths, Tensor):
        lengths = _integers(lengths)
    return torch.cat([_integers([0]), lengths.cumsum(0)])
