"""Document embeddings that were computed before, or are being computed, up to a number of bytes."""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from colbert_rag.forks import renewed_after_fork

logger = logging.getLogger(__name__)

REMEMBERED = 50_000
"""Texts whose size is remembered after they left, in some 8 MB."""

RETURNS = 100
"""Texts that had left and were needed again, from which on a cache is called too small."""

PATIENCE = 4
"""A call waits for texts of another one that encodes at most so many times as many. In a longer
call they may be the last to be encoded, and one document would wait for a corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What a cache has done and holds.

    Attributes:
        hits: Texts found, or encoded by another call at that moment.
        misses: Texts not found.
        evictions: Texts that had to leave for others.
        texts: Texts held.
        bytes: Bytes of those texts and their vectors.
        limit: Bytes at most.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    texts: int = 0
    bytes: int = 0
    limit: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of all texts that were found, from 0 to 1."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


@dataclass(eq=False, slots=True)
class Claim:
    """What one call takes upon itself to encode, so that others need not.

    Attributes:
        found: Vectors that were there, `(rows, dim)` each.
        texts: Texts for this call to encode.
        awaited: Texts that other calls are encoding.
        made: What this call encoded, for those that wait.
        working: Held while the call goes on. A lock, because its `with` is C and ends whatever
            happens: an interrupt could fall before an event is set, and others wait for ever.
    """

    found: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    awaited: dict[str, Claim] = field(default_factory=dict)
    made: Mapping[str, Tensor] = field(default_factory=dict)
    working: threading.Lock = field(default_factory=threading.Lock)

    def is_worth_waiting(self, texts: int) -> bool:
        """Whether a call for so many texts ends sooner if it waits for this one."""
        return self.working.locked() and len(self.texts) <= PATIENCE * texts

    def wait(self) -> dict[str, Tensor]:
        """What other calls have made of the awaited texts: not all, where one of them failed."""
        vectors = {}
        for text, other in self.awaited.items():
            with other.working:
                pass
            if text in other.made:
                vectors[text] = other.made[text]
        return vectors


class DocumentCache:
    """Token vectors by text, the least recently used ones dropped first.

    A document's vectors never depend on the query, so a reranker need not compute them twice. Any
    number of threads may use one cache; what one of them is encoding, the others wait for.
    """

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: Bytes of texts and vectors held at most; with 0, calls only share what they
                encode at the same time.
        """
        self.limit = limit
        self._lock = threading.Lock()
        self._claims: dict[str, Claim] = {}
        self._warned = False
        self._vectors: OrderedDict[str, Tensor] = OrderedDict()
        # Bytes of texts that left, by their hash: what a larger cache would hold.
        self._left: OrderedDict[int, int] = OrderedDict()
        self._bytes = self._left_bytes = 0
        self._hits = self._misses = self._evictions = self._returns = 0
        renewed_after_fork(self)

    def renew(self) -> None:
        """After a fork: no other thread holds the lock, or is encoding."""
        self._lock = threading.Lock()
        self._claims = {}

    def claim(self, claim: Claim, texts: Sequence[str]) -> None:
        """Fill `claim`: what is there, what others are encoding, and what is left to encode.

        The caller holds `claim.working` from before this until it has called `release`.

        Args:
            claim: A new one.
            texts: Distinct texts.
        """
        with self._lock:
            for text in texts:
                if text in self._vectors:
                    self._vectors.move_to_end(text)
                    claim.found[text] = self._vectors[text]
                elif (other := self._claims.get(text)) and other.is_worth_waiting(len(texts)):
                    claim.awaited[text] = other
                else:
                    claim.texts.append(text)
                    self._claims[text] = claim
            self._hits += len(claim.found) + len(claim.awaited)
            self._misses += len(claim.texts)
            self._returns += sum(hash(text) in self._left for text in claim.texts)
        self._advise()

    def release(self, claim: Claim) -> None:
        """Let nobody else wait for this call."""
        with self._lock:
            for text in claim.texts:
                if self._claims.get(text) is claim:
                    del self._claims[text]

    def put(self, vectors: Mapping[str, Tensor], *, evict: bool = True) -> None:
        """Hold vectors; those larger than the whole cache are passed over.

        Args:
            vectors: `(rows, dim)` each. A view into a larger tensor is copied, since it would
                keep all of that tensor alive.
            evict: Whether other texts leave for these; else only what fits beside them is held.
        """
        for text, rows in vectors.items():
            size = _bytes(text, rows)
            if size > self.limit - (0 if evict else self._bytes):
                continue
            if rows.untyped_storage().nbytes() > rows.numel() * rows.element_size():
                rows = rows.clone()
            with self._lock:
                # Asked again: other calls have been filling it.
                if not evict and (text in self._vectors or self._bytes + size > self.limit):
                    continue
                self._drop(text)
                self._left_bytes -= self._left.pop(hash(text), 0)
                self._vectors[text] = rows
                self._bytes += size
                while self._bytes > self.limit:
                    self._evict(next(iter(self._vectors)))

    def _drop(self, text: str) -> int:
        rows = self._vectors.pop(text, None)
        size = 0 if rows is None else _bytes(text, rows)
        self._bytes -= size
        return size

    def _evict(self, text: str) -> None:
        size = self._drop(text)
        self._evictions += 1
        self._left[hash(text)] = size
        self._left_bytes += size
        if len(self._left) > REMEMBERED:
            self._left_bytes -= self._left.popitem(last=False)[1]

    def _advise(self) -> None:
        """Say once that the cache misses what it held before."""
        if self._warned or self._returns < RETURNS:
            return
        self._warned = True
        info, enough = self.info(), self._bytes + self._left_bytes
        logger.warning(
            "document_cache=%d is too small for these texts: %d were encoded again that it had "
            "held, and %.0f %% of all were found. document_cache=%d would hold them all",
            self.limit,
            self._returns,
            100 * info.hit_rate,
            -(-enough // 2**20) * 2**20,
        )

    def info(self) -> CacheInfo:
        """Counts and sizes now."""
        with self._lock:
            return CacheInfo(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                texts=len(self._vectors),
                bytes=self._bytes,
                limit=self.limit,
            )


def _bytes(text: str, rows: Tensor) -> int:
    return sys.getsizeof(text) + rows.numel() * rows.element_size()
