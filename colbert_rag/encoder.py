"""From token batches to token vectors: batches by token budget, nothing padded that need not be."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from colbert_rag.attention import Packing
from colbert_rag.backbones import Backbone
from colbert_rag.device import trim_heap
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import DeviceMemoryError
from colbert_rag.tokenizer import TokenBatch

BATCH_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}
"""Tokens per forward pass. On a CPU, time per token is flat from 512 to 16,384 tokens and memory
is not; a GPU needs enough rows to fill its matrix units."""

TRIM_EVERY = 8
"""Batches on a CPU after which freed memory goes back to the system. Its C library would keep it in
pieces that the next batch, of another shape, does not fit. Every fourth would cost a small model
2 % of its time, every eighth nothing that can be measured (benchmarks/NOTES.md)."""

Progress = Callable[[int], object]


class Encoder:
    """A backbone with its projection, on one device.

    Calls from several threads take turns batch by batch: two at once would share the same cores
    or the same memory, and neither would end sooner.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        projection: nn.Module,
        *,
        backbone: Backbone,
        dim: int,
        batch_tokens: int | None = None,
    ) -> None:
        """Take modules that are already loaded and in evaluation mode.

        Args:
            model: The backbone.
            projection: From hidden states to token vectors.
            backbone: Its row in the table.
            dim: Width of a token vector.
            batch_tokens: Tokens per forward pass; None follows the device.
        """
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.dim = dim
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, 2048)
        self._model = model
        self._projection = projection
        self._backbone = backbone
        self._first_position = backbone.first_position(vars(model.config))
        self._padding_id = getattr(model.config, "pad_token_id", None)
        self._lock = threading.Lock()

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
        values = torch.empty(int(offsets[-1]), self.dim, dtype=self.dtype, device=self.device)
        # Neighbours in length: little padding where there is padding, long groups where not.
        order = np.argsort(lengths, kind="stable")
        order = order[np.searchsorted(lengths[order], 1) :]
        # Expansion tokens that the encoder must not see need a mask, and therefore padding; such
        # queries all have one length, so that nothing is lost.
        packs = self._backbone.packs and bool(batch.attention.all())
        run = self._encode_packed if packs else self._encode_padded
        places = self._places(batch)
        waiting = deque(self._plan(order, lengths, packs=packs))
        done = 0
        while waiting:
            texts = waiting.popleft()
            rows = self._run(run, batch, places, texts)
            if rows is None:
                half = len(texts) // 2
                waiting.extendleft((texts[half:], texts[:half]))
                continue
            values[self._send(_ranges(offsets[texts], kept[texts]))] = rows
            done += 1
            if self.device.type == "cpu" and done % TRIM_EVERY == 0:
                trim_heap()
            if progress is not None:
                progress(len(texts))
        return TokenEmbeddings(values, torch.from_numpy(offsets))

    def _places(self, batch: TokenBatch) -> NDArray[np.int64]:
        """Position of every token in its text, as the backbone counts, `(tokens,)`."""
        first = self._first_position
        if first == 0:
            return _ranges(np.zeros_like(batch.lengths), batch.lengths)
        # RoBERTa counts only tokens that are not padding, and gives padding its own position, also
        # where somebody wrote a literal padding token (create_position_ids_from_input_ids).
        real = batch.ids != self._padding_id
        before = np.concatenate([[0], np.cumsum(real)])
        rank = before[1:] - np.repeat(before[batch.offsets[:-1]], batch.lengths)
        return np.where(real, rank + first - 1, first - 1)

    def _plan(
        self, order: NDArray[np.int64], lengths: NDArray[np.int64], *, packs: bool
    ) -> list[NDArray[np.int64]]:
        """Cut length-sorted texts into batches within the token budget, at least one text each."""
        batches: list[NDArray[np.int64]] = []
        start = used = 0
        for place, text in enumerate(order):
            length = int(lengths[text])
            # Padding makes every text as long as the longest, which in this order is the last.
            cost = used + length if packs else (place - start + 1) * length
            if place > start and cost > self.batch_tokens:
                batches.append(order[start:place])
                start, cost = place, length
            used = cost
        if start < len(order):
            batches.append(order[start:])
        # Largest first: what a batch needs then fits into the pieces that the one before it left.
        batches.sort(key=lambda texts: int(lengths[texts].sum()), reverse=True)
        return batches

    def _run(
        self,
        run: Callable[[TokenBatch, NDArray[np.int64], NDArray[np.int64]], Tensor],
        batch: TokenBatch,
        places: NDArray[np.int64],
        texts: NDArray[np.int64],
    ) -> Tensor | None:
        """Encode one batch; None where the device has no room for it but may have for a part."""
        try:
            # A caller's autocast would change the dtype half-way through.
            with (
                self._lock,
                torch.inference_mode(),
                torch.autocast(self.device.type, enabled=False),
            ):
                return run(batch, places, texts)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            shortage = error.with_traceback(None)  # its frames would keep the batch's tensors
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(texts) > 1:
            return None
        raise DeviceMemoryError(
            f"{self.device} has no memory for a single text of {int(batch.lengths[texts[0]])} "
            "tokens. Free memory, choose a smaller document_length, or another device"
        ) from shortage

    def _encode_packed(
        self, batch: TokenBatch, places: NDArray[np.int64], texts: NDArray[np.int64]
    ) -> Tensor:
        lengths = batch.lengths[texts]
        picked = _ranges(batch.offsets[texts], lengths)
        hidden = self._forward(
            batch.ids[picked][None],
            places[picked][None],
            packing=Packing.of(lengths, self.device),
        )[0]
        return self._project(hidden, batch.scoring[picked])

    def _encode_padded(
        self, batch: TokenBatch, places: NDArray[np.int64], texts: NDArray[np.int64]
    ) -> Tensor:
        lengths = batch.lengths[texts]
        picked = _ranges(batch.offsets[texts], lengths)
        shape = (len(texts), int(lengths.max()))
        real = np.arange(shape[1]) < lengths[:, None]
        # Padding is told from text by the masks alone: what ids and positions it has is no matter.
        ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        attention, scoring = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        ids[real], positions[real] = batch.ids[picked], places[picked]
        attention[real], scoring[real] = batch.attention[picked], batch.scoring[picked]
        hidden = self._forward(ids, positions, attention_mask=self._send(attention))
        return self._project(hidden.flatten(0, 1), scoring.reshape(-1))

    def _forward(
        self, ids: NDArray[np.int64], positions: NDArray[np.int64], **masks: object
    ) -> Tensor:
        if self._backbone.takes_use_cache:
            masks["use_cache"] = False
        output = self._model(input_ids=self._send(ids), position_ids=self._send(positions), **masks)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _project(self, hidden: Tensor, counts: NDArray[np.bool_]) -> Tensor:
        # Skipped rows leave before the projection, which then has less to do.
        if not counts.all():
            hidden = hidden[self._send(np.flatnonzero(counts))]
        projected: Tensor = self._projection(hidden)
        return nn.functional.normalize(projected, dim=-1)

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


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
