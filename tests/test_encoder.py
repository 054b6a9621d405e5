"""The encoder: packed equals alone, batches keep to their budget, a full device is survived."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from colbert_rag import ColBERT, beginnings, tokenizer
from colbert_rag.backbone.transformer import Transformer
from colbert_rag.encoder import Encoder
from colbert_rag.errors import DeviceMemoryError
from colbert_rag.tokenizer import TextTokenizer, TokenBatch
from tests.helpers.encoders import StandIn, around
from tests.helpers.oracle import stanford_oracle
from tests.helpers.texts import DOCUMENTS

TEXTS = [*DOCUMENTS.values(), *(" ".join(["mars is red"] * n) for n in (1, 2, 5, 9, 40, 70))]


@pytest.mark.parametrize(
    "name", ["stanford-bert", "stanford-modernbert", "stanford-xmod", "pylate-lfm2", "jina"]
)
def test_texts_of_one_row_get_the_vectors_of_texts_alone(
    name: str, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name, document_length=200)

    together = model.encode_documents(TEXTS)

    for found, text in zip(together, TEXTS, strict=True):
        (alone,) = model.encode_documents([text])
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_a_text_much_longer_than_the_window_is_cut_into_blocks_without_a_seam(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    # Longer than QUERY_BLOCK, so that windows reach across the border between two blocks.
    text = " ".join(["mars is a red planet"] * 80)
    oracle = stanford_oracle(
        checkpoint("stanford-modernbert"), "ModernBertModel", prefix="model.", document_length=310
    )

    (found,) = colbert("stanford-modernbert", document_length=310).encode_documents([text])

    expected = oracle.document(text)
    assert len(expected.tokens.ids) == 310
    torch.testing.assert_close(found, expected.rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize("most", [0, 1, 20, 100, 10**6])
def test_texts_are_tokenised_in_parts_as_they_are_at_once(
    most: int, tiny_colbert: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", *TEXTS, "", "mars " * 30, ""]
    expected = [tiny_colbert.tokenizer.documents([text]).ids.tolist() for text in texts]
    starts = [tiny_colbert.tokenizer.starts([text])[0] for text in texts]
    at_once: list[list[str]] = []
    tokenize = TextTokenizer._ids

    def noted(self: TextTokenizer, part: list[str]) -> list[list[int]]:
        at_once.append(part)
        return tokenize(self, part)

    monkeypatch.setattr(beginnings, "_CHARACTERS", most)
    monkeypatch.setattr(tokenizer, "_WITH_PLACES", most)
    monkeypatch.setattr(TextTokenizer, "_ids", noted)

    batch = tiny_colbert.tokenizer.documents(texts)

    assert [part.tolist() for part in np.split(batch.ids, batch.offsets[1:-1])] == expected
    assert all(len(part) == 1 or sum(map(len, part)) <= most for part in at_once)
    assert len(tiny_colbert.tokenizer.documents([])) == 0
    assert tiny_colbert.tokenizer.starts(texts) == starts
    assert tiny_colbert.tokenizer.starts([]) == []


class Recorder(StandIn):
    """Stands between an encoder and its model, and keeps how many tokens it was called with."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.sizes: list[int] = []

    def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        self.sizes.append(len(ids))
        return self.model(ids, *rest)


def recorded(model: ColBERT, batch_tokens: int) -> tuple[Encoder, Recorder]:
    encoder = model._loaded().text_encoder.encoder
    recorder = Recorder(encoder._model)
    return around(recorder, encoder, batch_tokens=batch_tokens), recorder


def test_batches_keep_to_their_budget(tiny_colbert: ColBERT) -> None:
    encoder, recorder = recorded(tiny_colbert, 100)
    batch = tiny_colbert.tokenizer.documents(TEXTS)

    encoder.encode(batch)

    assert max(recorder.sizes) <= max(100, int(batch.lengths.max()))
    assert len(recorder.sizes) > 1


def test_the_largest_batch_comes_first(tiny_colbert: ColBERT) -> None:
    encoder, recorder = recorded(tiny_colbert, 100)
    texts = [f"{'word ' * (at % 17)}end" for at in range(40)]

    encoder.encode(tiny_colbert.tokenizer.documents(texts))

    assert recorder.sizes == sorted(recorder.sizes, reverse=True)
    assert len(set(recorder.sizes)) > 2


def test_packing_computes_no_padding(tiny_colbert: ColBERT) -> None:
    encoder, recorder = recorded(tiny_colbert, 10_000)
    batch = tiny_colbert.tokenizer.documents(TEXTS)

    encoder.encode(batch)

    assert recorder.sizes == [len(batch.ids)]


def test_progress_counts_every_text_once(tiny_colbert: ColBERT) -> None:
    encoder, _ = recorded(tiny_colbert, 100)
    steps: list[int] = []

    encoder.encode(tiny_colbert.tokenizer.documents(TEXTS), progress=steps.append)

    assert sum(steps) == len(TEXTS)
    assert len(steps) > 1


class Shortage(StandIn):
    """A model on a device that has room for so many tokens at once."""

    def __init__(self, model: Transformer, room: int, error: Exception) -> None:
        super().__init__(model)
        self.room, self.error, self.refused = room, error, 0

    def __call__(self, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(ids) > self.room:
            self.refused += 1
            raise self.error
        return self.model(ids, *rest)


def short_of_memory(model: ColBERT, room: int, error: Exception) -> tuple[Encoder, Shortage]:
    encoder = model._loaded().text_encoder.encoder
    shortage = Shortage(encoder._model, room, error)
    return around(shortage, encoder, batch_tokens=10_000), shortage


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), id="cuda"),
        pytest.param(RuntimeError("MPS backend out of memory"), id="mps"),
        pytest.param(
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), id="cpu"
        ),
    ],
)
def test_a_full_device_gets_smaller_batches_and_the_same_vectors(
    tiny_colbert: ColBERT, error: Exception
) -> None:
    batch = tiny_colbert.tokenizer.documents(TEXTS)
    encoder, shortage = short_of_memory(tiny_colbert, 250, error)

    found = encoder.encode(batch)

    expected = tiny_colbert._loaded().text_encoder.encoder.encode(batch)
    assert shortage.refused > 0
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)


def test_a_device_too_small_for_one_text_says_what_to_do(tiny_colbert: ColBERT) -> None:
    encoder, _ = short_of_memory(tiny_colbert, 3, torch.OutOfMemoryError("CUDA out of memory"))

    with pytest.raises(DeviceMemoryError, match="choose a smaller document_length"):
        encoder.encode(tiny_colbert.tokenizer.documents(TEXTS))


def test_another_error_is_not_taken_for_a_full_device(tiny_colbert: ColBERT) -> None:
    encoder, _ = short_of_memory(tiny_colbert, 3, RuntimeError("shapes cannot be multiplied"))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        encoder.encode(tiny_colbert.tokenizer.documents(TEXTS))


def test_an_encoder_that_failed_can_be_used_again(tiny_colbert: ColBERT) -> None:
    encoder, shortage = short_of_memory(tiny_colbert, 3, RuntimeError("something else"))
    batch = tiny_colbert.tokenizer.documents(["mars"])
    with pytest.raises(RuntimeError, match="something else"):
        encoder.encode(batch)
    shortage.room = 10_000

    with ThreadWithResult(lambda: encoder.encode(batch)) as found:
        assert len(found) == 1


class ThreadWithResult:
    """Runs in another thread with a time limit: a lock left behind would hang this one."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.results: list[object] = []
        self.thread = threading.Thread(target=lambda: self.results.append(work()), daemon=True)

    def __enter__(self) -> list[object]:
        self.thread.start()
        self.thread.join(20)
        return self.results

    def __exit__(self, *_: object) -> None:
        pass


def test_texts_without_tokens_have_no_rows(tiny_colbert: ColBERT) -> None:
    tokens = tiny_colbert.tokenizer.documents(["mars"])
    length = int(tokens.offsets[-1])
    batch = TokenBatch(
        ids=tokens.ids,
        offsets=np.array([0, 0, length, length]),
        attention=tokens.attention,
        scoring=tokens.scoring,
    )

    found = tiny_colbert._loaded().text_encoder.encoder.encode(batch)

    assert found.lengths.tolist() == [0, length, 0]


def test_nothing_in_gives_nothing_out(tiny_colbert: ColBERT) -> None:
    found = tiny_colbert.encode_documents([])

    assert (len(found), found.dim) == (0, tiny_colbert.dim)


def test_vectors_have_length_one(tiny_colbert: ColBERT) -> None:
    norms = tiny_colbert.encode_documents(TEXTS).values.norm(dim=-1)

    torch.testing.assert_close(norms, torch.ones_like(norms))
