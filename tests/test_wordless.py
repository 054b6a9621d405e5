"""A text without words never outranks one with words: for rank, score, explain and search."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from colbert_rag import ColBERT, LocalIndex, QdrantIndex
from colbert_rag.index.base import Index
from colbert_rag.inputs import has_words

WORDLESS = ["", " \n\t", "...", "?!", "\u3000。、", "\x00\x1b", "— “”", string.punctuation]
WORDS = ["mars is red", "a", "1", "🚗", "火星", "c++", "5 €", "क"]
QUERIES = ["which planet has rings?", "sourdough bread", "how do I cancel an order"]


@pytest.mark.parametrize("text", WORDLESS)
def test_what_has_no_words(text: str) -> None:
    assert not has_words(text)


@pytest.mark.parametrize("text", WORDS)
def test_what_has_words(text: str) -> None:
    assert has_words(text)


def test_every_letter_and_digit_is_a_word() -> None:
    # Letters, marks and numbers of all scripts, by Unicode's own table.
    for code in range(0x30000):
        if unicodedata.category(chr(code))[0] in "LMN":
            assert has_words(chr(code))


@pytest.mark.parametrize("name", ["stanford-bert", "pylate-modernbert", "jina"])
@pytest.mark.parametrize("query", QUERIES)
def test_texts_without_words_rank_last(
    name: str, query: str, colbert: Callable[..., ColBERT]
) -> None:
    texts = [*WORDLESS, *WORDS, *WORDLESS]
    model = colbert(name)

    ranking = model.rank(query, texts)

    assert {place.text for place in ranking[: len(WORDS)]} == set(WORDS)
    # Of unit vectors nothing can be less similar than this.
    rows = len(model.encode_queries([query])[0])
    assert [place.score for place in ranking[len(WORDS) :]] == [-rows] * (2 * len(WORDLESS))
    assert model.score(query, texts)[0] == -rows
    assert model.explain(query, "...").score == -rows
    assert ranking.explain(len(texts) - 1).score == -rows


def test_they_are_not_encoded(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("stanford-bert")
    before = model.truncation_info().documents

    model.score("rings", ["", "..."])

    assert model.truncation_info().documents == before


def test_windows_without_words_lose(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("stanford-bert", long_documents="windows", document_length=16)
    text = "mars is a red planet. " + ". " * 200

    (place,) = model.rank("red planet", [text])

    assert place.span is not None
    assert "mars" in text[slice(*place.span)]


@pytest.mark.parametrize("kind", [LocalIndex, QdrantIndex])
def test_an_index_keeps_them_and_finds_them_never(
    kind: type[Index], tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    documents = [{"id": str(at), "text": text} for at, text in enumerate([*WORDLESS, *WORDS])]
    with opened(kind, path, tiny_colbert) as index:
        index.add(documents)
        index.add([{"id": "0", "text": "", "metadata": {"new": True}}])

        assert index.count() == len(documents)
        assert [document.text for document in index.get(["0", "2"])] == ["", "..."]
        assert [len(rows) for rows in index.embeddings(["0", "2"])] == [0, 0]
        for query in QUERIES:
            hits = index.search(query, len(documents))
            assert {hit.document.text for hit in hits} == set(WORDS)
        assert index.search("rings", 3, {"new": True}) == []
        texts = [document["text"] for document in documents]
        ranked = tiny_colbert.rank("rings", texts, known=index.embeddings_for)
        assert {place.text for place in ranked[: len(WORDS)]} == set(WORDS)
        assert sum(len(some) for some, _ in index.encoded(batch_size=3)) == len(documents)


def opened(kind: type[Index], path: Path, model: ColBERT) -> Index:
    if kind is LocalIndex:
        return LocalIndex(path, model)
    qdrant = pytest.importorskip("qdrant_client")
    return QdrantIndex(qdrant.QdrantClient(":memory:"), "texts", model)
