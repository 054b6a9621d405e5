"""Document embeddings that were computed before, up to a number of bytes."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache has done and holds.

    Attributes:
        hits: Texts found.
        misses: Texts not found.
        texts: Texts held.
        bytes: Bytes of those texts and their vectors.
        limit: Bytes at most.
    """

    hits: int
    misses: int
    texts: int
    bytes: int
    limit: int


class DocumentCache:
    """Token vectors by text, the least recently used ones dropped first.

    A document's vectors never depend on the query, so a reranker need not compute them twice. Any
    number of threads may use one cache.
    """

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: Bytes of texts and vectors held at most.
        """
        self.limit = limit
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = self._hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The vectors of those texts that are held, `(rows, dim)` each."""
        with self._lock:
            found = {text: self._vectors[text] for text in texts if text in self._vectors}
            for text in found:
                self._vectors.move_to_end(text)
            self._hits += len(found)
            self._misses += len(texts) - len(found)
        return found

    def put(self, vectors: Mapping[str, Tensor]) -> None:
        """Hold vectors; those larger than the whole cache are passed over.

        Args:
            vectors: `(rows, dim)` each. A view into a larger tensor is copied, since it would
                keep all of that tensor alive.
        """
        for text, rows in vectors.items():
            size = _bytes(text, rows)
            if size > self.limit:
                continue
            if rows.untyped_storage().nbytes() > rows.numel() * rows.element_size():
                rows = rows.clone()
            with self._lock:
                self._drop(text)
                self._vectors[text] = rows
                self._bytes += size
                while self._bytes > self.limit:
                    self._drop(next(iter(self._vectors)))

    def _drop(self, text: str) -> None:
        rows = self._vectors.pop(text, None)
        if rows is not None:
            self._bytes -= _bytes(text, rows)

    def clear(self) -> None:
        """Hold nothing; the counts of hits and misses start again."""
        with self._lock:
            self._vectors.clear()
            self._bytes = self._hits = self._misses = 0

    def info(self) -> CacheInfo:
        """Counts and sizes now."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._vectors), self._bytes, self.limit)


def _bytes(text: str, rows: Tensor) -> int:
    return sys.getsizeof(text) + rows.numel() * rows.element_size()
