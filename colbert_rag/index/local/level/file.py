"""The file of a level: opened whole or not at all, and made block by block."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedRandom

import numpy as np
from numpy.typing import NDArray

from colbert_rag.errors import IndexCorruptError
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.kmeans import Centroids
from colbert_rag.index.local.derived import DerivedFile, readable
from colbert_rag.index.local.level import postings
from colbert_rag.index.local.level.layout import (
    BLOCK_HEADER,
    HEADER,
    MAGIC,
    TAIL,
    TAIL_MAGIC,
    Block,
    Head,
    block_shape,
    centroid_bytes,
    read_block,
)
from colbert_rag.index.local.level.pages import DamagedPageError, Pages, page_sums
from colbert_rag.written import private, sync

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A block in a file that is open.

    Attributes:
        block: Its arrays, mapped.
        begin: Where it stands, counted from where the blocks begin.
        distance: Summed distance of its tokens from their centroids.
    """

    block: Block
    begin: int
    distance: float

    @property
    def bytes(self) -> int:
        """Of the whole block."""
        return self.block.shape.size


@dataclass(frozen=True, eq=False, slots=True)
class Opened:
    """A level that is mapped: nothing of it is read before it is used, but for its tables.

    Attributes:
        head: What it is.
        centroids: Mapped.
        parts: Its blocks.
        pages: Checks what is read of the blocks.
        positions: `(documents,)`, int64, rising: of all blocks.
        lengths: `(documents,)`, int64: tokens of each.
        data: The bytes of the blocks.
    """

    head: Head
    centroids: Centroids
    parts: tuple[Part, ...]
    pages: Pages
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]
    data: NDArray[np.uint8]

    @property
    def tokens(self) -> int:
        """In all blocks."""
        return sum(len(part.block.codes) for part in self.parts)

    @property
    def distance(self) -> float:
        """Summed distance of all tokens from their centroids."""
        return sum(part.distance for part in self.parts)


class LevelFile(DerivedFile):
    """The file of the level beside the index at `path`; it may be there or not."""

    def __init__(self, path: str, info: IndexInfo) -> None:
        """Name the file for an index that `info` describes; nothing is opened."""
        purpose = (
            "the level by which a large index is searched has that name, and without it every "
            "search reads everything"
        )
        super().__init__(path, info, ending="level", magic=MAGIC, purpose=purpose)

    @property
    def model(self) -> bytes:
        """Digest of the record of the model."""
        return self._model

    def open(self) -> Opened | None:
        """Map the file; None if there is none, or none that was made whole for this model."""
        mapped = self._mapped()
        if mapped is None:
            return None
        with contextlib.suppress(ValueError, DamagedPageError):  # lengths that do not fit
            return self._parsed(readable(mapped).numpy(), mapped)
        return None

    def _parsed(self, data: NDArray[np.uint8], mapped: mmap.mmap) -> Opened | None:
        found = Head.parsed(data)
        if found is None or (found[0].model, found[0].dim) != (self._model, self._dim):
            return None
        head, centroids = found
        magic, blocks, checksum = TAIL.unpack(data[-TAIL.size :].tobytes())
        directory = data[-TAIL.size - 8 * (blocks + 1) : -TAIL.size].view(np.int64)
        if magic != TAIL_MAGIC or len(directory) != blocks + 1:
            return None
        begin, end = head.begin, head.begin + int(directory[-1])
        sums = data[end : len(data) - TAIL.size - directory.nbytes]
        if zlib.crc32(data[end : -TAIL.size].data) != checksum:
            return None
        body = data[begin:end]
        pages = Pages(body, sums.view(np.uint64), mapped, begin)
        pages.check(directory[:-1], directory[:-1] + BLOCK_HEADER.size)
        parts = []
        for place in directory[:-1].tolist():
            read = read_block(body[place:], head.centroids)
            if read is None:
                return None
            places = read[0].shape.places
            pages.check(np.array([place + places[0]]), np.array([place + places[2]]))
            parts.append(Part(read[0], place, read[1]))
        # Documents are counted by blocks: another version may have made blocks of another size.
        if any(len(part.block.positions) != postings.BLOCK for part in parts[:-1]):
            return None
        positions = [part.block.positions for part in parts]
        lengths = [part.block.lengths for part in parts]
        joined = np.concatenate(positions), np.concatenate(lengths).astype(np.int64)
        return Opened(head, centroids, tuple(parts), pages, *joined, body)

    def verify(self) -> None:
        """Compare all that a file which can be opened holds with its checksums.

        Raises:
            IndexCorruptError: a page is not what was written.
        """
        opened = self.open()
        if opened is None:
            return
        try:
            opened.pages.check(np.array([0]), np.array([len(opened.data)]))
        except DamagedPageError as error:
            raise IndexCorruptError(
                f"{self.path} is damaged (a page is not what was written). It is derived from "
                f"{self._index.name}, which is intact: delete it, and optimize() makes it again"
            ) from error

    def make(
        self,
        token: bytes,
        begin: Callable[[], tuple[Head, Centroids]],
        fill: Callable[[Writer], object],
    ) -> None:
        """Write the file anew, and put it in the place of the one that is there.

        A maker that is killed leaves what it has written, and the next one of the same level goes
        on behind it.

        Args:
            token: Names the level.
            begin: Gives its head and centroids, where nothing is left.
            fill: Appends the blocks that are missing.

        Raises:
            OSError: it cannot be written, and what was written is gone.
        """
        aside = self.aside(token.hex())
        try:
            with open(aside, "r+b", opener=_made) as file:
                writer = self._resumed(file, token)
                if writer is None:
                    file.seek(0)
                    file.truncate()
                    writer = Writer(file, *begin())
                    writer.write_head()
                fill(writer)
                writer.finish()
            self.publish(aside)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise

    def _resumed(self, file: BufferedRandom, token: bytes) -> Writer | None:
        head = Head.unpacked(file.read(HEADER.size))
        if head is None or os.fstat(file.fileno()).st_size < head.begin:
            return None
        file.seek(0)
        found = Head.parsed(np.frombuffer(bytearray(file.read(head.begin)), np.uint8))
        if found is None or (head.model, head.dim, head.token) != (self._model, self._dim, token):
            return None
        writer = Writer(file, *found)
        writer.skip_whole_blocks()
        return writer


class Writer:
    """A level that is being written, aside.

    Attributes:
        head: What it will be.
        centroids: Its centroids.
        after: The position of the last document that is written.
    """

    def __init__(self, file: BufferedRandom, head: Head, centroids: Centroids) -> None:
        """Write to `file`."""
        self.head, self.centroids, self.after = head, centroids, 0
        self._file = file
        self._places, self._sums = [0], [np.zeros(0, np.uint64)]

    def write_head(self) -> None:
        """Write what stands before the blocks."""
        self._file.write(self.head.packed(centroid_bytes(self.centroids)))
        self._file.write(bytes(self.head.begin - self._file.tell()))

    def skip_whole_blocks(self) -> None:
        """Go behind the last block that is whole and full; what follows is written anew."""
        size = os.fstat(self._file.fileno()).st_size
        while True:
            begin = self.head.begin + self._places[-1]
            self._file.seek(begin)
            header = np.frombuffer(self._file.read(BLOCK_HEADER.size), np.uint8)
            shape = block_shape(header, self.head.centroids)
            if shape is None or begin + shape.size > size:
                break
            self._file.seek(begin)
            data = np.frombuffer(self._file.read(shape.size), np.uint8)
            read = read_block(data, self.head.centroids, whole=True)
            if read is None or len(read[0].positions) < postings.BLOCK:
                break
            self._note(data, int(read[0].positions[-1]))
        self._file.seek(self.head.begin + self._places[-1])
        self._file.truncate()

    def append(self, data: NDArray[np.uint8], last: int) -> None:
        """Write a block, whose last document has the position `last`."""
        self._file.write(data.data)
        # Behind a power cut, a block that counts as whole must be.
        sync(self._file)
        self._note(data, last)

    def _note(self, data: NDArray[np.uint8], last: int) -> None:
        self._places.append(self._places[-1] + len(data))
        self._sums.append(page_sums(data))
        self.after = last

    def finish(self) -> None:
        """Write the tail."""
        sums = np.concatenate(self._sums)
        directory = np.array(self._places, np.int64)
        tail = sums.tobytes() + directory.tobytes()
        self._file.write(tail)
        self._file.write(TAIL.pack(TAIL_MAGIC, len(directory) - 1, zlib.crc32(tail)))
        sync(self._file)


def _made(path: str, flags: int) -> int:
    return private(path, flags | os.O_CREAT)
