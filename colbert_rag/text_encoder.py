"""A loaded model at work: texts are tokenised ahead and encoded window by window."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.encoder import Encoder, Progress
from colbert_rag.tokenizer import Kind, TextTokenizer, TokenBatch

logger = logging.getLogger(__name__)

STRETCH = {"cpu": 512, "mps": 2048, "cuda": 4096}
"""Texts tokenised and sorted by length together, by device: enough to fill batches, little enough
that the next stretch is ready in time, and that joining them holds little twice."""


class TextEncoder:
    """Tokenizer and encoder of one model: what takes memory, and goes with `unload()`."""

    def __init__(self, tokenizer: TextTokenizer, encoder: Encoder) -> None:
        """Join the two; neither is changed."""
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.stretch = STRETCH.get(encoder.device.type, 2048)
        self._reported: set[Kind] = set()

    def queries(self, texts: Sequence[str], *, show_progress: bool = False) -> TokenEmbeddings:
        """Token vectors of queries, in order."""
        return self._encode(self.tokenizer.queries, texts, "query", show_progress=show_progress)

    def documents(self, texts: Sequence[str], *, show_progress: bool = False) -> TokenEmbeddings:
        """Token vectors of documents, in order."""
        return self._encode(
            self.tokenizer.documents, texts, "document", show_progress=show_progress
        )

    def _encode(
        self,
        tokenize: Callable[[Sequence[str]], TokenBatch],
        texts: Sequence[str],
        kind: Kind,
        *,
        show_progress: bool,
    ) -> TokenEmbeddings:
        """Encode stretch by stretch, tokenising the next one while this one is encoded."""
        size = self.stretch
        stretches = [texts[start : start + size] for start in range(0, len(texts), size)]
        noun = "queries" if kind == "query" else "documents"
        with tqdm(total=len(texts), desc=f"Encoding {noun}", disable=not show_progress) as bar:
            if len(stretches) <= 1:
                return self._run(tokenize(texts), kind, bar.update)
            with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as ahead:
                parts = []
                upcoming = ahead.submit(tokenize, stretches[0])
                for following in (*stretches[1:], None):
                    batch = upcoming.result()
                    if following is not None:
                        upcoming = ahead.submit(tokenize, following)
                    parts.append(self._run(batch, kind, bar.update))
        return _join(parts)

    def _run(self, batch: TokenBatch, kind: Kind, progress: Progress) -> TokenEmbeddings:
        if batch.truncated and kind not in self._reported:
            self._reported.add(kind)
            logger.warning(
                "%d of %d texts are longer than %s_length=%d tokens and were cut; further cuts "
                "are not reported",
                batch.truncated,
                len(batch),
                kind,
                self.tokenizer.rules(kind).length,
            )
        return self.encoder.encode(batch, progress=progress)


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
