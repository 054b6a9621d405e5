"""Many threads on one model: the same answers as one after another, and one load."""

from __future__ import annotations

import copy
import os
import pickle
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from colbert_rag import ColBERT, clear_cache, shared_colbert, text_encoder
from colbert_rag import colbert as colbert_module

WORDS = "mars venus jupiter saturn is a red planet known for its rings and storms".split()


def texts(count: int) -> list[str]:
    """Texts from 1 to 90 words: shorter and longer than both length limits."""
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 90))) for _ in range(count)]


@pytest.mark.parametrize("name", ["stanford-bert", "pylate-modernbert", "pylate-lfm2"])
def test_eight_threads_get_the_results_of_one(name: str, colbert: Callable[..., ColBERT]) -> None:
    # The fault this guards against is silent: with truncation set on a shared tokenizer for each
    # call, some documents are cut to the query length (measured on sentence-transformers 6.2).
    model = colbert(name, document_cache=None)
    jobs = [
        (model.encode_queries if number % 2 else model.encode_documents, [text])
        for number, text in enumerate(texts(400))
    ]
    serial = [encode(texts_) for encode, texts_ in jobs]

    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: job[0](job[1]), jobs))

    assert [found.offsets.tolist() for found in parallel] == [
        expected.offsets.tolist() for expected in serial
    ]
    torch.testing.assert_close(
        torch.cat([found.values for found in parallel]),
        torch.cat([expected.values for expected in serial]),
        rtol=0,
        atol=1e-6,
    )


def test_eight_threads_rank_through_one_cache_as_one_does(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("stanford-bert", document_cache=20_000)  # too small: texts come and go
    documents = texts(60)
    queries = [" ".join(text.split()[:6]) for text in documents]
    serial = [model.rank(query, documents[:30]) for query in queries]

    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda query: model.rank(query, documents[:30]), queries))

    assert [[place.index for place in ranking] for ranking in parallel] == [
        [place.index for place in ranking] for ranking in serial
    ]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The checkpoints whose weights were read, in order; nothing is shared before and after."""
    read: list[str] = []
    host = text_encoder.host

    def counting(checkpoint: object, **options: object) -> object:
        read.append(checkpoint.name)  # type: ignore[attr-defined]
        return host(checkpoint, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(text_encoder, "host", counting)
    clear_cache()
    yield read
    clear_cache()


def test_eight_threads_and_four_spellings_load_once(
    tiny_checkpoint: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)
    spellings: list[Callable[[], ColBERT]] = [
        lambda: shared_colbert(tiny_checkpoint, device="cpu", dtype="float32"),
        lambda: shared_colbert(str(tiny_checkpoint), dtype="float32", device="cpu", revision=None),
        lambda: shared_colbert(tiny_checkpoint.name, device="cpu", dtype="float32"),
        lambda: shared_colbert(
            checkpoint=Path(tiny_checkpoint.name), dtype="float32", device="cpu"
        ),
    ]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: spellings[number % 4](), range(64)))
    copies = [copy.deepcopy(found[0]), pickle.loads(pickle.dumps(found[0]))]

    assert {id(model) for model in [*found, *copies]} == {id(found[0])}
    assert len(loads) == 1


def test_the_device_that_none_means_is_the_same_device(
    tiny_checkpoint: Path, loads: list[str]
) -> None:
    default = shared_colbert(tiny_checkpoint)

    assert shared_colbert(tiny_checkpoint, device=default.device) is default
    assert shared_colbert(tiny_checkpoint, dtype=default.settings.dtype) is default
    assert len(loads) == 1


def test_another_configuration_is_another_instance(tiny_checkpoint: Path, loads: list[str]) -> None:
    one = shared_colbert(tiny_checkpoint, device="cpu")
    other = shared_colbert(tiny_checkpoint, device="cpu", document_length=20)

    assert one is not other
    assert len(loads) == 2


def test_a_fresh_instance_is_not_the_shared_one(tiny_checkpoint: Path, loads: list[str]) -> None:
    shared = shared_colbert(tiny_checkpoint, device="cpu")

    assert ColBERT.from_pretrained(tiny_checkpoint, device="cpu") is not shared


def test_a_failed_load_is_tried_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    missing = tmp_path / "later"
    with pytest.raises(ValueError, match="neither a folder"):
        shared_colbert(missing)

    missing.symlink_to(tiny_checkpoint, target_is_directory=True)

    assert shared_colbert(missing).dim == 16


def test_clearing_forgets_and_unloads_but_breaks_nobody(
    tiny_checkpoint: Path, loads: list[str]
) -> None:
    old = shared_colbert(tiny_checkpoint, device="cpu")

    clear_cache()

    assert not old.loaded
    assert shared_colbert(tiny_checkpoint, device="cpu") is not old
    assert len(old.score("red", ["mars"])) == 1


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="top_k"):
        shared_colbert("owner/name", top_k=3)  # type: ignore[call-arg]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_starts_with_nothing_shared(tiny_checkpoint: Path, loads: list[str]) -> None:
    model = shared_colbert(tiny_checkpoint, device="cpu")
    child = os.fork()
    if child == 0:  # pragma: no cover - runs in the child
        os._exit(0 if colbert_module.SHARED.clear() == [] else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert colbert_module.SHARED.clear() == [model]
