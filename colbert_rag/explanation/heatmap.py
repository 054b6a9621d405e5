"""Similarities as one row of pixels for each line, small enough to be kept in a notebook."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_COLUMNS = 96
"""Places are drawn one by one up to this number; of more, each column shows the best of several.
No strip is narrower in pixels, so that a browser never leaves a column out."""

# One colour with more or less opacity is seen on light paper as on dark.
_COLOUR = (217, 119, 6)
_WEAKEST, _STRONGEST = 0.04, 0.8


def strips(profiles: NDArray[np.float32], best: Sequence[Sequence[int]]) -> list[str]:
    """One PNG image for each line of `profiles`, `(lines, places)`, as a data URL.

    The positions in `best` stand out at full opacity; there is at least one place.
    """
    finite = profiles[np.isfinite(profiles)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    level = np.nan_to_num((profiles - low) / max(high - low, 1e-6), nan=0.0, neginf=0.0)
    opacity = _WEAKEST + (_STRONGEST - _WEAKEST) * level**2
    for line, places in enumerate(best):
        opacity[line, list(places)] = 1.0
    places = opacity.shape[1]
    starts = np.unique(np.linspace(0, places, min(places, _COLUMNS), endpoint=False, dtype=int))
    alpha = (255 * np.maximum.reduceat(opacity, starts, axis=1)).astype(np.uint8)
    return [_png(row) for row in alpha]


def _png(alpha: NDArray[np.uint8]) -> str:
    """One row of pixels, RGBA (https://www.w3.org/TR/png-3/)."""
    pixels = np.empty((len(alpha), 4), np.uint8)
    pixels[:, :3] = _COLOUR
    pixels[:, 3] = alpha
    header = struct.pack(">IIBBBBB", len(alpha), 1, 8, 6, 0, 0, 0)
    data = zlib.compress(b"\0" + pixels.tobytes(), 9)
    image = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data)
    return f"data:image/png;base64,{base64.b64encode(image + _chunk(b'IEND', b'')).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
