"""A text's vectors and scores do not depend on what else is encoded, in which order or how many."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from colbert_rag import ColBERT
from tests.helpers.answers import unlike
from tests.helpers.texts import DOCUMENTS, QUERIES

NAMES = [
    "stanford-bert",
    "stanford-bert-attend",
    "stanford-xlm-roberta",
    "stanford-xmod",
    "pylate-bert-gelu-bias",
    "pylate-modernbert",
    "pylate-modernbert-expansion",
    "pylate-modernbert-blind-rows",
    "pylate-eurobert",
    "pylate-lfm2",
    "native-bert-min",
    "jina",
    "jina-unattended",
    "flagembedding",
    "stanford-jinabert",
    "pylate-lfm2-bidirectional",
    "pylate-qwen3-bidirectional",
]
# Rows of an empty text: of two special tokens the second counts; there is none but the marker.
FEWEST = {"flagembedding": 1, "pylate-qwen3-bidirectional": 1}
TEXTS = {**DOCUMENTS, "long": " ".join(DOCUMENTS.values())}
NONEMPTY = {name: text for name, text in TEXTS.items() if text}


def alone(model: ColBERT, side: str) -> dict[str, torch.Tensor]:
    """Each text in a call of its own."""
    encode = model.encode_queries if side == "query" else model.encode_documents
    texts = NONEMPTY if side == "query" else TEXTS
    return {name: encode([text])[0] for name, text in texts.items()}


def together(model: ColBERT, side: str, names: list[str]) -> dict[str, torch.Tensor]:
    """All texts in one call, in the order of `names`."""
    encode = model.encode_queries if side == "query" else model.encode_documents
    return dict(zip(names, encode([TEXTS[name] for name in names]), strict=True))


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize("name", NAMES)
def test_a_text_alone_equals_the_text_among_others(
    name: str, side: str, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name)
    expected = alone(model, side)

    found = together(model, side, list(expected))

    assert unlike(found, expected) == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_texts_changes_nothing(name: str, colbert: Callable[..., ColBERT]) -> None:
    model = colbert(name)
    names = list(TEXTS)
    expected = together(model, "document", names)

    shuffled = together(model, "document", random.Random(3).sample(names, len(names)))
    backwards = together(model, "document", names[::-1])

    assert unlike(shuffled, expected) == {}
    assert unlike(backwards, expected) == {}


@pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
@pytest.mark.parametrize("name", NAMES)
def test_the_batch_size_changes_nothing(
    name: str, batch_tokens: int, colbert: Callable[..., ColBERT]
) -> None:
    expected = alone(colbert(name), "document")

    found = together(colbert(name, batch_tokens=batch_tokens), "document", list(TEXTS))

    assert unlike(found, expected) == {}


@pytest.mark.parametrize("name", ["stanford-bert", "pylate-modernbert", "pylate-lfm2"])
def test_a_repeated_text_gets_the_same_vectors_each_time(
    name: str, colbert: Callable[..., ColBERT]
) -> None:
    texts = ["mars", DOCUMENTS["another planet"], "mars", "", "mars"]

    encoded = colbert(name).encode_documents(texts)

    assert len(encoded) == 5
    torch.testing.assert_close(encoded[0], encoded[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded[0], encoded[4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("document_cache", [None, 2**20, 1000])
@pytest.mark.parametrize("name", ["stanford-bert", "pylate-modernbert", "pylate-lfm2", "jina"])
def test_a_score_does_not_depend_on_the_other_documents_or_the_cache(
    name: str, document_cache: int | None, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name, document_cache=document_cache)
    query, texts = QUERIES["plain question"], list(TEXTS.values())
    expected = [model.score(query, [text])[0] for text in texts]

    first = model.score(query, texts)
    again = model.score(query, texts[::-1])[::-1]

    assert first == pytest.approx(expected, abs=1e-4)
    assert again == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_nothing(
    name: str, side: str, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name, batch_tokens=10**6)
    expected = alone(model, side)
    names = [*expected] * 9
    encode = model.encode_queries if side == "query" else model.encode_documents
    before = torch.get_num_threads()
    torch.set_num_threads(3)

    try:
        uneven = together(model, side, ["another planet", "long"])  # each operation on all cores
        parts = list(encode([TEXTS[name] for name in names]))  # each core its own texts
    finally:
        torch.set_num_threads(before)

    assert model._loaded().text_encoder.encoder._workers._count == 3
    assert unlike(uneven, expected) == {}
    for start in range(0, len(names), len(expected)):
        assert unlike(dict(zip(expected, parts[start:], strict=False)), expected) == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_vector_has_unit_length(name: str, colbert: Callable[..., ColBERT]) -> None:
    model = colbert(name)

    queries = model.encode_queries(list(NONEMPTY.values())).values
    documents = model.encode_documents(list(TEXTS.values())).values

    torch.testing.assert_close(queries.norm(dim=1), torch.ones(len(queries)))
    torch.testing.assert_close(documents.norm(dim=1), torch.ones(len(documents)))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_document_keeps_rows_and_scores_finitely(
    name: str, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name)

    (rows,) = model.encode_documents([""])
    (score,) = model.score("mars", [""])

    assert len(rows) >= FEWEST.get(name, 2)
    assert abs(score) < 1000


def test_no_texts_give_no_vectors_and_no_scores(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("stanford-bert")

    assert len(model.encode_documents([])) == 0
    assert model.encode_documents([]).dim == 16
    assert model.score("mars", []) == []
