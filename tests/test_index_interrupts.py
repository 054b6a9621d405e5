"""Ctrl-C at any line of a call on an index file: nothing stays locked, open or half done."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from colbert_rag import forks
from colbert_rag.errors import IndexBusyError
from colbert_rag.index import Document, LocalIndex, local
from tests.helpers.index_fakes import WordEncoder, sentences
from tests.helpers.interrupts import at_every_line, elsewhere

FILES = {contextlib.__file__, *map(str, Path(local.__file__).parent.glob("*.py"))}


CALLS: dict[str, Callable[[LocalIndex], object]] = {
    "count": lambda index: index.count(),
    "add": lambda index: index.add(["a comet and a crater"]),
    "delete": lambda index: index.delete(["d1", "new"]),
    "search": lambda index: index.search("mars", 3),
    "get": lambda index: index.get(["d0"]),
    "compact": lambda index: index.compact(),
}


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("file", "count"),
        ("memory", "get"),
        *(pytest.param("file", name, marks=pytest.mark.slow) for name in CALLS if name != "count"),
        pytest.param("memory", "add", marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_at_any_line_leaves_the_index_usable(tmp_path: Path, name: str, where: str):
    path = str(tmp_path / "index.sqlite") if where == "file" else ":memory:"
    index = LocalIndex(path, WordEncoder(), busy_timeout=2)
    index.add([Document(f"d{at}", text) for at, text in enumerate(sentences(4))])
    other = index if where == "memory" else LocalIndex(path, WordEncoder(), busy_timeout=2)
    kept = []  # as a notebook keeps the last traceback, and with it every frame

    for error in at_every_line(lambda: CALLS[name](index), FILES):
        kept.append(error)
        number = len(kept)
        assert other.add([Document("new", f"venus {number}")]).unchanged == 0
        assert index.add([Document("d1", f"saturn {number}")]).unchanged == 0
        held = {document.id: document.text for document in index}
        assert held.pop("new") == f"venus {number}"
        assert held.pop("d1") == f"saturn {number}"
        assert index.count() == elsewhere(index.count) == len(held) + 2

    assert {hit.id for hit in index.search("venus", 100)} == {document.id for document in index}
    assert len(kept) > 10
    # A fork in any other thread would wait for this one's lock, had an interrupt left it held.
    lock = forks.no_fork()
    assert elsewhere(lambda: lock.acquire(blocking=False) and lock.release() is None)
    index.verify()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_signals_at_any_moment_leave_the_index_usable(tmp_path: Path):
    path = tmp_path / "index.sqlite"
    index = LocalIndex(path, WordEncoder(), busy_timeout=2)
    index.add(sentences(20))
    kept = []

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupted)
    # An interrupt that falls into the finaliser of some object is printed, and not raised.
    gc.disable()
    try:
        for number in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00002 * (number % 40 + 1))
                while True:
                    index.count()
            except KeyboardInterrupt as error:
                kept.append(error)
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert len(kept) == 300
    assert index.count() == elsewhere(index.count) == 20
    assert LocalIndex(path, WordEncoder()).add(["venus"]).added == 1
    assert index.add(["saturn"]).added == 1


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs a timer that sends signals")
def test_an_interrupt_while_another_holds_the_lock_is_heeded_and_loses_nothing(tmp_path: Path):
    path = tmp_path / "index.sqlite"
    index = LocalIndex(path, WordEncoder(), busy_timeout=30)
    index.add(sentences(3))
    holder = LocalIndex(path, WordEncoder())
    with holder._database._claim.held():
        before = signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(2))
        # A shell ignores it for what runs in the background, and Python leaves it so.
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                index.add(["venus"])
            assert time.monotonic() - started < 10
        finally:
            signal.signal(signal.SIGALRM, before)
            signal.signal(signal.SIGINT, ignored)
        assert index.count() == 3

    assert index.add(["venus"]).added == 1
    assert holder.add(["saturn"]).added == 1


def test_an_operation_that_fails_is_not_called_damage(tmp_path: Path):
    path = tmp_path / "index.sqlite"
    index = LocalIndex(path, WordEncoder(), busy_timeout=0.1)
    index.add(["venus"])

    def nested() -> None:
        index._database.connection.execute("BEGIN")

    with pytest.raises(OSError, match="within a transaction") as caught:
        index._database.read(nested)

    assert "damaged" not in str(caught.value)
    assert index.add(["saturn"]).added == 1


def test_a_write_inside_an_add_gets_words_at_once(tmp_path: Path):
    for path in (tmp_path / "index.sqlite", ":memory:"):
        index = LocalIndex(path, WordEncoder(), busy_timeout=60)
        index.add(["venus"])

        def texts(index: LocalIndex = index) -> Iterator[str]:
            yield "saturn"
            with pytest.raises(IndexBusyError, match="the call that this one is part of"):
                index.delete(filter={"n": None})
            with pytest.raises(IndexBusyError, match="Collect what is to change"):
                index.add(["mars"])
            yield "moon"

        assert index.add(texts(), batch_size=1).added == 2
        assert sorted(document.text for document in index) == ["moon", "saturn", "venus"]
