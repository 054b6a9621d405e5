"""The LangChain retriever: LangChain's own suite, and what that leaves out."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.tracers.context import collect_runs
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import ValidationError
from qdrant_client import QdrantClient

from colbert_rag import (
    ColBERT,
    IndexMismatchError,
    InvalidQueryError,
    LocalIndex,
    QdrantIndex,
    clear_cache,
    shared_colbert,
)
from colbert_rag.errors import IndexCorruptError, InvalidFilterError
from colbert_rag.index import Index
from colbert_rag.langchain import ColBERTRerank, ColBERTRetriever
from colbert_rag.llama_index import ColBERTRetriever as LlamaIndexRetriever
from tests.helpers.rerankers import LengthRanker, WordModel

DOCUMENTS = [
    Document("Refunds are paid within 14 days.", id="refunds", metadata={"page": 3, "to": ["eu"]}),
    Document("To reset your password, open Settings.", id="password", metadata={"page": 5}),
    Document("We ship to every country in Europe.", id="shipping", metadata={"page": 8, "x": {}}),
    Document("Our support answers from nine to five.", id="support", metadata={}),
]
MONEY = "How do I get my money back?"


@pytest.fixture(params=["memory", "file", "qdrant"])
def index(request: pytest.FixtureRequest, minilm: ColBERT, tmp_path: Path) -> Iterator[Index]:
    client = None
    if request.param == "qdrant":
        client = QdrantClient(":memory:")
        made: Index = QdrantIndex(client, "handbook", minilm)
    else:
        place = ":memory:" if request.param == "memory" else tmp_path / "handbook.sqlite"
        made = LocalIndex(place, minilm)
    yield made
    made.close()
    if client is not None:
        client.close()


@pytest.fixture
def retriever(index: Index, minilm: ColBERT) -> ColBERTRetriever:
    return ColBERTRetriever.from_documents(DOCUMENTS, index=index, colbert=minilm)


@pytest.fixture
def path(minilm: ColBERT, tmp_path: Path) -> Path:
    """An index in a file, closed."""
    ColBERTRetriever.from_documents(DOCUMENTS, path=tmp_path / "kept.sqlite", colbert=minilm)
    return tmp_path / "kept.sqlite"


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


# LangChain's own suite


class StandardTests(RetrieversIntegrationTests):
    made: dict[str, Any]

    @property
    def retriever_constructor(self) -> type[ColBERTRetriever]:
        return ColBERTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self.made

    @property
    def retriever_query_example(self) -> str:
        return MONEY


class TestLocalIndexStandard(StandardTests):
    @pytest.fixture(autouse=True)
    def _fill(self, path: Path, minilm: ColBERT) -> None:
        self.made = {"index": path, "colbert": minilm}


class TestQdrantIndexStandard(StandardTests):
    @pytest.fixture(autouse=True)
    def _fill(self, minilm: ColBERT) -> Iterator[None]:
        client = QdrantClient(":memory:")
        index = QdrantIndex(client, "handbook", minilm)
        self.made = {"index": index, "colbert": minilm}
        ColBERTRetriever(**self.made).add_documents(DOCUMENTS)
        yield
        client.close()


# What comes back


def test_the_best_come_first_with_their_mean_similarity(
    retriever: ColBERTRetriever, minilm: ColBERT
) -> None:
    found = retriever.invoke(MONEY)

    ranking = minilm.rank(MONEY, [document.page_content for document in DOCUMENTS])
    scores = [document.metadata["relevance_score"] for document in found]
    assert ids(found) == [DOCUMENTS[place.index].id for place in ranking]
    assert scores == pytest.approx([at.score / ranking.query_rows for at in ranking], abs=1e-3)
    assert {type(score) for score in scores} == {float}


def test_the_sum_can_be_had_instead(retriever: ColBERTRetriever, minilm: ColBERT) -> None:
    summed = retriever.model_copy(update={"score": "sum", "score_key": "colbert"})

    (found,) = summed.invoke(MONEY, k=1)

    (expected,) = minilm.score(MONEY, [DOCUMENTS[0].page_content])
    assert found.metadata["colbert"] == pytest.approx(expected, abs=1e-2)


def test_ids_and_metadata_come_back_as_they_were(retriever: ColBERTRetriever) -> None:
    found = {document.id: document for document in retriever.invoke(MONEY)}

    for document in found.values():
        document.metadata.pop("relevance_score")
    assert found == {document.id: document for document in DOCUMENTS}


def test_values_of_metadata_keep_their_types(index: Index, minilm: ColBERT) -> None:
    metadata = {"whole": 1, "real": 1.0, "yes": True, "no": None, "in": {"a": [1, "b", {"c": 2.5}]}}

    ColBERTRetriever.from_documents([Document("a", metadata=metadata)], index=index, colbert=minilm)

    (found,) = ColBERTRetriever(index=index, colbert=minilm).invoke("a")
    del found.metadata["relevance_score"]
    assert json.dumps(found.metadata) == json.dumps(metadata)


def test_inputs_stay_as_they_are(index: Index, minilm: ColBERT) -> None:
    documents = copy.deepcopy(DOCUMENTS)

    retriever = ColBERTRetriever.from_documents(documents, index=index, colbert=minilm)
    for found in retriever.invoke(MONEY):
        found.metadata["page"] = "spoiled"

    assert documents == DOCUMENTS
    assert "spoiled" not in [found.metadata.get("page") for found in retriever.invoke(MONEY)]


def test_results_survive_a_langgraph_checkpoint(retriever: ColBERTRetriever) -> None:
    serializer = JsonPlusSerializer()
    found = retriever.invoke(MONEY)

    assert serializer.loads_typed(serializer.dumps_typed(found)) == found


# Arguments of a call


async def test_k_and_filter_can_be_given_to_each_call(retriever: ColBERTRetriever) -> None:
    early = {"page": {"$lt": 6}}

    assert ids(retriever.invoke(MONEY, k=1)) == ids(await retriever.ainvoke(MONEY, k=1))
    assert sorted(ids(retriever.invoke(MONEY, filter=early))) == ["password", "refunds"]
    assert sorted(ids(await retriever.ainvoke(MONEY, filter=early))) == ["password", "refunds"]
    assert ids(await retriever.ainvoke(MONEY, k=1, filter={"page": 8})) == ["shipping"]


def test_a_call_goes_before_a_field(retriever: ColBERTRetriever) -> None:
    narrow = retriever.model_copy(update={"k": 1, "filter": {"page": 8}})

    assert ids(narrow.invoke(MONEY)) == ["shipping"]
    assert ids(narrow.invoke(MONEY, filter={"page": 5})) == ["password"]
    assert len(narrow.invoke(MONEY, k=4, filter={})) == 4


def test_arguments_can_be_bound(retriever: ColBERTRetriever) -> None:
    assert ids(retriever.bind(k=1, filter={"page": 5}).invoke(MONEY)) == ["password"]


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(retriever: ColBERTRetriever, k: int) -> None:
    message = rf"k is {k}, expected at least 1; give index\.count\(\) to get all"
    with pytest.raises(ValueError, match=message):
        retriever.invoke(MONEY, k=k)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        ColBERTRetriever(index=retriever.index, k=k)


def test_a_filter_outside_the_language_is_refused_at_once(retriever: ColBERTRetriever) -> None:
    with pytest.raises(InvalidFilterError, match=r"'page' has '\$near', expected one of \$eq"):
        retriever.invoke(MONEY, filter={"page": {"$near": 3}})
    with pytest.raises(ValidationError, match=r"'page' has '\$near', expected one of \$eq"):
        ColBERTRetriever(index=retriever.index, filter={"page": {"$near": 3}})


@pytest.mark.parametrize("query", ["", " \n"])
def test_a_query_without_words_is_refused(retriever: ColBERTRetriever, query: str) -> None:
    with pytest.raises(InvalidQueryError):
        retriever.invoke(query)


def test_a_misspelt_field_or_argument_is_refused(retriever: ColBERTRetriever) -> None:
    with pytest.raises(ValidationError, match="top_k"):
        ColBERTRetriever(index=retriever.index, top_k=3)
    with pytest.raises(TypeError, match="top_k"):
        retriever.invoke(MONEY, top_k=3)


async def test_an_async_call_leaves_the_event_loop_free(
    retriever: ColBERTRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    search = type(retriever.index).search_embeddings

    def slow(self: Index, *arguments: Any, **how: Any) -> Any:
        threads.append(threading.current_thread())
        time.sleep(0.2)
        return search(self, *arguments, **how)

    monkeypatch.setattr(type(retriever.index), "search_embeddings", slow)
    running = asyncio.create_task(retriever.ainvoke(MONEY))
    ticks = 0
    while not running.done():
        await asyncio.sleep(0.01)
        ticks += 1

    assert ticks > 3
    assert threading.main_thread() not in threads


def test_how_thoroughly_is_passed_on(retriever: ColBERTRetriever) -> None:
    asked = []
    index = retriever.index
    search = type(index).search_embeddings

    def noted(self: Index, *arguments: Any, **how: Any) -> Any:
        asked.append(how)
        return search(self, *arguments, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(index), "search_embeddings", noted)
        retriever.invoke(MONEY)
        retriever.model_copy(update={"exact": True}).invoke(MONEY)
        retriever.model_copy(update={"effort": 2}).invoke(MONEY)

    assert asked == [
        {"exact": None, "effort": None},
        {"exact": True, "effort": None},
        {"exact": None, "effort": 2},
    ]
    with pytest.raises(ValueError, match="leave one of them out"):
        ColBERTRetriever(index=index, exact=True, effort=2)


async def test_a_call_says_for_itself_how_thoroughly(retriever: ColBERTRetriever) -> None:
    asked = []
    index = retriever.index
    search = type(index).search_embeddings
    thorough = retriever.model_copy(update={"exact": True})

    def noted(self: Index, *arguments: Any, **how: Any) -> Any:
        asked.append((how["exact"], how["effort"]))
        return search(self, *arguments, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(index), "search_embeddings", noted)
        thorough.invoke(MONEY, effort=1)
        await thorough.ainvoke(MONEY, effort=2)
        thorough.batch([MONEY, "q"], exact=False)
        await retriever.abatch([MONEY, "q"], exact=True)
        thorough.invoke(MONEY, k=1)

    assert asked == [(None, 1), (None, 2), (False, None), (True, None), (True, None)]
    with pytest.raises(ValueError, match="effort is 9, expected 1 to 5"):
        retriever.invoke(MONEY, effort=9)
    with pytest.raises(ValueError, match="leave one of them out"):
        retriever.batch([MONEY], effort=1, exact=True)


# Making, adding, deleting, opening


def test_from_texts_takes_metadata_and_ids(index: Index, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever.from_texts(
        ["mars", "venus"], [{"n": 1}, {"n": 2}], ids=["m", "v"], index=index, colbert=minilm, k=1
    )

    (found,) = retriever.invoke("mars")

    assert (found.id, found.page_content, found.metadata["n"]) == ("m", "mars", 1)


def test_from_texts_needs_texts_only(minilm: ColBERT) -> None:
    retriever = ColBERTRetriever.from_texts(["mars", "venus"], colbert=minilm)

    assert [document.page_content for document in retriever.invoke("mars", k=1)] == ["mars"]


@pytest.mark.parametrize("metadatas", [[{}], [{}, {}, {}]])
def test_metadata_of_another_number_of_texts_is_refused(
    minilm: ColBERT, metadatas: list[dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match="argument 2 is"):
        ColBERTRetriever.from_texts(["mars", "venus"], metadatas, colbert=minilm)


def test_a_document_without_an_id_gets_one_from_text_and_metadata(
    index: Index, minilm: ColBERT
) -> None:
    blank = [Document("left blank", metadata={"page": page}) for page in (1, 2)]
    retriever = ColBERTRetriever(index=index, colbert=minilm)

    first = retriever.add_documents(blank)
    second = retriever.add_documents(blank)

    assert first == second
    assert len(set(first)) == index.count() == 2


def test_a_known_id_is_replaced(retriever: ColBERTRetriever) -> None:
    retriever.add_documents([Document("Cats sleep all day.", id="support")])

    (found,) = retriever.invoke("cats", k=1)

    assert (found.id, found.page_content) == ("support", "Cats sleep all day.")
    assert retriever.index.count() == len(DOCUMENTS)


def test_given_ids_go_before_those_of_the_documents(index: Index, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=index, colbert=minilm)

    assert retriever.add_documents(DOCUMENTS[:2], ids=["a", "b"]) == ["a", "b"]
    assert sorted(ids(retriever.invoke(MONEY))) == ["a", "b"]


def test_documents_may_come_from_a_generator(index: Index, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever.from_documents(iter(DOCUMENTS), index=index, colbert=minilm)

    assert index.count() == len(DOCUMENTS)
    assert retriever.add_documents(iter(DOCUMENTS)) == ids(DOCUMENTS)


def test_delete_says_how_many_there_were(retriever: ColBERTRetriever) -> None:
    assert retriever.delete(["refunds", "nobody"]) == 1
    assert "refunds" not in ids(retriever.invoke(MONEY))


def test_metadata_that_is_not_json_is_named(index: Index, minilm: ColBERT) -> None:
    odd = Document("a", metadata={"when": time})

    with pytest.raises(TypeError, match="'when' is a module; store a JSON value"):
        ColBERTRetriever.from_documents([odd], index=index, colbert=minilm)


def test_what_is_no_document_is_refused(retriever: ColBERTRetriever) -> None:
    with pytest.raises(TypeError, match="found str, expected"):
        retriever.add_documents(["text"])  # type: ignore[list-item]


def test_blank_pages_can_be_stored(index: Index, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever.from_documents(
        [*DOCUMENTS, Document("", id="blank")], index=index, colbert=minilm
    )

    assert "blank" not in ids(retriever.invoke(MONEY, k=9))
    assert [document.id for document in index.get(["blank"])] == ["blank"]


def test_open_finds_the_model_of_the_file(path: Path) -> None:
    retriever = ColBERTRetriever.open(path, dtype="float32", device="cpu", k=1)

    assert retriever.model == "offline-minilm"
    assert ids(retriever.invoke(MONEY)) == ["refunds"]
    assert retriever.ranker is shared_colbert("offline-minilm", dtype="float32", device="cpu")
    clear_cache()


def test_open_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index at .*; make one with from_documents"):
        ColBERTRetriever.open(tmp_path / "missing.sqlite")

    assert list(tmp_path.iterdir()) == []


def test_open_refuses_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an index, and long enough to be looked at " * 20)

    with pytest.raises(IndexCorruptError):
        ColBERTRetriever.open(tmp_path / "notes.txt")


def test_from_documents_adds_to_a_file_that_exists(path: Path, minilm: ColBERT) -> None:
    more = [*DOCUMENTS, Document("Cats sleep all day.", id="cats")]

    retriever = ColBERTRetriever.from_documents(more, path=path, colbert=minilm)

    assert ids(retriever.invoke("cats", k=1)) == ["cats"]
    with LocalIndex(path) as index:
        assert index.count() == 5


def test_an_index_must_be_named() -> None:
    with pytest.raises(
        ValidationError, match="index is None, expected the path of a file, the address of"
    ):
        ColBERTRetriever()


def test_an_index_in_memory_cannot_be_named() -> None:
    with pytest.raises(ValidationError, match="index is ':memory:'"):
        ColBERTRetriever(index=":memory:")


def test_a_file_that_is_gone_is_an_error(path: Path, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=path, colbert=minilm)
    path.unlink()

    with pytest.raises(FileNotFoundError, match="there is no index at"):
        retriever.invoke(MONEY)


def test_a_retriever_needs_an_encoder_with_vectors(path: Path) -> None:
    with pytest.raises(TypeError, match="colbert is LengthRanker, which ranks only"):
        ColBERTRetriever(index=path, colbert=LengthRanker()).invoke(MONEY)


def test_a_model_that_is_no_colbert_will_do(tmp_path: Path) -> None:
    model = WordModel()
    retriever = ColBERTRetriever.from_texts(
        ["red mars", "hot venus"], path=tmp_path / "words.sqlite", colbert=model, k=1
    )

    (found,) = retriever.invoke("red mars")

    assert found.page_content == "red mars"
    assert retriever.model == "tests/words"


def test_an_index_that_was_opened_without_a_model_can_be_searched(
    path: Path, minilm: ColBERT
) -> None:
    with LocalIndex(path) as index:
        found = ColBERTRetriever(index=index, colbert=minilm, k=1).invoke(MONEY)

    assert ids(found) == ["refunds"]


def test_constructing_a_retriever_loads_no_model(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("colbert_rag.text_encoder.host", None)

    assert ColBERTRetriever(index=path).model == "offline-minilm"
    assert ColBERTRetriever.open(path).delete(["nobody"]) == 0


# Configured, copied, stored


def test_fields_can_be_configured_per_call(retriever: ColBERTRetriever) -> None:
    flexible = retriever.configurable_fields(
        k=ConfigurableField("k"), filter=ConfigurableField("filter")
    )

    assert len(flexible.invoke(MONEY)) == 4
    assert len(flexible.invoke(MONEY, {"configurable": {"k": 2}})) == 2
    assert ids(flexible.invoke(MONEY, {"configurable": {"filter": {"page": 8}}})) == ["shipping"]


def test_configuring_fields_shares_model_and_open_file(path: Path, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=path, colbert=minilm)
    retriever.invoke(MONEY)
    flexible = retriever.configurable_fields(k=ConfigurableField("k"))

    configured, _ = flexible.prepare({"configurable": {"k": 2}})

    assert configured.ranker is minilm
    assert configured._open_index(minilm) is retriever._open_index(minilm)


def test_configuring_another_model_is_answered_by_that_model_or_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    exact = {"device": "cpu", "dtype": "float32"}
    paths = {name: tmp_path / name for name in ("stanford-bert", "stanford-electra")}
    for name, path in paths.items():
        ColBERTRetriever.from_texts(["mars", "venus"], path=path, model=checkpoint(name), **exact)
    retriever = ColBERTRetriever.open(paths["stanford-bert"], score="sum", **exact)
    flexible = retriever.configurable_fields(
        model=ConfigurableField("model"), index=ConfigurableField("index")
    )
    other = {"model": checkpoint("stanford-electra")}

    with pytest.raises(IndexMismatchError, match=r"being opened with .*stanford-electra"):
        flexible.invoke("mars", {"configurable": other})
    both = {"configurable": {**other, "index": paths["stanford-electra"]}}
    (best, *_) = flexible.invoke("mars", both)

    electra = ColBERT.from_pretrained(other["model"], **exact)
    assert best.metadata["relevance_score"] == pytest.approx(
        *electra.score("mars", [best.page_content]), abs=1e-2
    )
    clear_cache()


def test_a_deep_copy_shares_model_and_index(retriever: ColBERTRetriever, minilm: ColBERT) -> None:
    copied = copy.deepcopy(retriever)

    assert (copied.ranker, copied.index) == (minilm, retriever.index)
    assert copied.invoke(MONEY) == retriever.invoke(MONEY)


def test_a_pickle_is_small_and_opens_the_same_file(path: Path, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=path, colbert=minilm, k=2)
    before = retriever.invoke(MONEY)

    pickled = pickle.dumps(retriever)

    assert len(pickled) < 10_000
    assert pickle.loads(pickled).invoke(MONEY) == before
    assert retriever.invoke(MONEY) == before


def test_an_index_outside_a_file_cannot_be_pickled(minilm: ColBERT) -> None:
    retriever = ColBERTRetriever.from_texts(["mars"], colbert=minilm)

    with pytest.raises(TypeError, match=r"LocalIndex\(':memory:'.* cannot be pickled"):
        pickle.dumps(retriever)


def test_json_keeps_every_choice(path: Path, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=path, colbert=minilm, k=2, filter={"page": {"$gt": 3}})

    restored = ColBERTRetriever.model_validate_json(retriever.model_dump_json())

    assert restored.model_dump() == retriever.model_dump()
    assert restored.invoke(MONEY) == retriever.invoke(MONEY)
    clear_cache()


def test_every_field_is_described() -> None:
    inherited = {"name", "tags", "metadata"}
    properties = ColBERTRetriever.model_json_schema()["properties"]

    assert [
        name
        for name, schema in properties.items()
        if not schema.get("description") and name not in inherited
    ] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_opens_the_file_for_itself(path: Path, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=path, colbert=minilm)
    open_here = retriever._open_index(minilm)
    reader, writer = os.pipe()

    child = os.fork()
    if child == 0:
        try:  # without the model: its threads did not come along
            opened = retriever._open_index(minilm)
            os.write(writer, f"{opened is open_here} {opened.count()}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    said = os.read(reader, 100)
    os.close(reader)

    assert said == b"False 4"
    assert open_here.count() == 4


# In LangChain's places


def test_in_an_lcel_chain(retriever: ColBERTRetriever) -> None:
    chain = (
        {"context": retriever, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("{context} {question}")
        | FakeListChatModel(responses=["an answer"])
        | StrOutputParser()
    )

    assert chain.invoke(MONEY) == "an answer"


async def test_in_an_ensemble(retriever: ColBERTRetriever) -> None:
    other = ColBERTRetriever.from_texts(["Refunds need a receipt."], colbert=retriever.colbert)
    ensemble = EnsembleRetriever(retrievers=[retriever, other], weights=[0.5, 0.5])

    found = ensemble.invoke(MONEY)

    assert {found[0].page_content, found[1].page_content} == {
        "Refunds are paid within 14 days.",
        "Refunds need a receipt.",
    }
    assert ids(await ensemble.ainvoke(MONEY)) == ids(found)


def test_as_the_base_of_a_reranker_with_its_index_as_memory(path: Path, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=path, colbert=minilm)
    rerank = ColBERTRerank(index=path, colbert=minilm, top_n=1)

    (found,) = rerank.as_retriever(retriever).invoke(MONEY, k=3)

    assert found.id == "refunds"
    assert found.metadata["relevance_score"] == pytest.approx(
        retriever.invoke(MONEY, k=1)[0].metadata["relevance_score"], abs=1e-3
    )


def test_as_a_tool(retriever: ColBERTRetriever) -> None:
    tool = create_retriever_tool(retriever, "search_handbook", "Search the handbook.")

    assert "Refunds are paid" in tool.invoke({"query": MONEY})


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each search was for."""
    counts: list[int] = []
    search = Index.search_embeddings

    def watched(self: Index, queries: Any, *rest: Any, **options: Any) -> Any:
        counts.append(len(queries))
        return search(self, queries, *rest, **options)

    monkeypatch.setattr(Index, "search_embeddings", watched)
    return counts


async def test_a_batch_is_one_search_and_a_run_for_each_query(
    retriever: ColBERTRetriever, searches: list[int]
) -> None:
    queries = [MONEY, "password", "parcel to Spain"]
    alone = [retriever.invoke(query, k=2) for query in queries]
    configs: Any = [{"run_name": query, "tags": ["t"]} for query in queries]
    del searches[:]

    with collect_runs() as runs:
        together = retriever.batch(queries, configs, k=2)
        later = await retriever.abatch(queries, k=2)

    assert searches == [3, 3]
    for found in (together, later):
        assert [ids(documents) for documents in found] == [ids(documents) for documents in alone]
        assert [
            document.metadata["relevance_score"] for documents in found for document in documents
        ] == pytest.approx(
            [document.metadata["relevance_score"] for documents in alone for document in documents],
            abs=1e-5,
        )
    named = [run for run in runs.traced_runs if "t" in (run.tags or [])]
    assert {run.name: run.inputs["query"] for run in named} == {name: name for name in queries}
    assert {run.run_type for run in runs.traced_runs} == {"retriever"}


def test_an_error_of_one_query_is_not_that_of_the_batch(
    retriever: ColBERTRetriever, searches: list[int]
) -> None:
    with collect_runs() as runs:
        found, blank = retriever.batch([MONEY, " "], return_exceptions=True)

    assert ids(found)[0] == "refunds"
    assert isinstance(blank, InvalidQueryError)
    assert searches == [1]
    assert sorted(run.error is None for run in runs.traced_runs) == [False, True]
    with pytest.raises(ValueError, match="k is 0"):
        retriever.batch([MONEY, "password"], k=0)


def test_results_of_a_batch_share_no_metadata(retriever: ColBERTRetriever) -> None:
    first, second = retriever.batch([MONEY, MONEY])
    first[0].metadata["to"].append("us")

    assert second[0].metadata["to"] == ["eu"]


async def test_in_batches_and_threads(retriever: ColBERTRetriever) -> None:
    queries = [MONEY, "password", "parcel to Spain", "opening hours"] * 4
    expected = [ids(retriever.invoke(query)) for query in queries]

    assert [ids(found) for found in retriever.batch(queries)] == expected
    assert [ids(found) for found in await retriever.abatch(queries)] == expected
    with ThreadPoolExecutor(8) as threads:
        assert [ids(found) for found in threads.map(retriever.invoke, queries)] == expected


def test_writing_and_searching_at_once_lose_nothing(path: Path, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever(index=path, colbert=minilm, k=100)

    def add(number: int) -> None:
        retriever.add_documents([Document(f"note {number}", id=f"note {number}")])
        assert f"note {number}" in ids(retriever.invoke("note"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(12)))

    assert len(retriever.invoke("note")) == len(DOCUMENTS) + 12


def test_a_trace_names_store_and_model(retriever: ColBERTRetriever) -> None:
    with collect_runs() as collected:
        retriever.invoke(MONEY)

    (run,) = collected.traced_runs
    assert run.metadata["ls_retriever_name"] == "colbert"
    assert run.metadata["ls_embedding_provider"] == "colbert"
    assert run.metadata["ls_embedding_model"] == "offline-minilm"
    assert run.metadata["ls_vector_store_provider"] == type(retriever.index).__name__


def test_an_index_that_llama_index_made_can_be_searched(path: Path, minilm: ColBERT) -> None:
    from llama_index.core.schema import TextNode

    node = TextNode(text="Cats sleep all day.", id_="cats", metadata={"page": 9})
    LlamaIndexRetriever.from_defaults([node], path=path, colbert=minilm)

    (found,) = ColBERTRetriever(index=path, colbert=minilm).invoke("cats", k=1)

    assert found.id == "cats"
    assert {*found.metadata} == {"page", "relevance_score"}
