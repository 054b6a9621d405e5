"""The vectors of an index as a search reads them: held on the device, or streamed from the file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.conditions import Condition
from colbert_rag.index.documents import Json
from colbert_rag.index.local.database import Database
from colbert_rag.index.local.rows import Rows

logger = logging.getLogger(__name__)

# One kernel call's worth: large enough for a GPU, small beside the vectors that are held.
BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Some documents in order of insertion, with their vectors.

    Attributes:
        positions: `(documents,)`, int64, rising, on the CPU.
        embeddings: On the device that searches.
        passing: `(documents,)`, bool: which of them may be found; None is all.
    """

    positions: Tensor
    embeddings: TokenEmbeddings
    passing: Tensor | None = None

    def only(self, kept: Tensor) -> Block:
        """The documents at the positions `kept`, without the vectors of the others."""
        chosen = torch.isin(self.positions, kept, assume_unique=True)
        if bool(chosen.all()):
            return self
        return Block(self.positions[chosen], self.embeddings[chosen])

    def filtered(self, kept: Tensor) -> Block:
        """The documents at the positions `kept`; scores of others may be computed in vain."""
        chosen = torch.isin(self.positions, kept, assume_unique=True)
        # Copying a vector costs about as much as scoring it twice.
        if int(chosen.sum()) * 3 > len(chosen):
            return Block(self.positions, self.embeddings, chosen)
        return Block(self.positions[chosen], self.embeddings[chosen])


class Snapshot:
    """An index file as of the last commit that was seen.

    Commits of other processes are noticed by SQLite's `data_version`. A commit that only added
    documents costs reading those; one that removed some costs dropping their vectors; neither reads
    again what is held. All methods must be called inside one read transaction.
    """

    def __init__(
        self, database: Database, rows: Rows, dim: int, *, device: str, memory_budget: int
    ) -> None:
        """Hold vectors of width `dim` on `device`, up to `memory_budget` bytes, else stream them.

        While loading, merging and filtering, up to three blocks of at most `BLOCK_BYTES` come on
        top, and about 100 bytes a document for positions; metadata is held once a filter was used.
        """
        self._database = database
        self._rows = rows
        self._device = device
        # Held as stored. A CPU multiplies in float32: MaxSim converts block by block in its cache,
        # which takes half the memory and about the time of reading float32 from it.
        self._row_bytes = dim * torch.float16.itemsize
        self._budget = memory_budget
        self._block_rows = max(1, min(BLOCK_BYTES, memory_budget) // self._row_bytes)
        self._forget()

    def _forget(self) -> None:
        self._version: tuple[int, int] | None = None
        self._removals = self._edits = self._last = 0
        self._lengths = torch.zeros(0, dtype=torch.int64)
        self._blocks: list[Block] | None = []
        self._metadata: dict[int, Mapping[str, Json]] | None = None
        self.positions = torch.zeros(0, dtype=torch.int64)

    @property
    def is_resident(self) -> bool:
        """Whether the vectors are held, and not read from the file for each search."""
        return self._blocks is not None

    def refresh(self) -> None:
        """Catch up with the file."""
        version = self._database.version()
        if version == self._version:
            return
        try:
            self._catch_up()
        except BaseException:
            self._forget()  # never search a mixture of two commits
            raise
        self._version = version

    def _catch_up(self) -> None:
        removals, edits = self._rows.counters()
        if removals != self._removals:
            self._drop_all_but(self._rows.positions())
        if edits != self._edits:
            self._metadata = None
        self._removals, self._edits = removals, edits
        positions, lengths = self._rows.catalog(after=self._last)
        if self._metadata is not None:
            self._metadata |= self._rows.metadata(after=self._last)
        self.positions = torch.cat([self.positions, positions])
        self._lengths = torch.cat([self._lengths, lengths])
        if len(positions):
            self._last = int(positions[-1])
        needed = int(self._lengths.sum()) * self._row_bytes
        if needed > self._budget:
            if self._blocks is not None:
                logger.warning(
                    "%s needs %d MiB for its vectors and may hold %d: each search reads the file. "
                    "Raise memory_budget if there is memory",
                    self._database.path,
                    needed >> 20,
                    self._budget >> 20,
                )
            self._blocks = None
        elif self._blocks is None:
            self._blocks = []
            self._load(self.positions, self._lengths)
        else:
            self._load(positions, lengths)

    def _drop_all_but(self, current: Tensor) -> None:
        kept = torch.isin(self.positions, current, assume_unique=True)
        self.positions, self._lengths = self.positions[kept], self._lengths[kept]
        if self._blocks is not None:
            remaining = (block.only(current) for block in self._blocks)
            self._blocks = [block for block in remaining if len(block.positions)]
        if self._metadata is not None:
            held = self._metadata
            self._metadata = {position: held[position] for position in self.positions.tolist()}

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
        start = 0
        ends = lengths.cumsum(0)
        while start < len(positions):
            before = int(ends[start - 1]) if start else 0
            stop = int(torch.searchsorted(ends, before + self._block_rows, right=True))
            stop = max(stop, start + 1)
            some = positions[start:stop]
            vectors = self._rows.vectors(some)
            yield Block(some, vectors.to(self._device))
            start = stop

    def blocks(self, kept: Tensor | None = None) -> Iterator[Block]:
        """Everything, or the documents at the positions `kept`, in order of insertion."""
        if self._blocks is None:
            chosen = slice(None) if kept is None else torch.isin(self.positions, kept)
            yield from self._read(self.positions[chosen], self._lengths[chosen])
            return
        for block in self._blocks:
            part = block if kept is None else block.filtered(kept)
            if len(part.positions):
                yield part

    def matching(self, condition: Condition) -> Tensor:
        """Positions of the documents whose metadata passes, rising."""
        if self._metadata is None:
            self._metadata = self._rows.metadata(after=0)
        held = self._metadata
        passing = [at for at in self.positions.tolist() if condition.matches(held[at])]
        return torch.tensor(passing, dtype=torch.int64)


def _joined(first: Block, second: Block) -> Block:
    return Block(
        torch.cat([first.positions, second.positions]),
        TokenEmbeddings.cat([first.embeddings, second.embeddings]),
    )
