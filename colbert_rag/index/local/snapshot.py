"""The vectors of an index as a search reads them: mapped, held on the device, or streamed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from colbert_rag.codings import CodedEmbeddings
from colbert_rag.device import trim_heap
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import Json
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.derived import Stamp
from colbert_rag.index.local.rows import Rows
from colbert_rag.index.local.shared import Copy, SharedVectors

logger = logging.getLogger(__name__)

# One kernel call's worth: large enough for a GPU, small beside the vectors that are held.
BLOCK_BYTES = 128 * 2**20

# Read at a time for the shared file, into memory that is wanted for nothing else afterwards.
MADE_BYTES = 4 * 2**20

# Below this a process holds the vectors itself: a second file would be more bother than it saves.
SHARED_FROM = 16 * 2**20

# The shared file is made anew once this part of the vectors is missing there or removed since. All
# versions of an index that grows step by step are then together five times what is written once.
STALE_SHARE = 0.25


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Some documents in order of insertion, with their vectors.

    Attributes:
        positions: `(documents,)`, int64, rising, on the CPU.
        embeddings: As they are stored, on the device that searches.
        passing: `(documents,)`, bool: which of them may be found; None is all.
    """

    positions: Tensor
    embeddings: CodedEmbeddings
    passing: Tensor | None = None

    def only(self, kept: Tensor) -> Block:
        """The documents at the positions `kept`, without the vectors of the others."""
        chosen = torch.isin(self.positions, kept, assume_unique=True)
        if bool(chosen.all()):
            return self
        return Block(self.positions[chosen], self.embeddings[chosen])

    def masked(self, kept: Tensor) -> Block:
        """The documents at the positions `kept`; the vectors of the others stay where they are."""
        chosen = self._chosen(kept)
        return self if bool(chosen.all()) else Block(self.positions, self.embeddings, chosen)

    def _chosen(self, kept: Tensor) -> Tensor:
        chosen = torch.isin(self.positions, kept, assume_unique=True)
        return chosen if self.passing is None else chosen & self.passing

    def filtered(self, kept: Tensor) -> Block:
        """The documents at the positions `kept`; scores of others may be computed in vain."""
        chosen = self._chosen(kept)
        # Copying a vector costs about as much as scoring it twice.
        if int(chosen.sum()) * 3 > len(chosen):
            return Block(self.positions, self.embeddings, chosen)
        return Block(self.positions[chosen], self.embeddings[chosen])


class Snapshot:
    """An index file as of the last commit that was seen.

    Commits of other processes are noticed by SQLite's `data_version`. A commit that only added
    documents costs reading those; one that removed some costs dropping their vectors; neither reads
    again what is held. All methods must be called inside one read transaction.

    On a CPU the vectors of a large index are those of the shared file, which is made where it is
    missing or stale; what it lacks, the snapshot's own part, is held or streamed.
    """

    def __init__(
        self,
        database: Database,
        rows: Rows,
        shared: SharedVectors | None,
        dim: int,
        *,
        device: str,
        memory_budget: int,
    ) -> None:
        """Hold vectors of width `dim` on `device`, up to `memory_budget` bytes, else stream them.

        Those of the shared file do not count, since the system can take their pages back. While
        loading, merging and filtering, up to three blocks of at most `BLOCK_BYTES` come on top, and
        about 100 bytes a document for positions; metadata is held once a filter was used.
        """
        self._database = database
        self._rows = rows
        self._shared = shared if torch.device(device).type == "cpu" else None
        self._device = device
        self._dim = dim
        self._budget = memory_budget
        self._coding = database.coding
        self._makes = True  # until it fails
        self._stamp: Stamp | None = None
        self._mapped: list[Block] = []
        self._blocks: list[Block] | None = []
        self.forget()

    def forget(self, after: int = 0) -> None:
        """Let go of all that is held or mapped, and hold only what is behind a position."""
        self._version: tuple[int, int] | None = None
        self._removals = self._edits = 0
        self._after = self._last = after
        self._lengths = torch.zeros(0, dtype=torch.int64)
        self._own = torch.zeros(0, dtype=torch.bool)
        self._metadata: dict[int, Mapping[str, Json]] | None = None
        self.positions = torch.zeros(0, dtype=torch.int64)
        self._adopt(None)

    # Held as stored. A CPU multiplies in float32: MaxSim converts block by block in its cache,
    # which takes half the memory and about the time of reading float32 from it.
    @property
    def _row_bytes(self) -> int:
        return self._coding.row_bytes(self._dim)

    @property
    def _block_rows(self) -> int:
        return max(1, min(BLOCK_BYTES, self._budget) // self._row_bytes)

    @property
    def held_bytes(self) -> int:
        """Bytes of vectors in memory of this process, or on its device."""
        return sum(block.embeddings.values.nbytes for block in self._blocks or ())

    @property
    def mapped_bytes(self) -> int:
        """Bytes of vectors of the shared file that this process reads."""
        return self._mapped_rows * self._row_bytes

    @property
    def tokens(self) -> int:
        """How many vectors the documents have."""
        return int(self._lengths.sum())

    @property
    def is_resident(self) -> bool:
        """Whether the vectors are held or mapped, and not read from SQLite for each search."""
        return self._blocks is not None

    def refresh(self) -> None:
        """Catch up with the file."""
        stamp = None if self._shared is None else self._shared.stamp()
        version = self._database.version()
        if (version, stamp) == (self._version, self._stamp):
            return
        try:
            # Another process made the file anew, or somebody spoiled it, or vectors were converted.
            if stamp != self._stamp or self._coding is not self._database.coding:
                self.forget(self._after)
                self._stamp, self._coding = stamp, self._database.coding
            self._catch_up()
        except BaseException:
            self.forget(self._after)  # never search a mixture of two commits
            raise
        self._version = version

    def _catch_up(self) -> None:
        removals, edits = self._rows.counters()
        if removals != self._removals:
            self._drop_all_but(self._rows.positions(after=self._after))
        if edits != self._edits:
            self._metadata = None
        self._removals, self._edits = removals, edits
        positions, lengths = self._rows.catalog(after=self._last)
        if self._metadata is not None:
            self._metadata |= self._rows.metadata(after=self._last)
        self.positions = torch.cat([self.positions, positions])
        self._lengths = torch.cat([self._lengths, lengths])
        self._own = torch.cat([self._own, torch.ones(len(positions), dtype=torch.bool)])
        if len(positions):
            self._last = int(positions[-1])
        if self._shared is not None:
            self._share(self._shared)
        self._hold()

    def _drop_all_but(self, current: Tensor) -> None:
        kept = torch.isin(self.positions, current, assume_unique=True)
        self.positions, self._lengths = self.positions[kept], self._lengths[kept]
        self._own = self._own[kept]
        self._mapped = [block.masked(current) for block in self._mapped]
        if self._blocks is not None:
            remaining = (block.only(current) for block in self._blocks)
            self._blocks = [block for block in remaining if len(block.positions)]
        if self._metadata is not None:
            held = self._metadata
            self._metadata = {position: held[position] for position in self.positions.tolist()}

    def _share(self, shared: SharedVectors) -> None:
        """Map the shared file, and make it before where that pays."""
        if self._version is None and self._is_stale():
            self._adopt(shared.open(self._coding))
        if self._is_stale() and self._makes:
            self._make(shared)
            self._adopt(shared.open(self._coding))
        if self._unused() > self._mapped_rows // 2:  # it costs more time than it saves memory
            self._adopt(None)

    def _is_stale(self) -> bool:
        rows = int(self._lengths.sum())
        if max(rows, self._mapped_rows) * self._row_bytes < SHARED_FROM:
            return False
        return int(self._lengths[self._own].sum()) + self._unused() > STALE_SHARE * rows

    def _unused(self) -> int:
        """Rows of the shared file that are scored in vain."""
        return self._mapped_rows - int(self._lengths[~self._own].sum())

    def _make(self, shared: SharedVectors) -> None:
        self._mapped = []  # Windows replaces and removes no file that is mapped
        if int(self._lengths.sum()) * self._row_bytes < SHARED_FROM:
            shared.remove()
        elif (checksums := self._checksums()) is not None:
            runs = self._runs(self._lengths, MADE_BYTES // self._row_bytes)
            read = (self._rows.coded(self.positions[first:last]) for first, last in runs)
            made = shared.make(self.positions, self._lengths, checksums, self._coding, read)
            self._makes = made is not None
        self._stamp = shared.stamp()

    def _checksums(self) -> Tensor | None:
        """Of the vectors of each document; None if some are missing, as reading them will say."""
        positions, checksums = self._rows.checksums()
        return checksums if torch.equal(positions, self.positions) else None

    def _adopt(self, copy: Copy | None) -> None:
        """Take from a mapped file, or from none, what SQLite holds unchanged."""
        self._own[:] = True
        self._mapped, self._mapped_rows = [], 0
        self._blocks, self._held = [], 0  # own documents, and the last that is in blocks
        if copy is None or (checksums := self._checksums()) is None:
            return
        usable = torch.isin(copy.positions, self.positions, assume_unique=True)
        places = torch.searchsorted(self.positions, copy.positions[usable])
        same = checksums[places] == copy.checksums[usable]
        same &= self._lengths[places] == copy.embeddings.lengths[usable]
        usable[usable.clone()] = same
        self._own[places[same]] = False
        self._mapped_rows = len(copy.embeddings.values)
        for first, last in self._runs(copy.embeddings.lengths, self._block_rows):
            block = Block(copy.positions[first:last], copy.embeddings[first:last])
            self._mapped.append(block.masked(copy.positions[usable]))
        # What was held until now was read in pieces, which the C library would keep.
        trim_heap()

    def _hold(self) -> None:
        """Load what is not mapped and not held yet, unless all of that would be too much."""
        if int(self._lengths[self._own].sum()) * self._row_bytes > self._budget:
            if self._blocks is not None:
                logger.warning(
                    "%s needs %d MiB for its vectors and may hold %d: each search reads the file. "
                    "Raise memory_budget if there is memory",
                    self._database.path,
                    int(self._lengths[self._own].sum()) * self._row_bytes >> 20,
                    self._budget >> 20,
                )
            self._blocks, self._held = None, 0
            return
        if self._blocks is None:
            self._blocks = []
        missing = self._own & (self.positions > self._held)
        self._load(self.positions[missing], self._lengths[missing])
        self._held = self._last
        if int(self._lengths[missing].sum()) * self._row_bytes >= SHARED_FROM:
            trim_heap()  # of the pieces that were read

    def _load(self, positions: Tensor, lengths: Tensor) -> None:
        assert self._blocks is not None
        for block in self._read(positions, lengths):
            last = self._blocks[-1].embeddings if self._blocks else None
            rows = len(block.embeddings.values)
            # Small commits fill one block before the next begins, so blocks stay few.
            if last is not None and len(last.values) + rows <= self._block_rows:
                block = _joined(self._blocks.pop(), block)
            self._blocks.append(block)

    def _read(self, positions: Tensor, lengths: Tensor) -> Iterator[Block]:
        """Read documents from the file, as many at a time as fit a block."""
        for first, last in self._runs(lengths, self._block_rows):
            some = positions[first:last]
            yield Block(some, self._rows.coded(some).to(self._device))

    @staticmethod
    def _runs(lengths: Tensor, rows: int) -> Iterator[tuple[int, int]]:
        """Cut documents into runs `(first, last)` of at most `rows` rows, but one document."""
        first = 0
        ends = lengths.cumsum(0)
        while first < len(lengths):
            before = int(ends[first - 1]) if first else 0
            last = int(torch.searchsorted(ends, before + rows, right=True))
            last = max(last, first + 1)
            yield first, last
            first = last

    def blocks(self, kept: Tensor | None = None) -> Iterator[Block]:
        """Everything, or the documents at the positions `kept`, each in order inside its block."""
        for block in chain(self._mapped, self._blocks or ()):
            part = block if kept is None else block.filtered(kept)
            if len(part.positions):
                yield part
        if self._blocks is None:
            chosen = self._own if kept is None else self._own & torch.isin(self.positions, kept)
            yield from self._read(self.positions[chosen], self._lengths[chosen])

    def matching(self, condition: Condition) -> Tensor:
        """Positions of the documents whose metadata passes, rising."""
        if self._metadata is None:
            self._metadata = self._rows.metadata(after=self._after)
        held = self._metadata
        passing = [at for at in self.positions.tolist() if condition.matches(held[at])]
        return torch.tensor(passing, dtype=torch.int64)


def _joined(first: Block, second: Block) -> Block:
    return Block(
        torch.cat([first.positions, second.positions]),
        CodedEmbeddings.cat([first.embeddings, second.embeddings]),
    )
