"""Metadata in front of the text: it is ranked, encoded and looked up, and never returned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from colbert_rag import ColBERT, LocalIndex
from colbert_rag.adapter import Reranking
from colbert_rag.cli.reading.document import SourceDocument
from colbert_rag.langchain import ColBERTRerank, ColBERTRetriever
from colbert_rag.llama_index import ColBERTRetriever as LlamaIndexRetriever
from tests.helpers.rerankers import LengthRanker, WordModel

BOOK = Document("red planet", id="book", metadata={"title": "Mars", "year": 2024, "by": None})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param((), "red planet", id="none"),
        pytest.param(("title",), "Mars red planet", id="one"),
        pytest.param(("year", "title"), "2024 Mars red planet", id="two in order"),
        pytest.param(("missing", "title"), "Mars red planet", id="a missing one"),
        pytest.param(("by", "title"), "Mars red planet", id="one that is None"),
    ],
)
def test_the_values_are_ranked_in_front_of_the_text(fields: tuple[str, ...], expected: str) -> None:
    ranker = LengthRanker()

    (found,) = ColBERTRerank(colbert=ranker, rank_fields=fields).compress_documents([BOOK], "q")

    assert ranker.asked == [[expected]]
    assert found.page_content == "red planet"
    assert {**found.metadata} == {**BOOK.metadata, "relevance_score": len(expected) / 4}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("", "text", id="empty"),
        pytest.param(["a", "b"], "a b text", id="list"),
        pytest.param(0, "0 text", id="zero"),
        pytest.param(False, "False text", id="false"),
    ],
)
def test_a_value_of_any_kind_becomes_text(value: Any, expected: str) -> None:
    ranker = LengthRanker()
    document = Document("text", metadata={"key": value})

    ColBERTRerank(colbert=ranker, rank_fields=["key"]).compress_documents([document], "q")

    assert ranker.asked == [[expected]]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_field_that_no_document_has_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reranker = ColBERTRerank(colbert=LengthRanker(), rank_fields=["titel", "year"])
    retriever = reranker.as_retriever(RunnableLambda(lambda _: [BOOK, Document("text")]))

    for _ in range(3):
        reranker.compress_documents([Document("text"), BOOK], "q")
        retriever.invoke("q")
    reranker.compress_documents([], "q")

    said = "rank_fields names 'titel', which is in the metadata of no document"
    assert warnings_of(caplog) == [f"{said}; did you mean title?"]
    assert reranker == ColBERTRerank(colbert=reranker.colbert, rank_fields=["titel", "year"])

    other = ColBERTRerank(colbert=LengthRanker(), rank_fields=["xyzzy"])
    other.compress_documents([BOOK], "q")
    assert warnings_of(caplog)[1].endswith("; the last one has 'title', 'year', 'by'")


def test_a_field_that_no_stored_document_has_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"index": tmp_path / "x.sqlite", "colbert": WordModel()}

    ColBERTRetriever.from_documents([BOOK], rank_fields=["title", "year"], **options)
    assert warnings_of(caplog) == []

    retriever = ColBERTRetriever.from_documents([BOOK], rank_fields=["titel"], **options)
    retriever.add_documents([BOOK])
    assert len(warnings_of(caplog)) == 1


def test_the_joined_text_is_that_of_the_command_line() -> None:
    ranker = LengthRanker()

    ColBERTRerank(colbert=ranker, rank_fields=["title"]).compress_documents([BOOK], "q")

    read = SourceDocument("books.jsonl", 1, BOOK.page_content, title=BOOK.metadata["title"])
    assert ranker.asked == [[read.content]]


@pytest.mark.parametrize("blank", ["", " \n"])
def test_metadata_alone_is_no_text(blank: str) -> None:
    documents = [Document(blank, metadata={"title": "Mars"}), Document("a", metadata={})]
    ranker = LengthRanker()

    *_, last = ColBERTRerank(colbert=ranker, rank_fields=["title"]).compress_documents(
        documents, "q"
    )

    assert ranker.asked == [["a"]]
    assert (last.page_content, last.metadata["relevance_score"]) == (blank, -1.0)


def test_equal_texts_under_two_titles_are_two() -> None:
    documents = [Document("text", metadata={"title": title}) for title in ("a", "b", "a")]
    rerank = ColBERTRerank(colbert=LengthRanker(), rank_fields=["title"], dedupe=True)

    found = rerank.compress_documents(documents, "q")

    assert [document.metadata["title"] for document in found] == ["a", "b"]


def test_content_that_is_no_string_is_named_by_its_index() -> None:
    odd = Document.model_construct(page_content=b"bytes", metadata={"title": "a"}, id=None)

    with pytest.raises(TypeError, match="the text of 0 is bytes, expected a string"):
        ColBERTRerank(colbert=LengthRanker(), rank_fields=["title"]).compress_documents([odd], "q")


def test_an_explanation_is_of_the_joined_text(tiny_colbert: ColBERT) -> None:
    rerank = ColBERTRerank(colbert=tiny_colbert, rank_fields=["title"], explain=True)

    (found,) = rerank.compress_documents([BOOK], "mars")

    assert found.metadata["colbert_explanation"]["text"] == "Mars red planet"


def test_behind_a_retriever_the_fields_are_ranked_too() -> None:
    from langchain_core.runnables import RunnableLambda

    ranker = LengthRanker()
    rerank = ColBERTRerank(colbert=ranker, rank_fields=["title"])

    rerank.as_retriever(RunnableLambda(lambda query: [BOOK])).invoke("q")

    assert ranker.asked == [["Mars red planet"]]


def test_one_name_that_is_no_list_is_refused() -> None:
    with pytest.raises(ValidationError, match="rank_fields"):
        ColBERTRerank(rank_fields="title")


# Retrieving


def test_the_fields_are_encoded_and_do_not_come_back(tmp_path: Path) -> None:
    model = WordModel()
    retriever = ColBERTRetriever.from_documents(
        [BOOK, Document("no title", id="plain")],
        path=tmp_path / "books.sqlite",
        colbert=model,
        rank_fields=["title", "year"],
    )

    found = {document.id: document for document in retriever.invoke("Mars 2024")}

    assert model.encoded == ["Mars 2024 red planet", "no title"]
    for document in found.values():
        del document.metadata["relevance_score"]
    assert found == {"book": BOOK, "plain": Document("no title", id="plain")}


def test_a_document_without_an_id_keeps_it_when_the_fields_change(tmp_path: Path) -> None:
    options: dict[str, Any] = {"path": tmp_path / "books.sqlite", "colbert": WordModel()}
    bare = Document("red planet", metadata={"title": "Mars"})

    ColBERTRetriever.from_documents([bare], **options)
    again = ColBERTRetriever.from_documents([bare], rank_fields=["title"], **options)

    assert len(again.invoke("planet")) == 1
    assert again.invoke("planet")[0].page_content == "red planet"


def test_other_readers_of_the_index_see_what_was_given(tmp_path: Path) -> None:
    model = WordModel()
    ColBERTRetriever.from_documents(
        [BOOK], path=tmp_path / "books.sqlite", colbert=model, rank_fields=["title"]
    )

    (plain,) = ColBERTRetriever(index=tmp_path / "books.sqlite", colbert=model).invoke("mars")
    (found,) = LlamaIndexRetriever(tmp_path / "books.sqlite", colbert=model).retrieve("mars")

    assert plain.page_content == found.node.get_content() == "red planet"
    assert found.node.metadata == BOOK.metadata
    assert {*plain.metadata} == {*BOOK.metadata, "relevance_score"}


def test_a_reranker_finds_the_vectors_of_the_joined_text(tmp_path: Path) -> None:
    model = WordModel()
    path = tmp_path / "books.sqlite"
    ColBERTRetriever.from_documents([BOOK], path=path, colbert=model, rank_fields=["title"])
    model.encoded.clear()
    rerank = ColBERTRerank(colbert=model, index=path, rank_fields=["title"])

    rerank.compress_documents([BOOK], "mars")
    known = list(model.encoded)
    Reranking(colbert=model, index=path)._rerank("mars", ["red planet"], [None])

    assert known == []
    assert model.encoded == ["red planet"]


def test_a_document_that_changes_its_title_is_encoded_again(tmp_path: Path) -> None:
    model = WordModel()
    retriever = ColBERTRetriever.from_documents(
        [BOOK], path=tmp_path / "books.sqlite", colbert=model, rank_fields=["title"]
    )

    retriever.add_documents([Document("red planet", id="book", metadata={"title": "Ares"})])

    assert model.encoded == ["Mars red planet", "Ares red planet"]
    with LocalIndex(tmp_path / "books.sqlite") as index:
        assert [document.text for document in index] == ["Ares red planet"]


@pytest.mark.parametrize("key", ["_text_start", "_llama_index_node", "_llama_index_source"])
def test_metadata_under_a_key_of_ours_is_refused(key: str, tmp_path: Path) -> None:
    odd = Document("text", id="odd", metadata={key: 3})

    with pytest.raises(ValueError, match=f"metadata of document 'odd' uses the key '{key}'"):
        ColBERTRetriever.from_documents([odd], path=tmp_path / "books.sqlite", colbert=WordModel())


def test_the_fields_are_stored_with_the_component() -> None:
    rerank = ColBERTRerank(rank_fields=["title", "year"])

    restored = ColBERTRerank.model_validate_json(rerank.model_dump_json())

    assert restored.rank_fields == ("title", "year")
    assert json.loads(rerank.model_dump_json())["rank_fields"] == ["title", "year"]
