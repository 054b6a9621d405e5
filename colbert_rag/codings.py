"""How token vectors are stored: as float16, or in fewer bits with scales beside them.

A stored vector is one row of bytes: first its numbers, then the scales of its groups of numbers. A
scale is one byte, a float of four significant bits, so that a number times its scale is *exactly* a
float16. What is decoded is therefore the same in float16 and in float32, and encoding it again
changes nothing: vectors can be copied between indexes of any coding, and all that reads them
(search, score, explain) sees the same ones. A scale of eleven bits would lose that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from colbert_rag.computing import computing
from colbert_rag.embeddings import TokenEmbeddings

VectorCoding: TypeAlias = Literal["float16", "int8", "int4"]

_LARGEST = 65504.0
"""Of float16."""

_GROUP = 32
"""Numbers that share a scale in int4: with one for a whole vector, its largest number decides how
coarse all others are, and the error is twice as large."""

_TOP_8, _TOP_4 = 127, 15
_PIECE = 2**12
"""Rows that are decoded together, in the processor's cache."""

_SMALLER = 4
"""Scales below the one that reaches the largest number, tried for int4: cutting one number off may
serve the other 31."""


def _scale_table() -> Tensor:
    """What each byte of a scale means, rising from 0: three bits of fraction, five of exponent."""
    exponents, fractions = np.arange(32)[:, None], np.arange(8)
    values = (fractions + 8 * (exponents > 0)) * 2.0 ** (np.maximum(exponents, 1) - 22)
    return torch.from_numpy(values.astype(np.float32).reshape(-1))


_SCALES = _scale_table()


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """One way of storing vectors.

    Attributes:
        name: As users call it.
        row_bytes: Bytes of a stored vector, by its width.
        encode: From finite `(rows, dim)`, float16 on the CPU, to `(rows, row_bytes)`, uint8.
        decode: From such bytes into `(rows, dim)`, float32, on the same device.
        item: Type of the numbers on disk, whose byte order is that of a file.
    """

    name: VectorCoding
    row_bytes: Callable[[int], int]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], None]
    item: str = "u1"

    def encoded(self, embeddings: TokenEmbeddings) -> CodedEmbeddings:
        """The vectors of some texts as they are stored; float16, on the CPU."""
        with computing():
            rows = self.encode(embeddings.values.contiguous())
        return CodedEmbeddings(self, embeddings.dim, TokenEmbeddings(rows, embeddings.offsets))

    def to_disk(self, rows: Tensor) -> bytes:
        """Rows as a file holds them, little-endian whatever the machine."""
        return _reordered(rows.contiguous().numpy(), self.item).tobytes()

    def from_disk(self, content: bytearray, dim: int) -> Tensor:
        """Rows that `to_disk` wrote, `(rows, row_bytes)`."""
        stored = np.frombuffer(content, np.uint8).reshape(-1, self.row_bytes(dim))
        return torch.from_numpy(_reordered(stored, self.item))


@dataclass(frozen=True, eq=False, slots=True)
class CodedEmbeddings:
    """Token vectors of many texts as they are stored; for what is not said here, `TokenEmbeddings`.

    Attributes:
        coding: What the bytes mean.
        dim: The width of a decoded vector.
        rows: The bytes, `(rows, coding.row_bytes(dim))`, uint8.
    """

    coding: Coding
    dim: int
    rows: TokenEmbeddings
    _longest: list[float] = field(default_factory=list, repr=False)

    @classmethod
    def cat(cls, parts: Sequence[CodedEmbeddings]) -> CodedEmbeddings:
        """Append the texts of all parts, in order, of one coding and width."""
        rows = TokenEmbeddings.cat(part.rows for part in parts)
        return cls(parts[0].coding, parts[0].dim, rows)

    @property
    def values(self) -> Tensor:
        """The bytes of all rows."""
        return self.rows.values

    @property
    def offsets(self) -> Tensor:
        """Where texts begin and end."""
        return self.rows.offsets

    @property
    def lengths(self) -> Tensor:
        """Rows of each text."""
        return self.rows.lengths

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.rows.device

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.rows)

    def __getitem__(self, key: slice | Sequence[int] | Tensor) -> CodedEmbeddings:
        """Several texts; a contiguous slice shares memory."""
        # No part holds a longer vector than the whole.
        return CodedEmbeddings(self.coding, self.dim, self.rows[key], self._longest.copy())

    def to(self, device: torch.device | str) -> CodedEmbeddings:
        """The same bytes on another device."""
        return CodedEmbeddings(self.coding, self.dim, self.rows.to(device))

    def longest(self) -> float:
        """No decoded vector is longer than this; computed once, which reads all of them."""
        if not self._longest:
            norms = [0.0]
            for start in range(0, len(self.values), _PIECE):  # `split` makes one piece of nothing
                some = self.values[start : start + _PIECE]
                out = torch.empty(len(some), self.dim, dtype=torch.float32, device=self.device)
                self.coding.decode(some, out)
                norms.append(float(out.norm(dim=1).max()))
            self._longest.append(max(norms) * (1 + self.dim * 2.0**-23))
        return self._longest[0]

    def decoded(self) -> TokenEmbeddings:
        """The vectors, in float16, which holds every decoded number exactly."""
        if self.coding is FLOAT16:  # nothing is copied
            return TokenEmbeddings(self.values.view(torch.float16), self.offsets)
        out = torch.empty(len(self.values), self.dim, dtype=torch.float32, device=self.device)
        self.coding.decode(self.values, out)
        return TokenEmbeddings(out.half(), self.offsets)


def coding_named(name: str) -> Coding:
    """The coding that a caller names.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(name, str) or name not in CODINGS:
        known = ", ".join(map(repr, get_args(VectorCoding)))
        raise ValueError(f"vectors is {name!r}, expected one of {known}")
    return CODINGS[name]


def _reordered(rows: np.ndarray, item: str) -> np.ndarray:
    """Bytes of numbers that are little-endian on disk as the machine's, or the other way round."""
    if sys.byteorder == "little":
        return rows
    return rows.view(item).byteswap().view(np.uint8)


def _decode_float16(rows: Tensor, out: Tensor) -> None:
    out.copy_(rows.view(torch.float16))


def _encode_int8(vectors: Tensor) -> Tensor:
    levels, scales = _fitted(vectors.float()[:, None], _TOP_8, _nearest, smaller=0)
    return torch.cat([levels[:, 0].to(torch.int8).view(torch.uint8), scales], 1)


def _decode_int8(rows: Tensor, out: Tensor) -> None:
    levels, scales = int8_parts(rows)
    out.copy_(levels).mul_(scales[:, None])


def int8_parts(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers `(rows, dim)`, int8, and scales `(rows,)`: their products are the vectors."""
    return rows[:, :-1].view(torch.int8), _scales_of(rows[:, -1])


def _encode_int4(vectors: Tensor) -> Tensor:
    count, dim = vectors.shape
    # The last number again, and not 0, which is none of the levels and would count as an error.
    padded = torch.nn.functional.pad(vectors.float()[:, None], (0, -dim % _GROUP), "replicate")
    groups = padded.reshape(count, -(-dim // _GROUP), _GROUP)
    levels, scales = _fitted(groups, _TOP_4, _nearest_odd, smaller=_SMALLER)
    nibbles = ((levels.flatten(1)[:, :dim] + _TOP_4) / 2).to(torch.uint8)
    half = -(-dim // 2)
    # The halves of a vector side by side, and not its neighbours: each is unpacked in one piece.
    upper = torch.nn.functional.pad(nibbles[:, half:], (0, dim % 2))
    return torch.cat([nibbles[:, :half] | upper << 4, scales], 1)


def _decode_int4(rows: Tensor, out: Tensor) -> None:
    dim = out.shape[1]
    half = -(-dim // 2)
    packed = rows[:, :half]
    out[:, :half] = packed & 15
    out[:, half:] = packed[:, : dim - half] >> 4
    scales = _scales_of(rows[:, half:])
    whole = dim // _GROUP * _GROUP
    groups = out[:, :whole].unflatten(1, (-1, _GROUP))
    # Twice the number, minus 15, times the scale: each of these is exact in float32.
    groups.mul_(2 * scales[:, : whole // _GROUP, None]).sub_(
        _TOP_4 * scales[:, : whole // _GROUP, None]
    )
    out[:, whole:].mul_(2 * scales[:, -1:]).sub_(_TOP_4 * scales[:, -1:])


def _scales_of(stored: Tensor) -> Tensor:
    return _SCALES.to(stored.device)[stored.long()]


def _fitted(
    values: Tensor, top: int, nearest: Callable[[Tensor, Tensor], Tensor], *, smaller: int
) -> tuple[Tensor, Tensor]:
    """The whole numbers and the scale that are nearest to each group of values.

    Args:
        values: `(rows, groups, size)`, float32.
        top: The largest whole number.
        nearest: Which one of at most a limit is nearest to a quotient.
        smaller: How many scales to try below the first that reaches the largest value.

    Returns:
        Numbers, `(rows, groups, size)` in float32, and bytes of scales, `(rows, groups)`.
    """
    first = torch.searchsorted(_SCALES * top, values.abs().amax(-1))
    levels, chosen = torch.zeros_like(values), torch.zeros_like(first)
    # In double precision, where a tie is one on every machine.
    least = torch.full(first.shape, torch.inf, dtype=torch.float64, device="cpu")
    for step in range(1, -smaller - 1, -1):
        index = (first + step).clamp(0, len(_SCALES) - 1)
        scale = _SCALES[index][..., None]
        limit = (_LARGEST / scale).floor().clamp(max=top)
        tried = nearest(torch.where(scale > 0, values / scale, 0), limit)
        error = (tried * scale - values).double().square().sum(-1)
        # The largest number may have been rounded down when it was encoded before: then the scale
        # of that time is the next larger one, and nothing is lost with it.
        taken = error < least if step < 1 else error == 0
        least = torch.where(taken, error, least)
        chosen = torch.where(taken, index, chosen)
        levels = torch.where(taken[..., None], tried, levels)
    return levels, chosen.to(torch.uint8)


def _nearest(quotients: Tensor, limit: Tensor) -> Tensor:
    return quotients.round().clamp(-limit, limit)


def _nearest_odd(quotients: Tensor, limit: Tensor) -> Tensor:
    """Odd numbers from -15 to 15: all sixteen of four bits are used, where 0 would waste one."""
    limit = ((limit + 1) / 2).floor() * 2 - 1
    return ((quotients / 2).floor() * 2 + 1).clamp(-limit, limit)


FLOAT16 = Coding(
    name="float16",
    row_bytes=lambda dim: 2 * dim,
    encode=lambda vectors: vectors.view(torch.uint8),
    decode=_decode_float16,
    item="<f2",
)

INT8 = Coding(
    name="int8",
    row_bytes=lambda dim: dim + 1,
    encode=_encode_int8,
    decode=_decode_int8,
)

INT4 = Coding(
    name="int4",
    row_bytes=lambda dim: -(-dim // 2) + -(-dim // _GROUP),
    encode=_encode_int4,
    decode=_decode_int4,
)

CODINGS: dict[str, Coding] = {coding.name: coding for coding in (FLOAT16, INT8, INT4)}

DEFAULT: VectorCoding = "float16"
"""Of a new index."""
