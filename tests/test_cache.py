"""The document cache: bounded in bytes, least recently used out first, safe between threads."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from colbert_rag.cache import DocumentCache

ROWS = torch.ones(4, 8)
SIZE = ROWS.numel() * 4 + sys.getsizeof("a")


def test_what_was_put_is_found_and_counted() -> None:
    cache = DocumentCache(10 * SIZE)
    cache.put({"a": ROWS})

    found = cache.get(["a", "b"])

    assert found["a"].tolist() == ROWS.tolist()
    assert (cache.info().hits, cache.info().misses) == (1, 1)
    assert (cache.info().texts, cache.info().bytes) == (1, SIZE)


def test_the_least_recently_used_text_leaves_first() -> None:
    cache = DocumentCache(2 * SIZE)
    cache.put({"a": ROWS, "b": ROWS})
    cache.get(["a"])

    cache.put({"c": ROWS})

    assert set(cache.get(["a", "b", "c"])) == {"a", "c"}
    assert cache.info().bytes == 2 * SIZE


def test_a_text_larger_than_the_cache_pushes_nothing_out() -> None:
    cache = DocumentCache(2 * SIZE)
    cache.put({"a": ROWS})

    cache.put({"b": torch.ones(400, 8)})

    assert set(cache.get(["a", "b"])) == {"a"}


def test_putting_a_text_again_does_not_count_it_twice() -> None:
    cache = DocumentCache(10 * SIZE)

    cache.put({"a": ROWS})
    cache.put({"a": ROWS})

    assert (cache.info().texts, cache.info().bytes) == (1, SIZE)


def test_a_view_does_not_keep_the_whole_batch_alive() -> None:
    batch = torch.ones(1000, 8)
    cache = DocumentCache(10 * SIZE)

    cache.put({"a": batch[:4]})

    assert cache.get(["a"])["a"].untyped_storage().nbytes() == ROWS.numel() * 4


def test_clearing_starts_over() -> None:
    cache = DocumentCache(10 * SIZE)
    cache.put({"a": ROWS})
    cache.get(["a"])

    cache.clear()

    info = cache.info()
    assert (info.hits, info.misses, info.texts, info.bytes) == (0, 0, 0, 0)


def test_threads_leave_the_count_of_bytes_right() -> None:
    cache = DocumentCache(20 * SIZE)
    names = "abcdefghijklmnopqrstuvwxyz"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: (cache.put({names[n % 26]: ROWS}), cache.get(names)), range(2000)))

    info = cache.info()
    assert info.texts == 20
    assert info.bytes == 20 * SIZE
    assert info.hits + info.misses == 2000 * 26
