"""Checks of a mapped file, page by page: each when a process first uses it."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from colbert_rag.index.local.ahead import faults, read_pages
from colbert_rag.index.local.level.postings import spread

PAGE = 1024
"""Bytes that one number checks: about what the codes of a few documents take."""

# Looked at together, which bounds the copies of pages.
_TOGETHER = 4096

# So many are asked for at once, if a disk must be waited for.
_MANY = 64

_WORDS = PAGE // 8

# Powers of an odd number are odd, so a change in one word always changes the sum.
_WEIGHTS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, _WORDS + 1, dtype=np.uint64)


class DamagedPageError(Exception):
    """A page is not what was written."""


def page_sums(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A number for each page of whole pages of bytes."""
    sums: NDArray[np.uint64] = data.view(np.uint64).reshape(-1, _WORDS) @ _WEIGHTS
    return sums


class Pages:
    """Whole pages of a mapped file, and what each should sum up to."""

    def __init__(
        self,
        data: NDArray[np.uint8],
        sums: NDArray[np.uint64],
        mapped: mmap.mmap | None = None,
        begin: int = 0,
    ) -> None:
        """Nothing is read yet; the pages stand in a mapping from `begin` on, if in any."""
        self._data = data.view(np.uint64).reshape(-1, _WORDS)
        self._sums = sums
        self._mapped, self._begin = mapped, begin
        self._seen = np.zeros(len(sums), np.bool_)

    def check(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Compare the pages that these ranges of bytes touch, unless that was done before.

        Raises:
            DamagedPageError: one is not what was written.
        """
        some = ends > begins
        first, last = begins[some] // PAGE, (ends[some] - 1) // PAGE
        touched = np.concatenate([first, last])
        if len(inner := np.flatnonzero(last > first + 1)):
            touched = np.concatenate([touched, spread(first[inner], (last - first)[inner])])
        fresh = np.unique(touched[~self._seen[touched]])
        if len(fresh) > _MANY:
            self._ask(fresh)
        for start in range(0, len(fresh), _TOGETHER):
            pages = fresh[start : start + _TOGETHER]
            if not np.array_equal(self._data[pages] @ _WEIGHTS, self._sums[pages]):
                raise DamagedPageError
            self._seen[pages] = True

    def _ask(self, pages: NDArray[np.int64]) -> None:
        """Ask the disk for pages, rising, where the first of them is not in memory."""
        before = faults()
        self._data[pages[0], 0].item()
        if self._mapped is not None and faults() > before:
            read_pages(self._mapped, self._begin + PAGE * pages, PAGE)
