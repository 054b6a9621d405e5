"""A fork beside threads that use an index: the child ends, and nothing of either is lost."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from colbert_rag import forks
from colbert_rag.errors import IndexBusyError
from colbert_rag.index import Document, LocalIndex
from colbert_rag.index.local.claim import Claim
from colbert_rag.index.local.place import Place
from tests.helpers.forked import beside_threads, ended, in_child, needs_fork
from tests.helpers.index_fakes import WordEncoder, sentences
from tests.helpers.interrupts import Interrupted, elsewhere

pytestmark = [needs_fork, beside_threads]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "index.sqlite"
    with LocalIndex(path, WordEncoder()) as index:
        index.add(sentences(20))
    return path


class Turn:
    """Lets parent and child wait for each other."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        os.read(self._read, 1)

    def give(self) -> None:
        os.write(self._write, b"x")


@contextmanager
def busy_threads(path: Path) -> Iterator[None]:
    """Four threads that do nothing but read and write, with handles of their own."""
    over = threading.Event()

    def work(number: int) -> None:
        with LocalIndex(path, WordEncoder(), busy_timeout=60) as index:
            while not over.is_set():
                index.count()
                index.search("mars", 3)
                if number == 0:
                    index.add([Document("changing", f"saturn {time.monotonic()}")])
                LocalIndex(path, WordEncoder(), busy_timeout=60).close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def test_no_child_hangs_beside_threads_that_read_and_write(path: Path):
    index = LocalIndex(path, WordEncoder())
    index.count()

    def use() -> bool:
        with LocalIndex(path, WordEncoder(), busy_timeout=60) as own:
            before = own.count()
            own.add([Document(f"child {os.getpid()}", "venus")])
            return own.count() > before

    with busy_threads(path):
        codes = [in_child(use, limit=10) for _ in range(30)]

    assert codes == [0] * 30
    # 20, the one of the threads, and one of each child.
    assert index.count() == 51
    index.verify()


def test_what_a_child_adds_is_there_after_the_parent_has_closed(path: Path):
    index = LocalIndex(path, WordEncoder())
    assert index.count() == 20
    opened, closed = Turn(), Turn()
    child = os.fork()
    if not child:
        code = 1
        try:
            own = LocalIndex(path, WordEncoder())
            own.count()
            opened.give()
            closed.wait()
            code = own.add(["venus"]).added - 1
        finally:
            os._exit(code)
    opened.wait()
    index.close()  # the last one out removes the log: the child is not out
    closed.give()

    assert ended(child) == 0
    with LocalIndex(path, WordEncoder()) as again:
        assert again.count() == 21


def test_a_child_waits_for_the_writer_that_it_was_forked_from_and_no_longer(path: Path):
    index = LocalIndex(path, WordEncoder())
    done = Turn()

    def use() -> bool:
        with LocalIndex(path, WordEncoder(), busy_timeout=0.2) as own:
            with pytest.raises(IndexBusyError):
                own.add(["venus"])
            done.wait()
        with LocalIndex(path, WordEncoder(), busy_timeout=20) as own:
            return own.add(["venus"]).added == 1

    children = []

    def forked() -> Iterator[str]:
        yield "saturn"
        child = os.fork()
        if not child:
            code = 2
            try:
                code = 0 if use() else 1
            finally:
                os._exit(code)
        children.append(child)
        time.sleep(1)
        yield "moon"

    assert index.add(forked(), batch_size=1).added == 2
    done.give()

    assert [ended(child) for child in children] == [0]
    assert index.count() == 23


def test_a_child_that_goes_on_with_its_parents_add_is_refused_with_words(path: Path):
    index = LocalIndex(path, WordEncoder())
    children = []

    def forked() -> Iterator[str]:
        children.append(os.fork())
        yield "saturn"

    try:
        index.add(forked())
        code = 1
    except RuntimeError as error:
        code = 0 if "before this process was forked; open it again" in str(error) else 2
    if not children[0]:
        os._exit(code)

    assert code == 1
    assert ended(children[0]) == 0
    assert index.count() == 21


def test_a_fork_waits_for_the_reads_of_others_and_not_for_its_own(path: Path):
    index = LocalIndex(path, WordEncoder())
    entered = threading.Event()
    left = []

    def slow() -> None:
        entered.set()
        time.sleep(0.3)
        left.append(time.monotonic())

    thread = threading.Thread(target=index._database.read, args=(slow,))
    thread.start()
    entered.wait()
    assert in_child(lambda: len(left) == 1) == 0
    thread.join()

    assert index._database.read(lambda: in_child(lambda: True)) == 0
    assert index.count() == elsewhere(index.count) == 20


def test_what_fails_to_be_renewed_keeps_nothing_else_from_it():
    class Renewed:
        times = 0

        def renew(self) -> None:
            self.times += 1
            raise ValueError("for the test")

    both = Renewed(), Renewed()
    for one in both:
        forks.renewed_after_fork(one)

    assert in_child(lambda: [one.times for one in both] == [1, 1]) == 0
    assert [one.times for one in both] == [0, 0]


@pytest.mark.parametrize("fork_first", [False, True])
def test_a_claim_of_another_thread_is_renewed_wherever_it_stands(path: Path, fork_first: bool):
    claim = Claim(Place(str(path)), timeout=0)
    held = elsewhere(claim.held)  # it is not locked yet, nor the file opened

    def renewed() -> bool:
        held.renew()
        return not held.in_transaction and held.execute("SELECT 1").fetchone() == (1,)

    def forked_again() -> bool:
        # Renewed by a thread of the child that ends, and then by the one that forks.
        elsewhere(held.renew)
        return in_child(renewed) == 0

    assert in_child(forked_again if fork_first else renewed) == 0
    elsewhere(held.close)


def test_threads_that_take_turns_do_not_keep_a_fork_waiting(path: Path):
    index = LocalIndex(path, WordEncoder())
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            index._database.read(time.sleep, 0.02)

    def waited() -> tuple[int, float]:
        started = time.monotonic()
        return in_child(lambda: not forks.is_torn()), time.monotonic() - started

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    with ThreadPoolExecutor(2) as pool:  # two forks at once wait for each other as well
        forked = [pool.submit(waited) for _ in range(6)]
        found = [one.result() for one in forked]
    over.set()
    for thread in threads:
        thread.join()

    assert [code for code, _ in found] == [0] * 6
    # All sixteen may be inside when a fork begins, and each has one turn.
    assert max(seconds for _, seconds in found) < 2


def test_a_thread_that_ended_inside_keeps_no_fork_waiting():
    kept = []

    def end_inside() -> None:
        kept.append(forks.no_fork())
        kept[0].__enter__()

    thread = threading.Thread(target=end_inside)
    thread.start()
    thread.join()
    started = time.monotonic()

    code = in_child(lambda: not forks.is_torn())

    assert code == 0
    assert time.monotonic() - started < 5


def test_readers_do_not_wait_for_each_other():
    both = threading.Barrier(2, timeout=10)

    def meet() -> int:
        with forks.no_fork(), forks.no_fork():
            return both.wait()

    thread = threading.Thread(target=meet)
    thread.start()
    meet()
    thread.join()


def test_a_fork_waits_no_longer_than_it_says_and_the_child_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forks, "_LONGEST", 0.2)
    index = LocalIndex(path, WordEncoder())
    entered, over = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        over.wait(20)

    thread = threading.Thread(target=index._database.read, args=(wait,))
    thread.start()
    entered.wait()

    def refused() -> bool:
        with pytest.raises(RuntimeError, match=r"after 0\.2 seconds.*get_context\(.spawn.\)"):
            LocalIndex(path, WordEncoder())
        index.close()
        return in_child(lambda: forks.is_torn()) == 0

    started = time.monotonic()
    assert in_child(refused) == 0
    assert time.monotonic() - started < 10
    over.set()
    thread.join()
    assert index.count() == 20
    assert in_child(lambda: LocalIndex(path, WordEncoder()).count() == 20) == 0


def test_each_fork_waits_once_for_the_time_that_it_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forks, "_LONGEST", 2.0)
    entered, over = threading.Event(), threading.Event()
    waited: list[float] = []

    def stay() -> None:
        with forks.no_fork():
            entered.set()
            over.wait(20)

    thread = threading.Thread(target=stay)
    thread.start()
    entered.wait()
    for _ in range(2):
        started = time.monotonic()
        child = os.fork()
        if not child:
            os._exit(0)
        waited.append(time.monotonic() - started)
        assert ended(child) == 0
    over.set()
    thread.join()

    assert all(2 <= seconds < 3.5 for seconds in waited)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_of_a_fork_leaves_no_thread_locked_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A fork has lines for each thread: without those that other tests have left.
    monkeypatch.setattr(forks, "_locks", weakref.WeakKeyDictionary())
    index = LocalIndex(path, WordEncoder())
    with ThreadPoolExecutor(1) as other:  # the same thread, and so the same lock, each time
        other.submit(index.count).result(10)
        for at in itertools.count():
            interrupt = Interrupted(at, {forks.__file__})
            before = sys.gettrace()
            sys.settrace(interrupt)
            try:
                code = in_child(lambda: True)
            finally:
                sys.settrace(before)
            assert code == 0
            assert other.submit(index.count).result(10) == index.count() == 20
            assert not forks._waiting
            if interrupt.left >= 0:
                break

    assert at > 20
