"""LangChain's indexing API over our indexes: its own suite, and documents that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_tests.integration_tests.indexer import (
    AsyncDocumentIndexTestSuite,
    DocumentIndexerTestSuite,
)
from pydantic import ValidationError
from qdrant_client import QdrantClient

from colbert_rag import LocalIndex, QdrantIndex
from colbert_rag.langchain import ColBERTIndex, ColBERTRetriever
from tests.helpers.rerankers import WordModel


@pytest.fixture(params=["path", "memory", "qdrant"])
def retriever(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ColBERTRetriever]:
    """One over an empty index."""
    model, client = WordModel(), QdrantClient(":memory:")
    if request.param == "path":
        LocalIndex(tmp_path / "handbook.sqlite", model).close()
        made: Any = tmp_path / "handbook.sqlite"
    elif request.param == "memory":
        made = LocalIndex(":memory:", model)
    else:
        made = QdrantIndex(client, "handbook", model)
    yield ColBERTRetriever(index=made, colbert=model, k=9)
    client.close()


@pytest.fixture
def handbook(retriever: ColBERTRetriever) -> ColBERTIndex:
    return ColBERTIndex(retriever=retriever)


class TestStandard(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, retriever: ColBERTRetriever) -> ColBERTIndex:
        return ColBERTIndex(retriever=retriever)


class TestStandardAsync(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, retriever: ColBERTRetriever) -> ColBERTIndex:
        return ColBERTIndex(retriever=retriever)


def pages(*texts: str) -> list[Document]:
    return [Document(text, metadata={"source": text.split()[0]}) for text in texts]


@pytest.fixture
def keep() -> dict[str, Any]:
    """How the index is kept equal to its sources."""
    return {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}


@pytest.fixture
def records() -> InMemoryRecordManager:
    manager = InMemoryRecordManager(namespace="handbook")
    manager.create_schema()
    return manager


def test_documents_that_vanished_leave_and_the_rest_is_not_encoded_again(
    handbook: ColBERTIndex, records: InMemoryRecordManager, keep: dict[str, Any]
) -> None:
    model = handbook.retriever.colbert
    first = index(pages("mars is red", "venus is hot"), records, handbook, **keep)
    model.encoded.clear()

    second = index(pages("mars is red", "saturn has rings"), records, handbook, **keep)

    assert (first["num_added"], first["num_deleted"]) == (2, 0)
    assert (second["num_added"], second["num_skipped"], second["num_deleted"]) == (1, 1, 1)
    assert model.encoded == ["saturn has rings"]
    assert {found.page_content for found in handbook.invoke("planet")} == {
        "mars is red",
        "saturn has rings",
    }


async def test_the_same_asynchronously(
    handbook: ColBERTIndex, records: InMemoryRecordManager, keep: dict[str, Any]
) -> None:
    await aindex(pages("mars is red", "venus is hot"), records, handbook, **keep)
    await aindex(pages("mars is red"), records, handbook, **keep)

    assert [found.page_content for found in await handbook.ainvoke("planet")] == ["mars is red"]


def test_a_changed_source_replaces_its_old_documents(
    handbook: ColBERTIndex, records: InMemoryRecordManager, keep: dict[str, Any]
) -> None:
    keep["cleanup"] = "incremental"
    index(pages("mars is red", "venus is hot"), records, handbook, **keep)

    index(pages("mars is cold"), records, handbook, **keep)

    assert sorted(found.page_content for found in handbook.invoke("planet")) == [
        "mars is cold",
        "venus is hot",
    ]


async def test_it_searches_as_its_retriever_does(handbook: ColBERTIndex) -> None:
    handbook.upsert([Document("mars", id="m", metadata={"n": 1}), Document("venus", id="v")])

    assert handbook.invoke("mars") == handbook.retriever.invoke("mars")
    assert [found.id for found in handbook.invoke("mars", k=1)] == ["m"]
    assert [found.id for found in await handbook.ainvoke("venus", filter={"n": 1})] == ["m"]


def test_what_is_got_is_what_was_given(retriever: ColBERTRetriever) -> None:
    titled = ColBERTIndex(retriever=retriever.model_copy(update={"rank_fields": ("title",)}))
    book = Document("red planet", id="book", metadata={"title": "Mars"})

    titled.upsert([book])

    assert titled.get(["book", "nobody"]) == [book]


def test_an_unknown_argument_is_refused(handbook: ColBERTIndex) -> None:
    with pytest.raises(TypeError, match="batch"):
        handbook.upsert([], batch=3)
    with pytest.raises(TypeError, match="all"):
        handbook.delete(["a"], all=True)
    with pytest.raises(ValidationError, match="path"):
        ColBERTIndex(retriever=handbook.retriever, path="x")
