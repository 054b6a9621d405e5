"""The registry: each key's value is built once, whoever asks."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from colbert_rag.registry import Registry


def test_threads_that_ask_together_get_one_object() -> None:
    registry: Registry[str, object] = Registry()
    built = []

    def build() -> object:
        time.sleep(0.05)
        built.append(object())
        return built[-1]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: registry.get("a", build), range(32)))

    assert len(built) == 1
    assert {id(value) for value in found} == {id(built[0])}


def test_one_key_does_not_wait_for_another() -> None:
    registry: Registry[str, str] = Registry()
    started, release = threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        assert release.wait(10)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(registry.get, "slow", slow)
        assert started.wait(10)
        assert registry.get("fast", lambda: "fast") == "fast"
        release.set()
        assert waiting.result(10) == "slow"


def test_a_failed_build_is_tried_again() -> None:
    registry: Registry[str, str] = Registry()

    def fail() -> str:
        raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        registry.get("a", fail)

    assert registry.get("a", lambda: "built") == "built"


def test_clearing_gives_back_what_was_held() -> None:
    registry: Registry[str, str] = Registry()
    registry.get("a", lambda: "old")

    assert registry.clear() == ["old"]
    assert registry.get("a", lambda: "new") == "new"


def test_a_weak_registry_forgets_what_nobody_holds() -> None:
    registry: Registry[str, object] = Registry(weak=True)

    class Value:
        pass

    held = registry.get("a", Value)
    assert registry.get("a", Value) is held

    alive = weakref.ref(held)
    del held
    gc.collect()

    assert alive() is None
    assert registry.get("a", Value) is not None
