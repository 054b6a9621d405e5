"""Objects that exist once per process and key, whoever asks first and from whichever thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, MutableMapping
from typing import Generic, TypeVar

from colbert_rag.forks import renewed_after_fork

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Registry(Generic[Key, Value]):
    """Build each key's value once; later and concurrent callers get the same object.

    `functools.lru_cache` is not enough: it lets several threads build the same value at once.
    """

    def __init__(self, *, weak: bool = False) -> None:
        """Start empty.

        Args:
            weak: Forget a value when nobody else holds it any more.
        """
        self._weak = weak
        self._values = self._empty()
        self._locks: dict[Key, threading.Lock] = {}
        self._guard = threading.Lock()
        renewed_after_fork(self)

    def get(self, key: Key, build: Callable[[], Value]) -> Value:
        """Return the value of `key`, building it first if nobody has.

        A failed build is not remembered: the next caller tries again.
        """
        with self._guard:
            # Not "if key in": a weak value may go between the question and the look.
            if (value := self._values.get(key)) is not None:
                return value
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._guard:
                if (value := self._values.get(key)) is not None:
                    return value
            value = build()
            with self._guard:
                self._values[key] = value
            return value

    def clear(self) -> list[Value]:
        """Forget every value, and return them so that the caller can release what they hold."""
        with self._guard:
            values = list(self._values.values())
            self._values.clear()
            return values

    def _empty(self) -> MutableMapping[Key, Value]:
        return weakref.WeakValueDictionary() if self._weak else {}

    def renew(self) -> None:
        """Forget everything in a forked child, which an accelerator's context does not survive."""
        self._values = self._empty()
        self._locks = {}
        self._guard = threading.Lock()
