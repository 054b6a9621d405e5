"""How texts lie side by side in one row: no padding, and no text sees another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Packing:
    """How one row is cut into texts.

    Attributes:
        groups: `(first row, number of texts, length)` of runs of equally long texts.
        boundaries: `(texts + 1,)`, int32, on the model's device.
        longest: Tokens of the longest text: a host integer, because reading it from a device
            would wait for the device in every layer.
        seen: What the rest of a text sees; None where that is all of it.
        masks: What attention has made for texts of some length; the next layer asks again.
    """

    groups: tuple[tuple[int, int, int], ...]
    boundaries: Tensor
    longest: int
    seen: Seen | None = None
    masks: dict[object, Tensor | None] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Rows that belong to texts; more may follow."""
        return sum(count * length for _, count, length in self.groups)

    @classmethod
    def of(
        cls,
        lengths: NDArray[np.int64],
        device: torch.device,
        attention: NDArray[np.bool_] | None = None,
    ) -> Packing:
        """Describe texts, in order; neighbours of one length form a group.

        Args:
            lengths: Tokens of each text, `(texts,)`.
            device: Where the tensors go.
            attention: Which tokens the others see, `(tokens,)`; None for all.
        """
        boundaries = _boundaries(lengths)
        starts = np.flatnonzero(np.diff(lengths, prepend=-1))
        counts = np.diff(starts, append=len(lengths))
        groups = tuple(
            (int(boundaries[start]), int(count), int(lengths[start]))
            for start, count in zip(starts, counts, strict=True)
        )
        return cls(
            groups=groups,
            boundaries=_sent(boundaries, device),
            longest=int(lengths.max(initial=0)),
            seen=None
            if attention is None or attention.all()
            else Seen.of(attention, boundaries, device),
        )


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Seen:
    """Tokens that are seen, where a query is filled with others that are not.

    Attributes:
        mask: `(tokens,)`, bool.
        places: Rows that are seen, `(seen,)`, int64.
        hidden: Rows that are not, `(hidden,)`, int64.
        boundaries: Where each text begins among these, `(texts + 1,)`, int32.
        longest: Most of them in one text.
    """

    mask: Tensor
    places: Tensor
    hidden: Tensor
    boundaries: Tensor
    longest: int

    @classmethod
    def of(
        cls, attention: NDArray[np.bool_], boundaries: NDArray[np.int32], device: torch.device
    ) -> Seen:
        """Count what each text has of them."""
        before = np.concatenate([[0], np.cumsum(attention)])[boundaries]
        return cls(
            mask=_sent(attention, device),
            places=_sent(np.flatnonzero(attention), device),
            hidden=_sent(np.flatnonzero(~attention), device),
            boundaries=_sent(before.astype(np.int32), device),
            longest=int(np.diff(before).max(initial=0)),
        )


def _boundaries(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    boundaries = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=boundaries[1:])
    return boundaries


def _sent(array: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
