"""What stands where in the file of a level.

In the byte order of the machine: a header; the centroids, with their groups; blocks of
documents; the tail, which holds a directory of the blocks and a sum for each page of them. Blocks
are appended one by one and end where a page ends, so that an extended file takes those of the old
one as they are, and a maker that was killed goes on behind the last one that is whole.

A block holds positions (int64) and lengths (int32) of its documents, the codes of their tokens
(two bytes each), and the inverted list.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from colbert_rag.index.kmeans import MOST, Centroids
from colbert_rag.index.local.level.pages import PAGE

MAGIC, VERSION = b"ColBlevl", 1
# Magic, version, dim, centroids, groups; the token, the digest of the model; the last position;
# tokens and summed distance where the centroids were trained (0 in a file made with new ones); a
# checksum of all that, and of the centroids.
HEADER = struct.Struct("=8sQQQQ8s32sQQdQ")
# Documents, tokens, entries of the inverted list, summed distance, and a checksum of what follows.
BLOCK_HEADER = struct.Struct("=8sQQQdQ")
BLOCK_MAGIC = b"ColBblck"
# Blocks, and a checksum of this and of the directory and sums before it.
TAIL = struct.Struct("=8sQQ")
TAIL_MAGIC = b"ColBtail"

_ALIGNED = 64
_CENTROIDS = -(-HEADER.size // _ALIGNED) * _ALIGNED


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the header says.

    Attributes:
        dim: Width of a centroid.
        centroids: How many.
        groups: How many.
        token: Names the level, in SQLite too.
        model: Digest of the record of the model.
        last: The position up to which documents are in the file.
        trained_tokens: Of the file whose centroids these are; 0 if it is this one.
        trained_distance: Summed distance of those tokens from their centroids.
    """

    dim: int
    centroids: int
    groups: int
    token: bytes
    model: bytes
    last: int
    trained_tokens: int
    trained_distance: float

    def packed(self, centroids: bytes) -> bytes:
        """Header and centroids."""
        fields = (MAGIC, VERSION, self.dim, self.centroids, self.groups, self.token, self.model)
        trained = (self.last, self.trained_tokens, self.trained_distance)
        bare = HEADER.pack(*fields, *trained, 0)[:-8]
        checksum = zlib.crc32(centroids, zlib.crc32(bare))
        header = bare + struct.pack("=Q", checksum)
        return header.ljust(_CENTROIDS, b"\0") + centroids

    @property
    def begin(self) -> int:
        """Where the blocks begin."""
        return aligned(_CENTROIDS + self._centroid_bytes, PAGE)

    @property
    def _centroid_bytes(self) -> int:
        return 4 * self.dim * (self.centroids + self.groups) + 8 * (self.groups + 1)

    @classmethod
    def unpacked(cls, header: bytes) -> Head | None:
        """Read the header alone; what it says is not checked yet."""
        if len(header) < HEADER.size:
            return None
        kind, version, dim, count, groups, token, model, last, tokens, distance, _ = HEADER.unpack(
            header[: HEADER.size]
        )
        if (kind, version) != (MAGIC, VERSION) or count > MOST:
            return None
        return cls(
            dim=dim,
            centroids=count,
            groups=groups,
            token=token,
            model=model,
            last=last,
            trained_tokens=tokens,
            trained_distance=distance,
        )

    @classmethod
    def parsed(cls, data: NDArray[np.uint8]) -> tuple[Head, Centroids] | None:
        """Read header and centroids; None if they are not what `packed` gave."""
        header = data[: HEADER.size].tobytes()
        head = cls.unpacked(header)
        if head is None or len(data) < _CENTROIDS + head._centroid_bytes:
            return None
        stored = data[_CENTROIDS : _CENTROIDS + head._centroid_bytes]
        checksum = zlib.crc32(stored.data, zlib.crc32(header[:-8]))
        if checksum != HEADER.unpack(header)[-1]:
            return None
        cut = 8 * (head.groups + 1)
        bounds = torch.from_numpy(stored[:cut].view(np.int64))
        vectors = torch.from_numpy(stored[cut:].view(np.float32).reshape(-1, head.dim))
        return head, Centroids(vectors[: head.centroids], vectors[head.centroids :], bounds)


def centroid_bytes(centroids: Centroids) -> bytes:
    """What stands behind the header."""
    parts = (centroids.bounds, centroids.values, centroids.groups)
    return b"".join(part.contiguous().numpy().tobytes() for part in parts)


@dataclass(frozen=True, slots=True)
class Shape:
    """Where the arrays of a block stand, counted from where the block begins.

    Attributes:
        documents: How many.
        tokens: Of all of them.
        entries: Of the inverted list.
        centroids: Of the file.
    """

    documents: int
    tokens: int
    entries: int
    centroids: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each array."""
        starts = 4 * (self.centroids + 1)
        return (
            *(8 * self.documents, 4 * self.documents),
            *(2 * self.tokens, starts, 2 * self.entries),
        )

    @property
    def places(self) -> tuple[int, ...]:
        """Where positions, lengths, codes, starts and lists begin; and the end."""
        places = [aligned(BLOCK_HEADER.size, _ALIGNED)]
        for size in self.sizes:
            places.append(aligned(places[-1] + size, _ALIGNED))
        places[-1] = aligned(places[-1], PAGE)
        return tuple(places)

    @property
    def size(self) -> int:
        """Bytes of the whole block."""
        return self.places[-1]


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """The arrays of one block.

    Attributes:
        positions: `(documents,)`, int64, rising.
        lengths: `(documents,)`, int32: tokens of each.
        codes: `(tokens,)`, uint16: the centroid of each token.
        starts: `(centroids + 1,)`, uint32: where the list of each begins.
        listed: `(entries,)`, uint16: documents of each centroid, by their number in the block.
    """

    positions: NDArray[np.int64]
    lengths: NDArray[np.int32]
    codes: NDArray[np.uint16]
    starts: NDArray[np.uint32]
    listed: NDArray[np.uint16]

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """All of them, in the order of the file."""
        return (self.positions, self.lengths, self.codes, self.starts, self.listed)

    @property
    def shape(self) -> Shape:
        """How much each array holds."""
        return Shape(len(self.positions), len(self.codes), len(self.listed), len(self.starts) - 1)

    def packed(self, distance: float) -> NDArray[np.uint8]:
        """The whole block, with its header."""
        shape = self.shape
        data = np.zeros(shape.size, np.uint8)
        for place, array in zip(shape.places, self.arrays, strict=False):
            raw = np.ascontiguousarray(array).view(np.uint8)
            data[place : place + len(raw)] = raw
        counts = (shape.documents, shape.tokens, shape.entries)
        checksum = zlib.crc32(data[BLOCK_HEADER.size :].data)
        header = BLOCK_HEADER.pack(BLOCK_MAGIC, *counts, distance, checksum)
        data[: len(header)] = np.frombuffer(header, np.uint8)
        return data


def block_shape(data: NDArray[np.uint8], centroids: int) -> Shape | None:
    """The shape of the block that begins with `data`; None if there is none, or not all of it."""
    if len(data) < BLOCK_HEADER.size:
        return None
    magic, *counts, _, _ = BLOCK_HEADER.unpack(data[: BLOCK_HEADER.size].tobytes())
    documents, tokens, entries = counts
    shape = Shape(documents, tokens, entries, centroids)
    return shape if magic == BLOCK_MAGIC else None


def read_block(
    data: NDArray[np.uint8], centroids: int, *, whole: bool = False
) -> tuple[Block, float] | None:
    """The block that begins with `data`, and its distance; None if it is not there.

    Args:
        data: All that stands there.
        centroids: Of the file.
        whole: Compare the block with its checksum.
    """
    shape = block_shape(data, centroids)
    if shape is None or len(data) < shape.size:
        return None
    *_, distance, checksum = BLOCK_HEADER.unpack(data[: BLOCK_HEADER.size].tobytes())
    if whole and zlib.crc32(data[BLOCK_HEADER.size : shape.size].data) != checksum:
        return None
    kinds = (np.int64, np.int32, np.uint16, np.uint32, np.uint16)
    arrays = (
        data[place : place + size].view(kind)
        for place, size, kind in zip(shape.places, shape.sizes, kinds, strict=False)
    )
    return Block(*arrays), distance


def aligned(size: int, to: int) -> int:
    """The next multiple."""
    return -(-size // to) * to
