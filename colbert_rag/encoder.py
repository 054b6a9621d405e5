"""From token batches to token vectors: batches by token budget, no text padded."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from colbert_rag.backbone.packing import Packing
from colbert_rag.backbone.transformer import Transformer
from colbert_rag.batching import Batcher, Begun, Call, Part, Progress, Texts
from colbert_rag.computing import computing
from colbert_rag.device import trim_heap
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import DeviceMemoryError
from colbert_rag.tokenizer import TokenBatch
from colbert_rag.workers import Workers, results

BATCH_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}
"""Tokens per batch. On a CPU, time per token is flat from 512 to 4,096 tokens for each core, and
memory is not; a GPU needs enough rows to fill its matrix units."""

CORE_TOKENS = 512
"""Tokens of a batch for each core of a CPU that has many."""

UNEVEN = 1.3
"""How much longer than the mean the largest part of a batch may be, for cores to compute one part
each and not all of them every operation together."""

TRIM_EVERY = 32
"""Batches on a CPU after which freed memory goes back to the system. Its C library would keep it in
pieces that the next batch, of another shape, does not fit. Memory given back has to be cleared by
the system when it is needed again: every eighth batch would cost a small model 5 % of its time, and
save 15 MiB (benchmarks/NOTES.md)."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Work:
    """One call: its tokens, and the rows that they become.

    Attributes:
        batch: The texts.
        places: Position of every token in its text, `(tokens,)`.
        kept: Rows that each text gets, `(texts,)`.
        offsets: Where they begin in `values`, `(texts + 1,)`.
        values: Filled batch by batch, `(rows, dim)`.
        stream: The caller's queue of work on a CUDA device, in which his next operation waits.
    """

    batch: TokenBatch
    places: NDArray[np.int64]
    kept: NDArray[np.int64]
    offsets: NDArray[np.int64]
    values: Tensor
    stream: torch.cuda.Stream | None

    def pick(self, texts: Texts) -> Tokens:
        """The tokens of some texts."""
        lengths = self.batch.lengths[texts]
        picked = _ranges(self.batch.offsets[texts], lengths)
        return Tokens(
            ids=self.batch.ids[picked],
            places=self.places[picked],
            attention=self.batch.attention[picked],
            scoring=self.batch.scoring[picked],
            lengths=lengths,
        )

    def rows(self, texts: Texts) -> NDArray[np.int64]:
        """Where the rows of some texts go, text after text."""
        return _ranges(self.offsets[texts], self.kept[texts])


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Tokens:
    """What one forward pass computes, text after text.

    Attributes:
        ids: `(tokens,)`, int64.
        places: Position of every token in its text, `(tokens,)`.
        attention: What the encoder sees, `(tokens,)`.
        scoring: What counts in a score, `(tokens,)`.
        lengths: Tokens of each text, `(texts,)`.
    """

    ids: NDArray[np.int64]
    places: NDArray[np.int64]
    attention: NDArray[np.bool_]
    scoring: NDArray[np.bool_]
    lengths: NDArray[np.int64]

    def split(self, cores: int) -> list[Tokens]:
        """A part for each core, of about as many tokens; or all, where texts do not come out so."""
        parts = min(cores, len(self.lengths))
        ends = np.cumsum(self.lengths)
        fair = np.arange(1, parts) * (len(self.ids) / max(parts, 1))
        texts = np.searchsorted(ends - self.lengths / 2, fair)
        borders = np.concatenate([[0], ends])[texts]
        sizes = np.diff(borders, prepend=0, append=len(self.ids))
        few = parts < 2 or 2 * parts < cores
        if few or sizes.min() == 0 or sizes.max() * parts > UNEVEN * len(self.ids):
            return [self]
        columns = {
            field.name: np.split(
                getattr(self, field.name), texts if field.name == "lengths" else borders
            )
            for field in fields(self)
        }
        return [
            Tokens(**{name: column[part] for name, column in columns.items()})
            for part in range(parts)
        ]

    @classmethod
    def cat(cls, parts: Sequence[Tokens]) -> Tokens:
        """Append the texts of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        joined = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
        }
        return cls(**joined)


class Encoder:
    """A backbone with its projection, on one device.

    Any number of threads may call it; those that call together share batches (`Batcher`).
    """

    def __init__(
        self,
        model: Transformer,
        projection: nn.Module,
        *,
        dim: int,
        batch_tokens: int | None = None,
    ) -> None:
        """Take what is already loaded.

        Args:
            model: The backbone.
            projection: From hidden states to token vectors.
            dim: Width of a token vector.
            batch_tokens: Tokens per forward pass; None follows the device.
        """
        self.device, self.dtype = model.device, model.dtype
        self.dim = dim
        self.batch_tokens = batch_tokens or default_batch_tokens(self.device.type)
        self._model = model
        self._projection = projection
        self._padding = model.shape.padding
        self._batches = 0
        self._batcher = Batcher(self.batch_tokens)
        self._workers = Workers()
        weakref.finalize(self, self._batcher.close)

    def encode(self, batch: TokenBatch, *, progress: Progress | None = None) -> TokenEmbeddings:
        """Encode texts of any lengths, in the order given.

        A text's vectors do not depend on what else is in the batch.

        Args:
            batch: The texts.
            progress: Called with the number of texts done since the last call.

        Returns:
            Unit-length vectors of the rows that count, on the encoder's device, in its dtype.

        Raises:
            DeviceMemoryError: the device cannot hold even one text.
        """
        lengths = batch.lengths
        counted = np.concatenate([[0], np.cumsum(batch.scoring)])
        kept = counted[batch.offsets[1:]] - counted[batch.offsets[:-1]]
        offsets = np.zeros(len(batch) + 1, np.int64)
        np.cumsum(kept, out=offsets[1:])
        # Neighbours in length: long groups of texts whose attention is one call.
        order = np.argsort(lengths, kind="stable")
        order = order[np.searchsorted(lengths[order], 1) :]
        work = Work(
            batch=batch,
            places=self._places(batch),
            kept=kept,
            offsets=offsets,
            values=torch.empty(int(offsets[-1]), self.dim, dtype=self.dtype, device=self.device),
            stream=torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None,
        )
        call = Call(
            payload=work,
            begin=self._begin,
            kind=work.stream,
            lengths=lengths,
            waiting=deque(self._plan(order, lengths)),
        )
        self._batcher.complete(call, progress)
        return TokenEmbeddings(work.values, torch.from_numpy(offsets))

    def _places(self, batch: TokenBatch) -> NDArray[np.int64]:
        """Position of every token in its text, as the backbone counts, `(tokens,)`."""
        padding = self._padding
        if padding is None:
            return _ranges(np.zeros_like(batch.lengths), batch.lengths)
        # RoBERTa counts only tokens that are not padding, and gives padding its own position, also
        # where somebody wrote a literal padding token (create_position_ids_from_input_ids).
        real = batch.ids != padding
        before = np.concatenate([[0], np.cumsum(real)])
        rank = before[1:] - np.repeat(before[batch.offsets[:-1]], batch.lengths)
        return np.where(real, rank + padding, padding)

    def _plan(
        self, order: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """Cut length-sorted texts into batches within the token budget, at least one text each."""
        batches: list[NDArray[np.int64]] = []
        start = used = 0
        for place, text in enumerate(order):
            length = int(lengths[text])
            if place > start and used + length > self.batch_tokens:
                batches.append(order[start:place])
                start, used = place, 0
            used += length
        if start < len(order):
            batches.append(order[start:])
        # Largest first: what a batch needs then fits into the pieces that the one before it left.
        batches.sort(key=lambda texts: int(lengths[texts].sum()), reverse=True)
        return batches

    def _begin(self, parts: Sequence[Part[Work]]) -> Begun:
        """Begin one batch: a part on each core of a CPU, where its texts come out so."""
        tokens = Tokens.cat([work.pick(texts) for work, texts in parts])
        shares = tokens.split(torch.get_num_threads() if self.device.type == "cpu" else 1)
        begun = self._workers.begin(self._rows, shares) if len(shares) > 1 else []
        return Begun(parts=begun, finish=partial(self._finish, parts, tokens, begun))

    def _finish(
        self, parts: Sequence[Part[Work]], tokens: Tokens, begun: list[Future[Tensor]]
    ) -> None:
        """Encode the rest of a batch, or its halves where the device has no room for it."""
        try:
            with torch.inference_mode(), torch.cuda.stream(parts[0][0].stream):
                rows = results(begun) if begun else [self._rows(tokens)]
                self._fill(parts, torch.cat(rows) if len(rows) > 1 else rows[0])
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            shortage = error.with_traceback(None)  # its frames would keep the batch's tensors
            # The next batch may be under way, in the memory that a smaller one needs.
            self._workers.wait()
        else:
            self._batches += 1
            if self.device.type == "cpu" and self._batches % TRIM_EVERY == 0:
                trim_heap()
            return
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        (work, texts), *others = parts
        if others:
            halves = [parts[: len(parts) // 2], parts[len(parts) // 2 :]]
        elif len(texts) > 1:
            half = len(texts) // 2
            halves = [[(work, texts[:half])], [(work, texts[half:])]]
        else:
            raise DeviceMemoryError(
                f"{self.device} has no memory for a single text of "
                f"{int(work.batch.lengths[texts[0]])} tokens. Free memory, choose a smaller "
                "document_length, or another device"
            ) from shortage
        for part in halves:
            self._begin(part).finish()

    def _fill(self, parts: Sequence[Part[Work]], rows: Tensor) -> None:
        """Put the rows of a batch where they belong."""
        start = 0
        for work, texts in parts:
            places = work.rows(texts)
            work.values[self._send(places)] = rows[start : start + len(places)]
            start += len(places)

    def _rows(self, tokens: Tokens) -> Tensor:
        """The vectors of all tokens that count, `(rows, dim)`."""
        with torch.inference_mode(), computing():
            hidden = self._model(
                self._send(tokens.ids),
                self._send(tokens.places),
                Packing.of(tokens.lengths, self.device, tokens.attention),
            )
            return self._project(hidden, tokens.scoring)

    def _project(self, hidden: Tensor, counts: NDArray[np.bool_]) -> Tensor:
        # Skipped rows leave before the projection, which then has less to do.
        if not counts.all():
            hidden = hidden[self._send(np.flatnonzero(counts))]
        projected: Tensor = self._projection(hidden)
        # In float32, since a length that is computed in bfloat16 is off by up to 0.6 %.
        return nn.functional.normalize(projected.float(), dim=-1).to(projected.dtype)

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def default_batch_tokens(device: str) -> int:
    """Tokens per batch on a kind of device, where the caller does not say."""
    tokens = BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])
    return max(tokens, CORE_TOKENS * torch.get_num_threads()) if device == "cpu" else tokens


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`starts[i]` and the `lengths[i] - 1` numbers that follow it, for every i in turn."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    ranges: NDArray[np.int64] = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return ranges


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU allocator and MPS raise a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        "out of memory" in text or "can't allocate memory" in text
    )
