"""A loaded model at work: texts are tokenised ahead of the encoder, and counted where cut."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from colbert_rag.batching import Progress
from colbert_rag.checkpoint import Checkpoint
from colbert_rag.checkpoint.border import border
from colbert_rag.device import TORCH_DTYPES
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.encoder import Encoder
from colbert_rag.forks import renewed_after_fork
from colbert_rag.hosting import host
from colbert_rag.progress import progress_bar
from colbert_rag.settings import Settings
from colbert_rag.tokenizer import Kind, TextTokenizer, TokenBatch

logger = logging.getLogger(__name__)

STRETCH = {"cpu": 512, "mps": 2048, "cuda": 4096}
"""Texts tokenised and sorted by length together, by device: enough to fill batches, little enough
that the next stretch is ready in time, and that joining them holds little twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncationInfo:
    """How many texts a model has encoded, and how many of them were too long and were cut.

    Attributes:
        queries: Queries encoded.
        queries_cut: Those that were longer than the query length.
        documents: Documents, or windows of them, encoded.
        documents_cut: Those that were longer than the document length.
    """

    queries: int = 0
    queries_cut: int = 0
    documents: int = 0
    documents_cut: int = 0

    def with_more(self, kind: Kind, texts: int, cut: int) -> TruncationInfo:
        """The counts after some more texts of one kind."""
        if kind == "query":
            return replace(self, queries=self.queries + texts, queries_cut=self.queries_cut + cut)
        documents, documents_cut = self.documents + texts, self.documents_cut + cut
        return replace(self, documents=documents, documents_cut=documents_cut)


class TextEncoder:
    """Tokenizer and encoder of one model: what takes memory, and goes with `unload()`."""

    def __init__(self, tokenizer: TextTokenizer, encoder: Encoder, fingerprint: str = "") -> None:
        """Join the two; neither is changed. The fingerprint is that of the loaded weights."""
        self.fingerprint = fingerprint
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.stretch = STRETCH.get(encoder.device.type, 2048)
        self._room = tokenizer.room("document")
        self._truncation = TruncationInfo()
        self._lock = threading.Lock()
        renewed_after_fork(self)

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: Settings) -> TextEncoder:
        """Load the weights of a checkpoint; device and dtype of the settings are resolved.

        Raises:
            CheckpointError: weights or tokenizer are not those of a model we host.
        """
        hosted = host(
            checkpoint,
            device=str(settings.device),
            dtype=TORCH_DTYPES[settings.dtype],
        )
        encoder = Encoder(
            hosted.model,
            hosted.projection,
            dim=checkpoint.dim,
            batch_tokens=settings.batch_tokens,
        )
        with border(checkpoint.name):
            tokenizer = TextTokenizer(
                checkpoint.recipe, checkpoint.vocabulary, rows=hosted.model.shape.vocabulary
            )
        return cls(tokenizer, encoder, hosted.fingerprint)

    def renew(self) -> None:
        """Be usable in a forked child, where another thread may have been counting."""
        self._lock = threading.Lock()
        # The tokenizers library has a pool of threads too, and would wait for them for ever. By
        # itself it sees to that only where this variable was not set before.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def truncation_info(self) -> TruncationInfo:
        """How many texts were encoded so far, and how many of them were cut."""
        return self._truncation

    def queries(self, texts: Sequence[str], *, show_progress: bool = False) -> TokenEmbeddings:
        """Token vectors of queries, in order."""
        return self._encode(self.tokenizer.queries, texts, "query", show_progress=show_progress)

    def documents(
        self,
        texts: Sequence[str],
        *,
        show_progress: bool = False,
        progress: Progress | None = None,
    ) -> TokenEmbeddings:
        """Token vectors of documents, in order; `progress` is told of each batch, not a bar."""
        return self._encode(
            self.tokenizer.documents,
            texts,
            "document",
            show_progress=show_progress,
            progress=progress,
        )

    def most_rows(self, text: str) -> int:
        """Vectors of a document at most: a token stands for a byte of it, or was added to it."""
        rules, room = self.tokenizer.rules("document"), self._room
        # One more, since sentencepiece puts a space in front.
        return min(rules.length, len(text.encode("utf-8", "replace")) + rules.length - room + 1)

    def _encode(
        self,
        tokenize: Callable[[Sequence[str]], TokenBatch],
        texts: Sequence[str],
        kind: Kind,
        *,
        show_progress: bool,
        progress: Progress | None = None,
    ) -> TokenEmbeddings:
        """Encode stretch by stretch, tokenising the next one while this one is encoded."""
        size = self.stretch
        stretches = [texts[start : start + size] for start in range(0, len(texts), size)]
        noun = "queries" if kind == "query" else "documents"
        cut = 0
        with progress_bar(f"Encoding {noun}", total=len(texts), show=show_progress) as bar:
            told = progress or bar.update
            if len(stretches) <= 1:
                batch = tokenize(texts)
                self._count(kind, len(texts), batch.truncated)
                return self.encoder.encode(batch, progress=told)
            with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as ahead:
                parts = []
                upcoming = ahead.submit(tokenize, stretches[0])
                for following in (*stretches[1:], None):
                    batch = upcoming.result()
                    if following is not None:
                        upcoming = ahead.submit(tokenize, following)
                    cut += batch.truncated
                    parts.append(self.encoder.encode(batch, progress=told))
        self._count(kind, len(texts), cut)
        return _join(parts)

    def _count(self, kind: Kind, texts: int, cut: int) -> None:
        """Count one call's texts; the first call that cuts some says so."""
        with self._lock:
            before = self._truncation
            self._truncation = before.with_more(kind, texts, cut)
        reported = before.queries_cut if kind == "query" else before.documents_cut
        if cut and not reported:
            logger.warning(
                "%d of %d texts are longer than %s_length=%d tokens and were cut; later ones are "
                "only counted, by truncation_info()",
                cut,
                texts,
                kind,
                self.tokenizer.rules(kind).length,
            )


def _join(parts: list[TokenEmbeddings]) -> TokenEmbeddings:
    """Append all parts, releasing each as it is copied: `torch.cat` would hold everything twice."""
    lengths = torch.cat([part.lengths for part in parts])
    values = parts[0].values.new_empty(int(lengths.sum()), parts[0].dim)
    start = 0
    while parts:
        rows = parts.pop(0).values
        values[start : start + len(rows)] = rows
        start += len(rows)
    return TokenEmbeddings.from_lengths(values, lengths)
