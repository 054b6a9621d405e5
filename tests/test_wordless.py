"""A text without words never outranks one with words: for rank, score, explain and search."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from langchain_core.documents import Document

from colbert_rag import ColBERT, LocalIndex, QdrantIndex
from colbert_rag.index.base import Index
from colbert_rag.inputs import has_words
from colbert_rag.langchain import ColBERTRerank
from tests.helpers.oracle import naive_maxsim

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


@pytest.mark.parametrize("name", ["stanford-bert", "pylate-modernbert", "jina", "flagembedding"])
@pytest.mark.parametrize("query", QUERIES)
def test_texts_without_words_rank_last(
    name: str, query: str, colbert: Callable[..., ColBERT]
) -> None:
    texts = [*WORDLESS, *WORDS, *WORDLESS]
    model = colbert(name)

    ranking = model.rank(query, texts)

    scores = model.score(query, texts)
    for part in (ranking[: len(WORDS)], ranking[len(WORDS) :]):
        assert [place.score for place in part] == sorted(
            (scores[place.index] for place in part), reverse=True
        )
    assert {place.text for place in ranking[: len(WORDS)]} == set(WORDS)
    # A score is the reference's all the same.
    vectors = model.encode_documents(["..."])[0]
    expected = naive_maxsim(model.encode_queries([query])[0], vectors)
    assert scores[texts.index("...")] == pytest.approx(expected, abs=1e-4)
    assert model.explain(query, "...").score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("score", ["mean", "sum"])
def test_a_component_gives_them_the_lowest_score(score: str, tiny_colbert: ColBERT) -> None:
    reranker = ColBERTRerank(colbert=tiny_colbert, top_n=None, score=score)

    found = reranker.compress_documents(
        [Document(text) for text in (*WORDLESS, *WORDS)], "which planet has rings?"
    )

    rows = len(tiny_colbert.encode_queries(["which planet has rings?"])[0])
    lowest = -1.0 if score == "mean" else -rows
    assert {document.page_content for document in found[: len(WORDS)]} == set(WORDS)
    assert [document.metadata["relevance_score"] for document in found[len(WORDS) :]] == [
        lowest
    ] * len(WORDLESS)


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
