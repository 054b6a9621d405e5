"""Cores that compute parts of a batch side by side: the same vectors, nothing left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from colbert_rag import ColBERT
from colbert_rag.encoder import CORE_TOKENS, Tokens, default_batch_tokens
from colbert_rag.errors import DeviceMemoryError
from colbert_rag.workers import Workers
from tests.helpers.encoders import StandIn, around

EVEN = [f"{'saturn has rings of ice and rock ' * (number % 3 + 4)}{number}" for number in range(12)]


@pytest.fixture
def cores() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


class Watched(StandIn):
    """Keeps, of every forward pass, its tokens, its thread, and the threads torch had there."""

    def __init__(self, model: object, fails: int = -1, together: int = 1) -> None:
        super().__init__(model)  # type: ignore[arg-type]
        self.barrier = threading.Barrier(together)
        self.sizes: list[int] = []
        self.threads: list[str] = []
        self.intra: list[int] = []
        self.fails = fails

    def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        self.sizes.append(len(ids))
        self.threads.append(threading.current_thread().name)
        self.intra.append(torch.get_num_threads())
        self.barrier.wait(60)
        if len(self.sizes) - 1 == self.fails:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        out: torch.Tensor = self.model(ids, *rest)  # type: ignore[arg-type]
        return out


def watched(model: ColBERT, fails: int = -1, together: int = 1) -> tuple[Watched, object]:
    encoder = model._loaded().text_encoder.encoder
    watch = Watched(encoder._model, fails, together)
    return watch, around(watch, encoder, batch_tokens=100_000)


def test_each_core_computes_a_part_alone(tiny_colbert: ColBERT, cores: int) -> None:
    batch = tiny_colbert.tokenizer.documents(EVEN)
    watch, encoder = watched(tiny_colbert, together=cores)

    found = encoder.encode(batch)  # type: ignore[attr-defined]

    assert len(watch.sizes) == len(set(watch.threads)) == cores
    assert sum(watch.sizes) == len(batch.ids)
    assert max(watch.sizes) < 1.3 * len(batch.ids) / cores
    assert watch.intra == [1] * cores
    torch.set_num_threads(1)
    for rows, text in zip(found, EVEN, strict=True):
        (alone,) = tiny_colbert.encode_documents([text])
        torch.testing.assert_close(rows, alone, rtol=0, atol=1e-5)


def test_texts_too_uneven_for_parts_have_all_cores_together(
    tiny_colbert: ColBERT, cores: int
) -> None:
    watch, encoder = watched(tiny_colbert)

    encoder.encode(tiny_colbert.tokenizer.documents([EVEN[2] * 3, "ice"]))  # type: ignore[attr-defined]

    assert len(watch.sizes) == 1
    assert watch.intra == [cores]


def test_a_part_without_memory_is_tried_again_with_less(tiny_colbert: ColBERT, cores: int) -> None:
    batch = tiny_colbert.tokenizer.documents(EVEN)
    watch, encoder = watched(tiny_colbert, fails=2)

    found = encoder.encode(batch)  # type: ignore[attr-defined]

    expected = tiny_colbert._loaded().text_encoder.encoder.encode(batch)
    assert len(watch.sizes) > cores
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)


class Steps(StandIn):
    """Lets each forward pass end when it is told to, and says which have begun."""

    def __init__(self, model: object) -> None:
        super().__init__(model)  # type: ignore[arg-type]
        self.lock, self.begun = threading.Lock(), list[int]()
        self.entered = threading.Semaphore(0)
        self.let: dict[int, threading.Event] = defaultdict(threading.Event)

    def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        with self.lock:
            number = len(self.begun)
            self.begun.append(len(ids))
        self.entered.release()
        assert self.let[number].wait(60)
        out: torch.Tensor = self.model(ids, *rest)  # type: ignore[arg-type]
        return out


def test_a_core_that_is_free_begins_with_the_next_batch(tiny_colbert: ColBERT) -> None:
    own = tiny_colbert._loaded().text_encoder.encoder
    batch = tiny_colbert.tokenizer.documents(EVEN)
    expected = own.encode(batch)
    steps = Steps(own._model)
    tokens = int(batch.lengths.max()) * 2
    encoder, done = around(steps, own, batch_tokens=tokens), list[int]()
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # which the thread begins with that asks
    try:
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(encoder.encode, batch, progress=done.append)
            for _ in range(2):
                assert steps.entered.acquire(timeout=60)
            steps.let[1].set()
            assert steps.entered.acquire(timeout=60)  # a part of the second batch
            assert not done
            for number in range(20):
                steps.let[number].set()
            found = call.result(60)
    finally:
        torch.set_num_threads(before)

    assert sum(done) == len(EVEN)
    assert sum(steps.begun) == len(batch.ids)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)


class Crowded(StandIn):
    """Has no memory for the second forward pass, and none for later ones beside each other."""

    def __init__(self, model: object) -> None:
        super().__init__(model)  # type: ignore[arg-type]
        self.lock, self.next_batch = threading.Lock(), threading.Event()
        self.begun = self.now = 0

    def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        with self.lock:
            number, beside = self.begun, self.now
            self.begun, self.now = number + 1, beside + 1
        try:
            if number == 0:
                assert self.next_batch.wait(60)
            if number == 1 or (number > 3 and beside):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
            if number == 2:
                self.next_batch.set()
            if number in (2, 3):
                time.sleep(0.3)
            out: torch.Tensor = self.model(ids, *rest)  # type: ignore[arg-type]
            return out
        finally:
            with self.lock:
                self.now -= 1


def test_a_part_without_memory_is_tried_again_when_the_next_batch_has_ended(
    tiny_colbert: ColBERT,
) -> None:
    own = tiny_colbert._loaded().text_encoder.encoder
    batch = tiny_colbert.tokenizer.documents(EVEN[:1] * 4)
    expected = own.encode(batch)
    crowded = Crowded(own._model)
    encoder = around(crowded, own, batch_tokens=int(batch.lengths[0]) * 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = encoder.encode(batch)
    finally:
        torch.set_num_threads(before)

    assert crowded.begun == 6
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)


def test_a_part_that_failed_keeps_nothing_that_it_computed() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def work(item: int) -> None:
        hidden = torch.zeros(item)
        kept.append(weakref.ref(hidden))
        raise ArithmeticError("lost")

    parts = Workers().begin(work, [1, 2])

    for part in parts:
        with pytest.raises(ArithmeticError, match="lost"):
            part.result()
    assert [hidden() for hidden in kept] == [None, None]


def test_other_threads_keep_their_number_of_cores(tiny_colbert: ColBERT, cores: int) -> None:
    """torch begins a thread with the number that any thread has set last."""
    _, encoder = watched(tiny_colbert)
    encoder.encode(tiny_colbert.tokenizer.documents(EVEN))  # type: ignore[attr-defined]
    seen: list[int] = []

    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()

    assert seen == [cores] == [torch.get_num_threads()]


@pytest.mark.parametrize("startable", [0, 2])
def test_all_is_computed_together_where_threads_cannot_be_started(
    startable: int, tiny_colbert: ColBERT, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = tiny_colbert.tokenizer.documents(EVEN)
    watch, encoder = watched(tiny_colbert)
    encoder.encode(tiny_colbert.tokenizer.documents(["ice"]))  # type: ignore[attr-defined]
    start, before, begun = threading.Thread.start, threading.active_count(), []

    def limited(thread: threading.Thread) -> None:
        if len(begun) == startable:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    found = encoder.encode(batch)  # type: ignore[attr-defined]
    monkeypatch.undo()

    assert watch.intra == [cores] * 2
    for thread in begun:
        thread.join(5)
    assert len(begun) == startable
    assert threading.active_count() == before
    expected = encoder.encode(batch)  # type: ignore[attr-defined]
    assert watch.intra[2:] == [1] * cores  # tried again
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)


def test_a_thread_of_the_user_encodes_on_when_the_main_thread_has_ended(
    tiny_checkpoint: Path,
) -> None:
    code = f"""
import threading, torch
from colbert_rag import ColBERT

torch.set_num_threads(2)
model = ColBERT.from_pretrained({str(tiny_checkpoint)!r}, device="cpu", dtype="float32")
texts = [f"{{'saturn has rings ' * 4}}{{number}}" for number in range(20)]
model.encode_documents(texts)
workers = [thread for thread in threading.enumerate() if thread.name.startswith("encode_")]
assert len(workers) == 2

def work():
    for worker in workers:
        worker.join()  # Python has closed their pool
    print(len(model.encode_documents(texts)))

threading.Thread(target=work).start()
"""
    root = Path(__file__).parents[1]

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60
    )

    assert (done.stdout, done.stderr, done.returncode) == ("20\n", "", 0)


def test_workers_end_with_their_encoder(tiny_colbert: ColBERT, cores: int) -> None:
    before = set(threading.enumerate())
    watch, encoder = watched(tiny_colbert)
    encoder.encode(tiny_colbert.tokenizer.documents(EVEN))  # type: ignore[attr-defined]
    begun = set(threading.enumerate()) - before
    assert len(begun) == cores + 1  # and the one that shares out

    del encoder, watch
    gc.collect()

    for thread in begun:
        thread.join(30)
    assert not any(thread.is_alive() for thread in begun)


def test_what_fails_in_one_thread_ends_no_other() -> None:
    ended: list[int] = []

    def work(item: int) -> int:
        if item == 0:
            raise DeviceMemoryError("first")
        time.sleep(0.2)
        ended.append(item)
        return item

    workers = Workers()
    parts = workers.begin(work, [0, 1, 2])

    with pytest.raises(DeviceMemoryError, match="first"):
        parts[0].result()
    assert [part.result() for part in parts[1:]] == [1, 2]
    assert sorted(ended) == [1, 2]
    assert [part.result() for part in workers.begin(work, [3, 1, 2])] == [3, 1, 2]


@pytest.mark.parametrize(
    ("lengths", "cores", "parts"),
    [
        ([], 4, [[]]),
        ([10], 4, [[10]]),
        ([10] * 4, 1, [[10] * 4]),
        ([10] * 8, 4, [[10, 10]] * 4),
        ([1, 2, 3, 4, 5, 6, 7, 8], 2, [[1, 2, 3, 4, 5], [6, 7, 8]]),  # 15 and 21 of 36
        ([10, 200], 2, [[10, 200]]),  # one core would wait for the other
        ([10] * 2, 8, [[10] * 2]),  # six cores would have nothing to do
        ([10] * 6, 8, [[10]] * 6),
    ],
)
def test_texts_are_shared_out_in_order(
    lengths: list[int], cores: int, parts: list[list[int]]
) -> None:
    count = sum(lengths)
    mark = np.arange(count)
    tokens = Tokens(
        ids=mark,
        places=mark + 1,
        attention=mark % 2 == 0,
        scoring=mark % 3 == 0,
        lengths=np.array(lengths, np.int64),
    )

    found = tokens.split(cores)

    assert [part.lengths.tolist() for part in found] == parts
    joined = Tokens.cat(found)
    for name in ("ids", "places", "attention", "scoring", "lengths"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(tokens, name))


def test_a_batch_grows_with_the_cores_of_a_cpu(cores: int) -> None:
    assert default_batch_tokens("cpu") == 2048
    torch.set_num_threads(16)
    assert default_batch_tokens("cpu") == 16 * CORE_TOKENS
    assert default_batch_tokens("cuda") == 32768
