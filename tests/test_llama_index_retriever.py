"""The LlamaIndex retriever: nodes in, the same nodes out, wherever LlamaIndex retrieves."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from pydantic import Field
from qdrant_client import QdrantClient

from colbert_rag import (
    ColBERT,
    IndexMismatchError,
    InvalidQueryError,
    LocalIndex,
    QdrantIndex,
    clear_cache,
)
from colbert_rag.errors import InvalidFilterError
from colbert_rag.index import Index
from colbert_rag.langchain import ColBERTRetriever as LangChainRetriever
from colbert_rag.llama_index import ColBERTRerank, ColBERTRetriever
from colbert_rag.llama_index.filters import to_filter
from colbert_rag.llama_index.nodes import to_node

MONEY = "How do I get my money back?"


class Chapter(TextNode):
    """A user's own kind of node."""

    number: int = 0

    @classmethod
    def class_name(cls) -> str:
        return "Chapter"


def nodes() -> list[BaseNode]:
    return [
        TextNode(
            text="Refunds are paid within 14 days.",
            id_="refunds",
            metadata={"year": 2024, "tags": ["money", "eu"], "place": {"page": 3}},
            excluded_embed_metadata_keys=["year", "tags", "place"],
            excluded_llm_metadata_keys=["tags"],
            relationships={
                NodeRelationship.SOURCE: RelatedNodeInfo(node_id="handbook", metadata={"a": 1}),
                NodeRelationship.CHILD: [RelatedNodeInfo(node_id="part")],
            },
            start_char_idx=7,
            metadata_separator=" | ",
        ),
        Document(text="To reset your password, open Settings.", id_="password"),
        Chapter(text="We ship to every country in Europe.", id_="shipping", number=4),
        IndexNode(text="Our support answers from nine to five.", id_="support", index_id="team"),
        ImageNode(text="A cat asleep.", id_="cat", image_url="https://example.org/cat.png"),
        Node(id_="empty", excluded_embed_metadata_keys=["year"], metadata={"year": 1999}),
    ]


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
    return ColBERTRetriever.from_defaults(nodes(), index=index, colbert=minilm, similarity_top_k=9)


@pytest.fixture
def in_file(minilm: ColBERT, tmp_path: Path) -> ColBERTRetriever:
    return ColBERTRetriever.from_defaults(nodes(), path=tmp_path / "kept.sqlite", colbert=minilm)


def ids(found: Sequence[NodeWithScore]) -> list[str]:
    return [at.node.node_id for at in found]


# What comes back


def test_every_node_comes_back_as_it_was_stored(retriever: ColBERTRetriever) -> None:
    found = {at.node.node_id: at.node for at in retriever.retrieve(MONEY)}

    stored = nodes()[:-1]  # the last has no words, and no search finds it
    assert found == {node.node_id: node for node in stored}
    assert [type(found[node.node_id]) for node in stored] == [type(node) for node in stored]
    assert [found[node.node_id].get_content(mode) for node in stored for mode in MetadataMode] == [
        node.get_content(mode) for node in stored for mode in MetadataMode
    ]


def test_a_node_without_words_is_kept_and_not_found(
    retriever: ColBERTRetriever, index: Index
) -> None:
    assert "empty" not in ids(retriever.retrieve(MONEY))

    (document,) = index.get(["empty"])

    assert to_node(document) == nodes()[-1]


def test_the_nodes_of_a_splitter_come_back_with_their_neighbours(
    index: Index, minilm: ColBERT
) -> None:
    text = " ".join(f"Sentence number {number} says little." for number in range(30))
    chunks = SentenceSplitter(chunk_size=60, chunk_overlap=0)([Document(text=text)])

    retriever = ColBERTRetriever.from_defaults(
        chunks, index=index, colbert=minilm, similarity_top_k=len(chunks)
    )

    found = {at.node.node_id: at.node for at in retriever.retrieve("number 7")}
    assert found == {chunk.node_id: chunk for chunk in chunks}
    assert found[chunks[1].node_id].prev_node == chunks[1].prev_node


def test_the_best_come_first_with_their_mean_similarity(
    retriever: ColBERTRetriever, minilm: ColBERT
) -> None:
    found = retriever.retrieve(MONEY)

    ranking = minilm.rank(MONEY, [node.get_content(MetadataMode.EMBED) for node in nodes()[:-1]])
    assert ids(found) == [nodes()[place.index].node_id for place in ranking]
    assert [at.score for at in found] == pytest.approx(
        [place.score / ranking.query_rows for place in ranking], abs=1e-3
    )
    assert {type(at.score) for at in found} == {float}


def test_the_sum_can_be_had_instead(index: Index, minilm: ColBERT) -> None:
    retriever = ColBERTRetriever.from_defaults(nodes(), index=index, colbert=minilm, score="sum")

    (best, *_) = retriever.retrieve(MONEY)

    (expected,) = minilm.score(MONEY, [best.node.get_content(MetadataMode.EMBED)])
    assert best.score == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(MetadataMode.EMBED, "seen: s\n\ntext"), (MetadataMode.NONE, "text")],
)
def test_the_metadata_mode_chooses_what_is_encoded(
    index: Index, minilm: ColBERT, mode: MetadataMode, expected: str
) -> None:
    node = TextNode(text="text", metadata={"seen": "s"})

    retriever = ColBERTRetriever.from_defaults(
        [node], index=index, colbert=minilm, metadata_mode=mode
    )

    assert [document.text for document in index] == [expected]
    assert retriever.retrieve("text")[0].node == node


def test_inputs_stay_as_they_are(index: Index, minilm: ColBERT) -> None:
    given = nodes()

    ColBERTRetriever.from_defaults(given, index=index, colbert=minilm).retrieve(MONEY)

    assert given == nodes()


def test_an_embedding_is_not_kept(index: Index, minilm: ColBERT) -> None:
    node = TextNode(text="mars", embedding=[0.5] * 8)

    retriever = ColBERTRetriever.from_defaults([node], index=index, colbert=minilm)

    assert retriever.retrieve("mars")[0].node.embedding is None
    assert node.embedding == [0.5] * 8


def test_documents_of_other_tools_come_back_as_text_nodes(index: Index, minilm: ColBERT) -> None:
    index.add([{"id": "m", "text": "mars", "metadata": {"n": 1, "in": [{"a": 2}]}}])

    (found,) = ColBERTRetriever(index, colbert=minilm).retrieve("mars")

    assert found.node == TextNode(id_="m", text="mars", metadata={"n": 1, "in": [{"a": 2}]})


def test_a_class_that_is_not_imported_is_named(retriever: ColBERTRetriever, index: Index) -> None:
    (document,) = index.get(["shipping"])
    renamed = json.loads(json.dumps(document.metadata).replace("Chapter", "Section"))
    index.update([{"id": "shipping", "text": document.text, "metadata": renamed}])

    with pytest.raises(ValueError, match=r"is a tests\..*Section, .*: import the module"):
        retriever.retrieve("parcels to Europe")


def test_metadata_that_is_not_json_is_named(index: Index, minilm: ColBERT) -> None:
    node = TextNode(text="mars", metadata={"when": {1}})

    with pytest.raises(TypeError, match="'when' is a set; store a JSON value"):
        ColBERTRetriever.from_defaults([node], index=index, colbert=minilm)


@pytest.mark.parametrize("key", ["_llama_index_node", "_llama_index_source", "_text_start"])
def test_our_own_keys_are_refused(key: str, index: Index, minilm: ColBERT) -> None:
    node = TextNode(text="mars", metadata={key: "mine"})

    with pytest.raises(ValueError, match=f"uses the key '{key}': rename it"):
        ColBERTRetriever.from_defaults([node], index=index, colbert=minilm)


def test_what_is_no_node_is_refused(retriever: ColBERTRetriever) -> None:
    with pytest.raises(TypeError, match="found NodeWithScore, expected a node"):
        retriever.insert_nodes([NodeWithScore(node=TextNode(text="a"))])  # type: ignore[list-item]


# Arguments


def test_similarity_top_k_limits_the_results(retriever: ColBERTRetriever) -> None:
    retriever.similarity_top_k = 2

    assert len(retriever.retrieve(MONEY)) == 2
    assert ColBERTRetriever("index.sqlite").similarity_top_k == 2


@pytest.mark.parametrize("top_k", [0, -1])
def test_similarity_top_k_below_one_is_refused(retriever: ColBERTRetriever, top_k: int) -> None:
    message = rf"similarity_top_k is {top_k}, expected at least 1; give index\.count\(\) to get all"
    with pytest.raises(ValueError, match=message):
        retriever.similarity_top_k = top_k


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(TypeError, match=r"top_n is not .* did you mean similarity_top_k"):
        ColBERTRetriever("index.sqlite", top_n=3)
    with pytest.raises(TypeError, match=r"modle is not .* did you mean model"):
        ColBERTRetriever("index.sqlite", modle="x")


@pytest.mark.parametrize("query", ["", " \n"])
def test_a_query_without_words_is_refused(retriever: ColBERTRetriever, query: str) -> None:
    with pytest.raises(InvalidQueryError):
        retriever.retrieve(query)


def test_a_missing_query_is_refused(retriever: ColBERTRetriever) -> None:
    with pytest.raises(InvalidQueryError, match="query is NoneType, expected a string"):
        retriever.retrieve(QueryBundle(None))


# Filters

ARTICLES = [
    {"year": 2019, "topic": "law", "tags": ["eu", "tax"]},
    {"year": 2021, "topic": "tax", "tags": ["us"]},
    {"year": 2023, "topic": "art", "tags": []},
    {"topic": "law"},
]


def one(key: str, operator: str, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def both(*parts: Any, condition: str | None = "and") -> MetadataFilters:
    named = None if condition is None else FilterCondition(condition)
    return MetadataFilters(filters=list(parts), condition=named)


NEW, LAW = one("year", ">", 2020), one("topic", "==", "law")


@pytest.fixture(params=["local", "qdrant"])
def articles(request: pytest.FixtureRequest, minilm: ColBERT) -> Iterator[ColBERTRetriever]:
    client = QdrantClient(":memory:")
    index = LocalIndex(":memory:", minilm)
    if request.param == "qdrant":
        index = QdrantIndex(client, "articles", minilm)
    given = [
        TextNode(text=f"article {at}", id_=str(at), metadata=metadata)
        for at, metadata in enumerate(ARTICLES)
    ]
    yield ColBERTRetriever.from_defaults(given, index=index, colbert=minilm, similarity_top_k=9)
    client.close()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param(both(one("year", "==", 2021)), "1", id="equal"),
        pytest.param(both(one("year", "!=", 2021)), "023", id="not equal"),
        pytest.param(both(one("year", ">", 2021)), "2", id="greater"),
        pytest.param(both(one("year", ">=", 2021)), "12", id="at least"),
        pytest.param(both(one("year", "<", 2021)), "0", id="less"),
        pytest.param(both(one("year", "<=", 2021)), "01", id="at most"),
        pytest.param(both(one("topic", "in", ["tax", "art"])), "12", id="in"),
        pytest.param(both(one("topic", "nin", ["tax", "art"])), "03", id="not in"),
        pytest.param(both(one("tags", "any", ["us", "tax"])), "01", id="any"),
        pytest.param(both(one("tags", "all", ["eu", "tax"])), "0", id="all"),
        pytest.param(both(one("tags", "contains", "us")), "1", id="contains"),
        pytest.param(both(one("tags", "is_empty", None)), "23", id="is empty"),
        pytest.param(both(NEW, LAW), "", id="and"),
        pytest.param(both(NEW, LAW, condition=None), "", id="and, unsaid"),
        pytest.param(both(NEW, LAW, condition="or"), "0123", id="or"),
        pytest.param(both(one("year", ">", 2022), LAW, condition="not"), "1", id="none of them"),
        pytest.param(
            both(LAW, both(one("year", "<", 2020), NEW, condition="or")), "0", id="nested"
        ),
        pytest.param(
            both(both(both(LAW), condition="not"), both(one("tags", "is_empty", None))),
            "2",
            id="nested twice",
        ),
        pytest.param(both(), "0123", id="no condition"),
        pytest.param(None, "0123", id="no filter"),
    ],
)
def test_filters_choose_among_nodes(
    articles: ColBERTRetriever, filters: MetadataFilters | None, expected: str
) -> None:
    articles.filters = filters

    assert sorted(ids(articles.retrieve("article"))) == list(expected)


def test_a_filter_that_is_changed_in_place_is_followed(articles: ColBERTRetriever) -> None:
    articles.filters = both(LAW)
    articles.filters.filters.append(one("year", "<", 2020))

    assert ids(articles.retrieve("article")) == ["0"]


@pytest.mark.parametrize("operator", ["text_match", "text_match_insensitive"])
def test_an_operator_without_a_counterpart_is_refused_at_once(operator: str) -> None:
    filters = both(one("topic", operator, "la"))

    with pytest.raises(InvalidFilterError, match=f"'topic' has the operator '{operator}', expec"):
        ColBERTRetriever("index.sqlite", filters=filters)


def test_every_other_operator_has_a_counterpart() -> None:
    values: dict[FilterOperator, Any] = {
        FilterOperator.IN: [1],
        FilterOperator.NIN: [1],
        FilterOperator.ANY: [1],
        FilterOperator.ALL: [1],
    }
    searching = {FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE}

    translated = {
        operator: to_filter(both(one("key", operator, values.get(operator, 1))))
        for operator in set(FilterOperator) - searching
    }

    assert None not in translated.values()


@pytest.mark.parametrize(
    ("filters", "advice"),
    [
        pytest.param(both(one("year", "==", [1, 2])), r"use \$in", id="a list for a value"),
        pytest.param(both(one("year", "in", 3)), "expected a list", id="a value for a list"),
        pytest.param(both(one("year", ">", "x")), "expected a number or a moment", id="order"),
        pytest.param(both(one("tags", "all", [])), "all of no values", id="nothing"),
        pytest.param(both(LAW, both()), "inside another one is empty", id="empty inside"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(filters: MetadataFilters, advice: str) -> None:
    with pytest.raises(InvalidFilterError, match=advice):
        to_filter(filters)


# Adding, deleting, keeping


def test_nodes_can_be_added_and_deleted(retriever: ColBERTRetriever) -> None:
    added = retriever.insert_nodes(iter([TextNode(text="Dogs bark.", id_="dogs")]))

    assert added == ["dogs"]
    assert "dogs" in ids(retriever.retrieve("dogs"))
    assert retriever.delete_nodes(["dogs", "nobody"]) == 1
    assert "dogs" not in ids(retriever.retrieve("dogs"))


def test_a_known_id_is_replaced(retriever: ColBERTRetriever, index: Index) -> None:
    retriever.insert_nodes([TextNode(text="Cats wake at night.", id_="cat")])

    (cat,) = [at.node for at in retriever.retrieve("cats") if at.node.node_id == "cat"]
    assert cat.get_content() == "Cats wake at night."
    assert index.count() == len(nodes())


def test_the_nodes_of_a_document_are_deleted_by_its_id(
    retriever: ColBERTRetriever, index: Index
) -> None:
    text = " ".join(f"Sentence number {number} says little." for number in range(12))
    split = SentenceSplitter(chunk_size=60, chunk_overlap=0)
    one, two = (split([Document(text=text + name, id_=name)]) for name in ("one", "two"))
    retriever.insert_nodes([*one, *two])

    removed = retriever.delete_ref_doc("one")

    assert removed == len(one) > 1
    assert {document.id for document in index} == {node.node_id for node in [*nodes(), *two]}
    assert retriever.delete_ref_doc("one") == retriever.delete_ref_doc("nobody") == 0
    assert retriever.delete_ref_doc("handbook") == 1
    assert "refunds" not in ids(retriever.retrieve(MONEY))


def test_a_document_without_an_id_is_refused(retriever: ColBERTRetriever) -> None:
    with pytest.raises(InvalidFilterError, match="_llama_index_source"):
        retriever.delete_ref_doc(["handbook"])  # type: ignore[arg-type]


def test_an_empty_filter_removes_nothing(retriever: ColBERTRetriever, index: Index) -> None:
    with pytest.raises(ValueError, match="would delete every document"):
        retriever._retrieving.remove(filter={})

    assert index.count() == len(nodes())


def test_a_document_can_be_deleted_from_a_file_without_its_model(
    in_file: ColBERTRetriever, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("colbert_rag.text_encoder.host", None)

    assert ColBERTRetriever(tmp_path / "kept.sqlite").delete_ref_doc("handbook") == 1


def test_the_id_of_a_nodes_document_is_not_shown(retriever: ColBERTRetriever) -> None:
    found = {at.node.node_id: at.node for at in retriever.retrieve(MONEY)}

    assert found["refunds"].ref_doc_id == "handbook"
    assert {*found["refunds"].metadata} == {"year", "tags", "place"}


def test_without_an_index_nodes_are_kept_in_memory(minilm: ColBERT) -> None:
    retriever = ColBERTRetriever.from_defaults(colbert=minilm)

    assert retriever.retrieve(MONEY) == []
    retriever.insert_nodes(nodes())
    assert ids(retriever.retrieve(MONEY))[0] == "refunds"


def test_persisted_nodes_come_back_with_filter_and_options(
    retriever: ColBERTRetriever, minilm: ColBERT, tmp_path: Path
) -> None:
    retriever.filters = both(one("year", ">", 2000))
    retriever.similarity_top_k = 5

    retriever.persist(tmp_path / "a" / "b")
    opened = ColBERTRetriever.from_persist_dir(tmp_path / "a" / "b", colbert=minilm)

    assert opened.similarity_top_k == 5
    assert opened.filters == retriever.filters
    expected, found = retriever.retrieve(MONEY), opened.retrieve(MONEY)
    assert [at.node for at in found] == [at.node for at in expected]
    assert [at.score for at in found] == pytest.approx([at.score for at in expected], abs=1e-3)


def test_what_is_persisted_opens_by_itself_and_can_be_changed(
    retriever: ColBERTRetriever, tmp_path: Path
) -> None:
    retriever.persist(tmp_path / "kept")

    opened = ColBERTRetriever.from_persist_dir(tmp_path / "kept", similarity_top_k=1, device="cpu")

    assert ids(opened.retrieve(MONEY)) == ["refunds"]
    clear_cache()


def test_how_thoroughly_is_passed_on_and_persisted(
    index: Index, minilm: ColBERT, tmp_path: Path
) -> None:
    retriever = ColBERTRetriever.from_defaults([TextNode(text=MONEY)], index=index, colbert=minilm)
    assert (retriever._retrieving.exact, retriever._retrieving.effort) == (None, None)
    with pytest.raises(ValueError, match="leave one of them out"):
        ColBERTRetriever(index, exact=True, effort=2)

    ColBERTRetriever(index, exact=False, effort=2, colbert=minilm).persist(tmp_path)

    again = ColBERTRetriever.from_persist_dir(tmp_path, colbert=minilm)
    assert (again._retrieving.exact, again._retrieving.effort) == (False, 2)
    assert [node.text for node in again.retrieve(MONEY)] == [MONEY]


def test_persisting_again_encodes_nothing_and_drops_what_is_gone(
    retriever: ColBERTRetriever, minilm: ColBERT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever.persist(tmp_path / "kept")
    retriever.delete_nodes(["cat"])
    retriever.insert_nodes([TextNode(text="Dogs bark.", id_="dogs")])
    monkeypatch.setattr("colbert_rag.text_encoder.TextEncoder.documents", None)

    retriever.persist(tmp_path / "kept")

    opened = ColBERTRetriever.from_persist_dir(tmp_path / "kept", colbert=minilm)
    assert sorted(ids(opened.retrieve(MONEY))) == sorted(ids(retriever.retrieve(MONEY)))


def test_an_index_that_is_there_already_is_left_alone(minilm: ColBERT, tmp_path: Path) -> None:
    retriever = ColBERTRetriever.from_defaults(
        nodes(), path=tmp_path / "colbert.sqlite", colbert=minilm
    )
    retriever.persist(tmp_path)

    opened = ColBERTRetriever.from_persist_dir(tmp_path, colbert=minilm)

    assert ids(opened.retrieve(MONEY)) == ids(retriever.retrieve(MONEY))


def test_the_index_of_another_model_is_not_overwritten(
    retriever: ColBERTRetriever, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    with LocalIndex(tmp_path / "colbert.sqlite", tiny_colbert) as other:
        other.add(["mars"])

    with pytest.raises(IndexMismatchError):
        retriever.persist(tmp_path)

    with LocalIndex(tmp_path / "colbert.sqlite") as other:
        assert other.count() == 1


def test_an_empty_folder_holds_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no colbert\.sqlite in"):
        ColBERTRetriever.from_persist_dir(tmp_path)


def test_from_defaults_opens_a_file_that_exists(in_file: ColBERTRetriever, tmp_path: Path) -> None:
    again = ColBERTRetriever.from_defaults(path=tmp_path / "kept.sqlite")

    assert again._retrieving.model == "offline-minilm"
    assert again.delete_nodes(["cat"]) == 1


# Copies


def test_a_pickle_is_small_and_opens_the_same_file(in_file: ColBERTRetriever) -> None:
    pickled = pickle.dumps(in_file)

    assert len(pickled) < 10_000
    assert pickle.loads(pickled).retrieve(MONEY) == in_file.retrieve(MONEY)


def test_a_deep_copy_shares_model_and_index(retriever: ColBERTRetriever, minilm: ColBERT) -> None:
    copied = copy.deepcopy(retriever)

    assert copied._retrieving.ranker is minilm
    assert copied._retrieving.index is retriever._retrieving.index
    assert copied.retrieve(MONEY) == retriever.retrieve(MONEY)


def test_warm_up_and_unload_reach_the_model(tiny_checkpoint: Path) -> None:
    model = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="float32")
    retriever = ColBERTRetriever.from_defaults([TextNode(text="mars")], colbert=model)

    retriever.unload()
    assert not model.loaded
    retriever.load()
    assert model.loaded


# In LlamaIndex's places


def test_in_a_query_engine_with_a_reranker(retriever: ColBERTRetriever, minilm: ColBERT) -> None:
    engine = RetrieverQueryEngine.from_args(
        retriever,
        llm=MockLLM(),
        node_postprocessors=[ColBERTRerank(colbert=minilm, top_n=2)],
    )

    response = engine.query(MONEY)

    assert ids(response.source_nodes)[0] == "refunds"
    assert len(response.source_nodes) == 2
    assert "Refunds are paid within 14 days." in str(response)


async def test_in_an_async_query_engine(retriever: ColBERTRetriever) -> None:
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())

    response = await engine.aquery(MONEY)

    assert ids(response.source_nodes) == ids(retriever.retrieve(MONEY))


def test_in_a_fusion_of_retrievers(retriever: ColBERTRetriever, minilm: ColBERT) -> None:
    other = ColBERTRetriever.from_defaults([TextNode(text="Receipts", id_="r")], colbert=minilm)
    fusion = QueryFusionRetriever(
        [retriever, other], llm=MockLLM(), num_queries=1, use_async=False, similarity_top_k=9
    )

    assert {"refunds", "r"} <= set(ids(fusion.retrieve(MONEY)))


def test_an_index_node_leads_to_its_object(index: Index, minilm: ColBERT) -> None:
    team = TextNode(text="Ada, Grace, Barbara", id_="team")
    pointing = IndexNode(text="Who works in support?", index_id="support", obj=team)

    retriever = ColBERTRetriever.from_defaults([pointing], index=index, colbert=minilm)
    again = ColBERTRetriever(index, colbert=minilm, objects=[pointing])

    assert ids(retriever.retrieve("support team")) == ["team"]
    assert ids(again.retrieve("support team")) == ["team"]


class Events(BaseEventHandler):
    """Keeps the ends of retrievals."""

    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **options: Any) -> None:
        if isinstance(event, RetrievalEndEvent):
            self.seen.append(event)


async def test_handlers_see_each_retrieval(retriever: ColBERTRetriever) -> None:
    root, handler = get_dispatcher(), Events()
    root.add_event_handler(handler)

    found = [retriever.retrieve(MONEY), await retriever.aretrieve(MONEY)]
    root.event_handlers.remove(handler)

    assert [event.nodes for event in handler.seen] == found


async def test_an_async_call_leaves_the_event_loop_free(
    retriever: ColBERTRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    index = retriever._retrieving.index
    search = type(index).search_embeddings

    def slow(self: Index, *arguments: Any, **how: Any) -> Any:
        threads.append(threading.current_thread())
        time.sleep(0.2)
        return search(self, *arguments, **how)

    monkeypatch.setattr(type(index), "search_embeddings", slow)
    running = asyncio.create_task(retriever.aretrieve(MONEY))
    ticks = 0
    while not running.done():
        await asyncio.sleep(0.01)
        ticks += 1

    assert ticks > 3
    assert threading.main_thread() not in threads


def test_many_threads_get_the_answers_of_one(retriever: ColBERTRetriever) -> None:
    queries = [MONEY, "password", "parcel to Spain", "opening hours"] * 4
    expected = [ids(retriever.retrieve(query)) for query in queries]

    with ThreadPoolExecutor(8) as threads:
        assert [ids(found) for found in threads.map(retriever.retrieve, queries)] == expected


def test_an_index_that_langchain_made_can_be_searched(minilm: ColBERT, tmp_path: Path) -> None:
    LangChainRetriever.from_texts(["mars"], [{"n": 1}], path=tmp_path / "i.sqlite", colbert=minilm)

    (found,) = ColBERTRetriever(tmp_path / "i.sqlite", colbert=minilm).retrieve("mars")

    assert (found.node.get_content(), found.node.metadata) == ("mars", {"n": 1})
