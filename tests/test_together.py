"""Calls at the same time: each text is encoded once, batches are shared, nobody waits for ever."""

from __future__ import annotations

import ctypes
import gc
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from tqdm import tqdm

from colbert_rag import ColBERT, batching, cache, scoring
from colbert_rag.backbone.transformer import Transformer
from colbert_rag.encoder import Encoder
from colbert_rag.tokenizer import TokenBatch
from tests.helpers.encoders import StandIn, around
from tests.helpers.forked import beside_threads, in_child, needs_fork
from tests.helpers.interrupts import at_every_line, elsewhere

TEXTS = [
    f"{'saturn has rings of ice and rock ' * (number % 7 + 1)}{number}" for number in range(40)
]
QUERIES = [
    f"which planet has {thing}?" for thing in "rings ice rock dust moons wind rain fire".split()
]
LIMIT = 60
"""Seconds after which a test fails instead of waiting for ever."""


class Gate(StandIn):
    """Stands before a model: keeps the sizes of its batches, and holds each until it may pass."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.sizes: list[int] = []
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.refused: set[int] = set()

    def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        self.sizes.append(len(ids))
        self.entered.release()
        assert self.open.wait(LIMIT)
        if self.refused & set(ids.tolist()):
            raise ArithmeticError("refused")
        return self.model(ids, *rest)


@pytest.fixture
def gated(tiny_colbert: ColBERT) -> Iterator[tuple[Encoder, Gate]]:
    """An encoder with batches of 200 tokens, behind a gate that is closed."""
    encoder = tiny_colbert._loaded().text_encoder.encoder
    gate = Gate(encoder._model)
    yield around(gate, encoder, batch_tokens=200), gate
    gate.open.set()


def waiting(encoder: Encoder, calls: int) -> None:
    """Wait until so many calls wait for the batch that is being computed."""
    deadline = time.monotonic() + LIMIT
    while encoder._batcher._arrived.qsize() < calls:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("document_cache", [2**24, None])
def test_texts_that_another_call_is_encoding_are_waited_for(
    document_cache: int | None,
    colbert: Callable[..., ColBERT],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = colbert("stanford-bert", document_cache=document_cache)
    alone = [model.score(query, TEXTS) for query in QUERIES]
    model.unload()
    model.load()
    # All begin together, and the gate keeps the first from ending before the last has begun.
    encoder = model._loaded().text_encoder.encoder
    gate = Gate(encoder._model)
    monkeypatch.setattr(encoder, "_model", gate)
    threading.Timer(0.5, gate.open.set).start()

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: model.score(query, TEXTS), QUERIES))

    assert model.truncation_info().documents == len(TEXTS)
    assert model.cache_info().misses == len(TEXTS)
    for found, expected in zip(together, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_short_call_is_in_the_next_batch_of_a_long_one(
    gated: tuple[Encoder, Gate], tiny_colbert: ColBERT
) -> None:
    encoder, gate = gated
    tokenize = tiny_colbert.tokenizer.documents
    long, short = tokenize(TEXTS * 5), [tokenize([text]) for text in ("mars", "venus", "a moon")]
    alone = tiny_colbert._loaded().text_encoder.encoder

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(encoder.encode, long)
        assert gate.entered.acquire(timeout=LIMIT)
        others = [pool.submit(encoder.encode, batch) for batch in short]
        waiting(encoder, 3)
        gate.open.set()
        for other, batch in zip(others, short, strict=True):
            found = other.result(LIMIT)
            torch.testing.assert_close(found.values, alone.encode(batch).values, rtol=0, atol=1e-5)
            # The batch that was being computed, and the one after it.
            assert len(gate.sizes) >= 2
        result = first.result(LIMIT)

    assert gate.sizes[1] <= 200
    expected = alone.encode(long)
    torch.testing.assert_close(result.values, expected.values, rtol=0, atol=1e-5)
    # One batch held the three short calls: had each its own, there would be more.
    assert sum(gate.sizes) == len(long.ids) + sum(len(batch.ids) for batch in short)


def test_short_calls_fill_a_batch_together(
    gated: tuple[Encoder, Gate], tiny_colbert: ColBERT
) -> None:
    encoder, gate = gated
    batches = [tiny_colbert.tokenizer.documents([text]) for text in ("mars", "venus", "a moon")]

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(encoder.encode, batches[0])
        assert gate.entered.acquire(timeout=LIMIT)
        others = [pool.submit(encoder.encode, batch) for batch in batches]
        waiting(encoder, 3)
        gate.open.set()
        for call in (first, *others):
            call.result(LIMIT)

    assert gate.sizes == [len(batches[0].ids), sum(len(batch.ids) for batch in batches)]


def test_a_failure_reaches_the_caller_whose_text_it_was(
    gated: tuple[Encoder, Gate], tiny_colbert: ColBERT
) -> None:
    encoder, gate = gated
    good, bad = (tiny_colbert.tokenizer.documents([text]) for text in ("mars", "venus"))
    (odd,) = set(bad.ids.tolist()) - set(good.ids.tolist()) or {None}
    assert odd is not None

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(encoder.encode, good)
        assert gate.entered.acquire(timeout=LIMIT)
        gate.refused = {odd}
        second, third = pool.submit(encoder.encode, good), pool.submit(encoder.encode, bad)
        waiting(encoder, 2)
        gate.open.set()
        assert len(first.result(LIMIT)) == len(second.result(LIMIT)) == 1
        with pytest.raises(ArithmeticError, match="refused"):
            third.result(LIMIT)

    assert len(encoder.encode(good)) == 1


def interrupted(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread, at its next step, as a terminal does in the main one."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
    )


def test_an_interrupted_call_leaves_the_others_to_it(
    tiny_colbert: ColBERT, request: pytest.FixtureRequest
) -> None:
    model = tiny_colbert
    expected = model.score("rings", TEXTS)
    ended: list[type[BaseException]] = []

    def rank_until_interrupted() -> None:
        try:
            while True:
                model.encode_documents(TEXTS)
        except KeyboardInterrupt as error:
            ended.append(type(error))

    # One that falls into the collector of garbage would be printed, and not raised.
    gc.disable()
    request.addfinalizer(gc.enable)
    for _ in range(20):
        thread = threading.Thread(target=rank_until_interrupted)
        thread.start()
        with ThreadPoolExecutor(1) as pool:
            interrupted(thread)
            found: Future[list[float]] = pool.submit(model.score, "rings", TEXTS)
            assert found.result(LIMIT) == pytest.approx(expected, abs=1e-4)
        thread.join(LIMIT)
        assert not thread.is_alive()

    assert ended == [KeyboardInterrupt] * 20


class GivenUpError(Exception):
    pass


class Once(threading.Event):
    """An event that lets one waiter pass each time it is set."""

    def wait(self, timeout: float | None = None) -> bool:
        passed = super().wait(timeout)
        self.clear()
        return passed


def test_a_call_is_given_up_between_two_batches(
    gated: tuple[Encoder, Gate], tiny_colbert: ColBERT
) -> None:
    encoder, gate = gated
    gate.open = once = Once()
    long = tiny_colbert.tokenizer.documents(TEXTS * 5)
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise GivenUpError

    def encode() -> None:
        with batching.giving_up(check):
            encoder.encode(long)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(encode)
        assert gate.entered.acquire(timeout=LIMIT)
        gone.set()
        once.set()
        with pytest.raises(GivenUpError):
            call.result(LIMIT)

    # Nothing is begun behind the batch that the encoder took before the call was asked.
    gate.open = threading.Event()
    gate.open.set()
    once.set()
    other = tiny_colbert.tokenizer.documents(["mars"])
    encoder.encode(other)
    assert gate.sizes[2:] == [len(other.ids)]
    assert sum(gate.sizes[:2]) < len(long.ids)


def test_a_call_that_was_given_up_is_not_begun(
    gated: tuple[Encoder, Gate], tiny_colbert: ColBERT
) -> None:
    encoder, gate = gated

    def check() -> None:
        raise GivenUpError

    with pytest.raises(GivenUpError), batching.giving_up(check):
        encoder.encode(tiny_colbert.tokenizer.documents(TEXTS))

    assert gate.sizes == []
    gate.open.set()
    assert len(encoder.encode(tiny_colbert.tokenizer.documents(["mars"]))) == 1


def test_texts_of_a_call_that_was_given_up_are_encoded_by_who_waits(
    colbert: Callable[..., ColBERT],
) -> None:
    model = colbert("stanford-bert", document_cache=2**24, batch_tokens=64)
    expected = model.score("rings", TEXTS)
    model.unload()
    model.load()
    other: list[Future[list[float]]] = []

    with ThreadPoolExecutor(1) as pool:

        def check() -> None:
            if model.cache_info().misses < len(TEXTS):
                return  # of the query, before the documents are claimed
            other.append(pool.submit(model.score, "rings", TEXTS))
            time.sleep(0.1)  # where it is too late to wait for the claimed texts, it encodes them
            raise GivenUpError

        with pytest.raises(GivenUpError), batching.giving_up(check):
            model.score("rings", TEXTS)
        assert other[0].result(LIMIT) == pytest.approx(expected, abs=1e-4)


def test_an_interrupt_at_any_line_of_a_call_keeps_nobody_waiting(tiny_colbert: ColBERT) -> None:
    model = tiny_colbert
    files = {module.__file__ for module in (batching, cache, scoring, threading)}
    begun = itertools.count()

    def score() -> list[float]:
        return model.score("rings", [f"moon {next(begun)}"])

    for number, _ in enumerate(at_every_line(score, files)):
        # The very text that was being encoded, by another thread.
        assert elsewhere(lambda number=number: model.score("rings", [f"moon {number}"]))

    assert number > 50


def test_texts_of_a_call_that_failed_are_encoded_by_who_waited(
    colbert: Callable[..., ColBERT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = colbert("stanford-bert")
    expected = model.score(QUERIES[0], TEXTS)
    model.unload()
    encoder = model._loaded().text_encoder
    encode, begun, go = encoder.documents, threading.Event(), threading.Event()

    def failing(texts: list[str], **options: object) -> object:
        monkeypatch.setattr(encoder, "documents", encode)
        begun.set()
        assert go.wait(LIMIT)
        raise ArithmeticError("lost")

    monkeypatch.setattr(encoder, "documents", failing)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(model.score, QUERIES[0], TEXTS)
        assert begun.wait(LIMIT)
        second = pool.submit(model.score, QUERIES[0], TEXTS)
        threading.Timer(0.3, go.set).start()
        with pytest.raises(ArithmeticError, match="lost"):
            first.result(LIMIT)
        assert second.result(LIMIT) == pytest.approx(expected, abs=1e-4)


def test_one_document_does_not_wait_for_a_corpus(
    colbert: Callable[..., ColBERT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = colbert("stanford-bert")
    model.unload()
    encoder = model._loaded().text_encoder
    encode, begun, go = encoder.documents, threading.Event(), threading.Event()

    def held(texts: list[str], **options: object) -> object:
        if len(texts) > 1:
            begun.set()
            assert go.wait(LIMIT)
        return encode(texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "documents", held)

    with ThreadPoolExecutor(2) as pool:
        corpus = pool.submit(model.cache_documents, TEXTS)
        assert begun.wait(LIMIT)
        assert len(pool.submit(model.score, QUERIES[0], TEXTS[:1]).result(LIMIT)) == 1
        assert not corpus.done()
        go.set()
        corpus.result(LIMIT)


def test_an_encoder_takes_its_thread_with_it(tiny_checkpoint: Path) -> None:
    model = ColBERT.from_pretrained(tiny_checkpoint, device="cpu")
    model.score("rings", TEXTS[:3])
    thread = model._loaded().text_encoder.encoder._batcher._thread
    assert thread is not None

    del model
    gc.collect()

    thread.join(LIMIT)
    assert not thread.is_alive()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("refused", [ArithmeticError("lost"), RuntimeError("out of memory")])
def test_what_failed_is_freed_without_the_collector_of_garbage(
    refused: Exception, threads: int, tiny_colbert: ColBERT, request: pytest.FixtureRequest
) -> None:
    own = tiny_colbert._loaded().text_encoder.encoder
    batch = tiny_colbert.tokenizer.documents(TEXTS)

    class Refusing(StandIn):
        def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
            raise type(refused)(*refused.args)

    def failed() -> weakref.ref[Encoder]:
        encoder = around(Refusing(own._model), own, batch_tokens=200)
        with pytest.raises(type(refused)):
            encoder.encode(batch)
        return weakref.ref(encoder)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    gc.collect()
    gc.disable()
    request.addfinalizer(gc.enable)
    encoder = failed()

    deadline = time.monotonic() + 5
    while encoder() is not None and time.monotonic() < deadline:  # its thread lets go of it
        time.sleep(0.01)
    assert encoder() is None


def test_threads_of_a_call_are_those_its_caller_allows(tiny_colbert: ColBERT) -> None:
    seen: list[int] = []
    encoder = tiny_colbert._loaded().text_encoder.encoder
    model = encoder._model

    def recording(*arguments: object) -> object:
        seen.append(torch.get_num_threads())
        return model(*arguments)  # type: ignore[arg-type]

    encoder._model = recording  # type: ignore[assignment]
    before = torch.get_num_threads()
    try:
        for number in (1, 2, 1):
            torch.set_num_threads(number)
            tiny_colbert.encode_documents(["mars"])
    finally:
        torch.set_num_threads(before)
        encoder._model = model

    assert seen == [1, 2, 1]


class Scripted:
    """A call of one text, computed by a function that is told whether it is alone."""

    def __init__(self, kind: str, threads: int, work: Callable[[bool], None]) -> None:
        self.work = work
        self.call: batching.Call[Scripted] = batching.Call(
            payload=self,
            begin=self.begin,
            kind=kind,
            lengths=np.array([1]),
            waiting=deque([np.array([0])]),
            threads=threads,
        )

    def begin(self, parts: Sequence[batching.Part[Scripted]]) -> batching.Begun:
        part: Future[None] = Future()
        part.set_result(None)
        side_by_side = [part] if self.call.threads > 1 else []
        return batching.Begun(parts=side_by_side, finish=partial(self.work, len(parts) == 1))


def test_threads_are_those_of_each_caller_where_the_batch_before_failed() -> None:
    arrived: SimpleQueue[batching.Call[Scripted] | None] = SimpleQueue()
    seen: list[tuple[str, int]] = []

    def refused_together(alone: bool) -> None:
        seen.append(("two", torch.get_num_threads()))
        if not alone:
            raise ArithmeticError("refused")

    def last(alone: bool) -> None:
        seen.append(("one", torch.get_num_threads()))
        arrived.put(None)

    scripts = [Scripted("two", 2, refused_together) for _ in range(2)] + [Scripted("one", 1, last)]
    for script in scripts:
        arrived.put(script.call)
    before = torch.get_num_threads()
    try:
        batching._work(arrived, 100)
    finally:
        torch.set_num_threads(before)

    assert seen == [("two", 2)] * 3 + [("one", 1)]
    assert [script.call.steps.get(timeout=LIMIT) for script in scripts] == [1, 1, 1]


@needs_fork
@beside_threads
def test_a_model_that_is_at_work_can_be_used_in_a_forked_child(tiny_colbert: ColBERT) -> None:
    model = tiny_colbert
    expected = model.score("rings", TEXTS)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            model.encode_documents(TEXTS)
            model.score("rings", [f"{time.monotonic()}"])

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        codes = [
            in_child(lambda: model.score("rings", TEXTS) == pytest.approx(expected, abs=1e-4))
            for _ in range(10)
        ]
    finally:
        over.set()
        for thread in threads:
            thread.join(LIMIT)

    assert codes == [0] * 10


@needs_fork
@beside_threads
def test_a_forked_child_computes_on_one_thread_and_does_not_hang(minilm: ColBERT) -> None:
    # Large enough for products on several threads, which the child's copy of the pool has not.
    texts = [f"{'saturn has rings of ice ' * 30}{number}" for number in range(20)]
    expected = minilm.score("rings", texts)
    minilm.unload()
    minilm.score("rings", texts[:1])

    assert in_child(lambda: minilm.score("rings", texts) == pytest.approx(expected, abs=1e-4)) == 0


@needs_fork
@beside_threads
def test_a_child_of_a_parent_that_only_loaded_does_not_hang(minilm: ColBERT) -> None:
    texts = [f"{'saturn has rings of ice ' * 30}{number}" for number in range(20)]
    expected = minilm.score("rings", texts)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loaded = ColBERT.from_pretrained("offline-minilm", device="cpu", dtype="float32")
        again = pytest.approx(expected, abs=1e-4)
        code = in_child(lambda: loaded.score("rings", texts) == again, limit=20)
    finally:
        torch.set_num_threads(before)

    assert code == 0


@needs_fork
@beside_threads
def test_a_forked_child_waits_for_no_bar_that_nobody_sees(tiny_colbert: ColBERT) -> None:
    expected = tiny_colbert.score("rings", TEXTS)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with tqdm.get_lock():
            held.set()
            over.wait(LIMIT)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(LIMIT)
    try:
        again = pytest.approx(expected, abs=1e-4)
        code = in_child(lambda: tiny_colbert.score("rings", TEXTS) == again, limit=20)
    finally:
        over.set()
        thread.join()

    assert code == 0


@needs_fork
@beside_threads
def test_a_forked_child_waits_for_no_thread_of_the_tokenizer(
    tiny_colbert: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    tiny_colbert.encode_documents(TEXTS)

    def lengths() -> list[int]:
        return [len(rows) for rows in tiny_colbert.encode_documents(TEXTS)]

    expected = lengths()

    assert in_child(lambda: lengths() == expected) == 0


def test_no_tokens_wait_for_nobody(tiny_colbert: ColBERT) -> None:
    encoder = tiny_colbert._loaded().text_encoder.encoder
    tokens: TokenBatch = tiny_colbert.tokenizer.documents([])

    assert len(encoder.encode(tokens)) == 0


@pytest.mark.parametrize("cores", [1, 2])
def test_a_call_that_fails_keeps_no_model_alive(tiny_checkpoint: Path, cores: int) -> None:
    model = ColBERT.from_pretrained(tiny_checkpoint, device="cpu")
    scorer = model._loaded()
    encoder, gone = scorer.text_encoder.encoder, weakref.ref(scorer.text_encoder.encoder)
    gate = Gate(encoder._model)
    gate.open.set()
    gate.refused = set(model.tokenizer.documents(["mars"]).ids.tolist())
    encoder._model = gate  # type: ignore[assignment]
    del scorer, encoder
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ArithmeticError):
            model.encode_documents(["mars"] * 4)
        model.unload()
        for thread in threading.enumerate():
            if thread.name.startswith("encode"):
                thread.join(1)
        alive = gone() is not None
    finally:
        gc.enable()
        torch.set_num_threads(before)

    assert not alive
