"""The document cache: bounded in bytes, least recently used out first, safe between threads."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from colbert_rag import cache as cache_module
from colbert_rag.cache import Claim, DocumentCache

ROWS = torch.ones(4, 8)
SIZE = ROWS.numel() * 4 + sys.getsizeof("a")


def look(cache: DocumentCache, texts: Sequence[str]) -> dict[str, Tensor]:
    """What a call finds that then encodes nothing."""
    claim = Claim()
    with claim.working:
        cache.claim(claim, texts)
        cache.release(claim)
    return claim.found


def test_what_was_put_is_found_and_counted() -> None:
    cache = DocumentCache(10 * SIZE)
    cache.put({"a": ROWS})

    found = look(cache, ["a", "b"])

    assert found["a"].tolist() == ROWS.tolist()
    assert (cache.info().hits, cache.info().misses) == (1, 1)
    assert (cache.info().texts, cache.info().bytes) == (1, SIZE)


def test_the_least_recently_used_text_leaves_first() -> None:
    cache = DocumentCache(2 * SIZE)
    cache.put({"a": ROWS, "b": ROWS})
    look(cache, ["a"])

    cache.put({"c": ROWS})

    assert set(look(cache, ["a", "b", "c"])) == {"a", "c"}
    assert cache.info().bytes == 2 * SIZE


def test_a_text_larger_than_the_cache_pushes_nothing_out() -> None:
    cache = DocumentCache(2 * SIZE)
    cache.put({"a": ROWS})

    cache.put({"b": torch.ones(400, 8)})

    assert set(look(cache, ["a", "b"])) == {"a"}


def test_putting_a_text_again_does_not_count_it_twice() -> None:
    cache = DocumentCache(10 * SIZE)

    cache.put({"a": ROWS})
    cache.put({"a": ROWS})

    assert (cache.info().texts, cache.info().bytes) == (1, SIZE)


def test_a_view_does_not_keep_the_whole_batch_alive() -> None:
    batch = torch.ones(1000, 8)
    cache = DocumentCache(10 * SIZE)

    cache.put({"a": batch[:4]})

    assert look(cache, ["a"])["a"].untyped_storage().nbytes() == ROWS.numel() * 4


def test_threads_leave_the_count_of_bytes_right() -> None:
    cache = DocumentCache(20 * SIZE)
    names = "abcdefghijklmnopqrstuvwxyz"

    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda n: (cache.put({names[n % 26]: ROWS}), look(cache, names)), range(2000))
        )

    info = cache.info()
    assert info.texts == 20
    assert info.bytes == 20 * SIZE
    assert info.hits + info.misses == 2000 * 26


def test_a_cache_too_small_says_so_once_and_names_a_size_that_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"{number:03}" for number in range(3 * cache_module.RETURNS)]
    size = ROWS.numel() * 4 + sys.getsizeof(names[0])
    cache = DocumentCache(10 * size)

    with caplog.at_level(logging.WARNING, "colbert_rag"):
        for _ in range(3):
            for name in names:
                if not look(cache, [name]):
                    cache.put({name: ROWS})

    (record,) = caplog.records
    enough = int(record.getMessage().split("document_cache=")[2].split()[0])
    assert enough >= len(names) * size
    assert enough - 2**20 < len(names) * size
    info = cache.info()
    assert info.evictions == 3 * len(names) - 10
    assert (info.hits, info.hit_rate) == (0, 0.0)


def test_a_cache_whose_texts_never_return_is_not_called_too_small(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = DocumentCache(10 * SIZE)

    with caplog.at_level(logging.WARNING, "colbert_rag"):
        for number in range(5 * cache_module.RETURNS):
            look(cache, [str(number)])
            cache.put({str(number): ROWS})

    assert caplog.records == []
    assert cache.info().evictions > 4 * cache_module.RETURNS


def test_a_corpus_that_streams_past_is_remembered_up_to_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "REMEMBERED", 20)
    cache = DocumentCache(10 * SIZE)

    for number in range(200):
        cache.put({f"{number:03}": ROWS})

    assert len(cache._left) == 20
    assert cache._left_bytes == sum(cache._left.values())


def test_a_claim_whose_call_was_interrupted_before_it_let_go_keeps_nobody_waiting() -> None:
    cache, lost, next_one = DocumentCache(10 * SIZE), Claim(), Claim()
    with lost.working:
        cache.claim(lost, ["a"])

    with next_one.working:
        cache.claim(next_one, ["a"])

    assert (next_one.texts, next_one.awaited) == (["a"], {})
