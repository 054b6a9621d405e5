"""A fork beside threads that compute, and what its child computes with."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from colbert_rag import ColBERT, TokenEmbeddings, forks
from colbert_rag.backbone.transformer import Transformer
from colbert_rag.computing import computing
from colbert_rag.index import LocalIndex
from colbert_rag.maxsim import maxsim
from tests.helpers.encoders import StandIn, around
from tests.helpers.forked import beside_threads, in_child, needs_fork
from tests.helpers.index_fakes import WordEncoder
from tests.helpers.interrupts import elsewhere

pytestmark = [needs_fork, beside_threads]

LIMIT = 20.0


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As many as make OpenMP start a pool, which the thread that forks has in vain in a child."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Slow(StandIn):
    """Stands before a model: a forward pass goes on for as long as `work` does."""

    def __init__(self, model: Transformer, work: Callable[[], object]) -> None:
        super().__init__(model)
        self.work, self.entered = work, threading.Event()

    def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        self.entered.set()
        self.work()
        return self.model(ids, *rest)


def encoding(model: ColBERT, work: Callable[[], object]) -> threading.Thread:
    """A thread in the middle of a forward pass, which ends when `work` does."""
    encoder = model._loaded().text_encoder.encoder
    slow = Slow(encoder._model, work)
    own = around(slow, encoder, batch_tokens=100)
    batch = model.tokenizer.documents(["mars"])
    thread = threading.Thread(target=own.encode, args=(batch,), daemon=True)
    thread.start()
    assert slow.entered.wait(LIMIT)
    return thread


@pytest.fixture
def scores(two_threads: None) -> Callable[[], list[float]]:
    """Those of a product that torch shares out among all threads; made of what is there already."""
    rows = torch.nn.functional.normalize(torch.ones(4096, 128) + torch.eye(4096, 128), dim=1)
    documents, query = TokenEmbeddings.from_list(list(rows.split(64))), rows[:32].clone()
    return lambda: maxsim(query, documents).tolist()


@pytest.mark.parametrize("cores", [1, 2])
def test_a_fork_waits_for_the_forward_pass_of_another_thread(tiny_colbert: ColBERT, cores: int):
    expected = pytest.approx(tiny_colbert.score("mars", ["rings", "ice"]), abs=1e-4)
    ended: list[float] = []

    def slow() -> None:
        time.sleep(0.3)
        ended.append(time.monotonic())

    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        thread = encoding(tiny_colbert, slow)
        code = in_child(
            lambda: len(ended) == 1 and tiny_colbert.score("mars", ["rings", "ice"]) == expected
        )
    finally:
        torch.set_num_threads(before)
    thread.join(LIMIT)

    assert code == 0


def test_a_fork_waits_no_longer_than_it_says_and_the_child_may_use_an_index(
    tiny_colbert: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forks, "_LONGEST", 0.2)
    over = threading.Event()
    thread = encoding(tiny_colbert, lambda: over.wait(LIMIT))

    def told() -> bool:
        with pytest.raises(RuntimeError, match=r"computing with a model.*0\.2 s.*oneDNN.*spawn"):
            tiny_colbert.encode_documents(["mars"])
        with pytest.raises(RuntimeError, match="computing with a model"):
            maxsim(torch.ones(1, 4), TokenEmbeddings.from_list([torch.ones(1, 4)]))
        with LocalIndex(tmp_path / "index.sqlite", WordEncoder()) as index:
            return index.count() == 0

    started = time.monotonic()
    assert in_child(told) == 0
    assert time.monotonic() - started < 10
    over.set()
    thread.join(LIMIT)
    assert in_child(lambda: not forks.is_torn("model")) == 0


def test_a_thread_inside_an_index_may_compute_while_a_fork_waits_for_it():
    entered, forking = threading.Event(), threading.Event()
    computed: list[float] = []

    def read() -> None:
        with forks.no_fork():
            entered.set()
            forking.wait(LIMIT)
            while not forks._waiting:
                time.sleep(0.01)
            time.sleep(0.1)
            with computing():
                computed.append(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    assert entered.wait(LIMIT)
    started = time.monotonic()
    forking.set()

    assert in_child(lambda: len(computed) == 1 and not forks.is_torn("model")) == 0
    assert time.monotonic() - started < 5
    thread.join(LIMIT)


def test_an_index_may_be_closed_in_a_thread_that_computes_while_a_fork_waits_for_it(
    tmp_path: Path,
):
    """As the collector of garbage does wherever it runs."""
    index = LocalIndex(tmp_path / "index.sqlite", WordEncoder())
    entered = threading.Event()

    def compute() -> None:
        with computing():
            entered.set()
            while not forks._waiting:
                time.sleep(0.01)
            time.sleep(0.1)
            index.close()

    thread = threading.Thread(target=compute)
    thread.start()
    assert entered.wait(LIMIT)
    started = time.monotonic()

    assert in_child(lambda: not (forks.is_torn("index") or forks.is_torn("model"))) == 0
    assert time.monotonic() - started < 5
    thread.join(LIMIT)


def test_a_fork_waits_for_an_index_that_is_read_in_a_thread_that_computes():
    entered = threading.Event()
    left: list[float] = []

    def compute() -> None:
        with computing(), forks.no_fork():
            entered.set()
            time.sleep(0.3)
            left.append(time.monotonic())

    thread = threading.Thread(target=compute)
    thread.start()
    assert entered.wait(LIMIT)

    assert in_child(lambda: len(left) == 1 and not forks.is_torn()) == 0
    thread.join(LIMIT)


def test_a_child_is_told_of_an_index_that_was_read_in_a_thread_that_computes(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(forks, "_LONGEST", 0.2)
    entered, over = threading.Event(), threading.Event()

    def compute() -> None:
        with computing(), forks.no_fork():
            entered.set()
            over.wait(LIMIT)

    thread = threading.Thread(target=compute)
    thread.start()
    assert entered.wait(LIMIT)

    assert in_child(lambda: forks.is_torn("index") and forks.is_torn("model")) == 0
    over.set()
    thread.join(LIMIT)


def test_a_child_may_open_a_model_of_its_own(minilm: ColBERT, two_threads: None):
    texts = [f"{'saturn has rings of ice ' * 30}{number}" for number in range(20)]
    again = pytest.approx(minilm.score("rings", texts), abs=1e-4)
    ColBERT.from_pretrained("offline-minilm", device="cpu", dtype="float32").load()

    def scored() -> bool:
        own = ColBERT.from_pretrained("offline-minilm", device="cpu", dtype="float32")
        return own.score("rings", texts) == again

    assert in_child(scored, limit=LIMIT) == 0


def test_a_child_of_a_parent_without_a_model_scores_vectors(
    scores: Callable[[], list[float]], caplog: pytest.LogCaptureFixture
):
    expected = pytest.approx(scores(), abs=1e-4)

    def scored() -> bool:
        caplog.clear()
        same = [scores(), scores()] == [expected, expected]
        said = [record.getMessage() for record in caplog.records]
        return same and len(said) == 1 and "computes on one thread" in said[0]

    assert in_child(scored, limit=LIMIT) == 0
    assert torch.get_num_threads() == 2


def test_the_thread_that_forked_computes_on_one_also_where_another_was_first(
    scores: Callable[[], list[float]],
):
    expected = pytest.approx(scores(), abs=1e-4)

    assert in_child(lambda: [elsewhere(scores), scores()] == [expected, expected], LIMIT) == 0


def test_a_grandchild_computes_as_well(scores: Callable[[], list[float]]):
    expected = pytest.approx(scores(), abs=1e-4)

    assert in_child(lambda: in_child(lambda: scores() == expected, LIMIT / 2) == 0, LIMIT) == 0


def test_a_fork_keeps_nothing_alive_that_another_thread_was_holding():
    class Held:
        pass

    entered, over = threading.Event(), threading.Event()
    found: list[weakref.ref[Held]] = []

    def hold() -> None:
        held = Held()
        found.append(weakref.ref(held))
        entered.set()
        over.wait(LIMIT)

    thread = threading.Thread(target=hold)
    gc.collect()
    gc.disable()
    try:
        thread.start()
        assert entered.wait(LIMIT)
        assert in_child(lambda: True) == 0
        over.set()
        thread.join(LIMIT)
        alive = found[0]() is not None
    finally:
        gc.enable()

    assert not alive
