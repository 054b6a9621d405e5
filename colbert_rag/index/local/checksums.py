"""Numbers that tell what an index file holds from what was written there."""

from __future__ import annotations

import zlib


def head_checksum(position: int, name: str, rows: int, digest: bytes, metadata: str) -> int:
    """Of everything that is stored of a document; the digest answers for its text."""
    described = f"{name}\0{rows}\0{digest.hex()}\0{metadata}"
    return zlib.crc32(described.encode(), _seed(position))


def vectors_checksum(position: int, vectors: bytes | memoryview) -> int:
    """Of the bytes of a document's vectors, at its position."""
    return zlib.crc32(vectors, _seed(position))


def _seed(position: int) -> int:
    """Starts a checksum, so that what was stored at one position fits at no other."""
    return position & 0xFFFFFFFF
