"""An index behind a server, and retrievers over it: what is found is what a local one finds."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from pydantic import ValidationError

from colbert_rag import ColBERT, InvalidQueryError, LocalIndex, RemoteColBERT, RemoteIndex
from colbert_rag.errors import InvalidFilterError, ServerAccessError, ServerError
from colbert_rag.index import Changes, Document
from colbert_rag.langchain import ColBERTIndex, ColBERTRerank, ColBERTRetriever
from colbert_rag.llama_index import ColBERTRetriever as LlamaIndexRetriever
from tests.helpers.serving import Running, serving

QUERY = "which planet is red?"
FACTS = [
    {"id": "saturn", "text": "Saturn has rings of ice and rock.", "metadata": {"order": 6}},
    {"id": "mars", "text": "Mars is red, and has two moons.", "metadata": {"order": 4}},
    {"id": "a/b?c #d%2F", "text": "A red star is no planet.", "metadata": {"seen": "2024-05-01"}},
    {"id": "..", "text": "ümläuts and 火星", "metadata": {"deep": {"er": [1, None, "x"]}}},
]
EXACT = 1e-4


@pytest.fixture(scope="module")
def server(tiny_colbert: ColBERT, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    with LocalIndex(folder / "facts.sqlite", tiny_colbert) as index:
        index.add(FACTS)
    with serving(folder, "--index", folder / "facts.sqlite", "--max-documents", 40) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def local(tiny_colbert: ColBERT) -> LocalIndex:
    """An index of this process with the same documents."""
    index = LocalIndex(":memory:", tiny_colbert)
    index.add(FACTS)
    return index


@pytest.fixture
def remote(server: Running) -> Iterator[RemoteIndex]:
    """The server's index, which holds the facts again when the test is over."""
    index = RemoteIndex(server.url)
    yield index
    index.delete([document["id"] for document in FACTS])
    index.delete(filter={"test": True})
    index.add(FACTS)
    assert index.count() == len(FACTS)


def same(found: list, expected: list) -> bool:
    return [(hit.document, hit.query_rows) for hit in found] == [
        (hit.document, hit.query_rows) for hit in expected
    ] and [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=EXACT)


@pytest.mark.parametrize(
    ("top_k", "error", "message"),
    [
        (0, ValueError, "top_k is 0, expected at least 1; give index.count() to get all"),
        (-1, ValueError, "top_k is -1, expected at least 1; give index.count() to get all"),
        (None, TypeError, "top_k is None, expected a whole number; give index.count() to get all"),
    ],
)
def test_it_refuses_the_top_k_that_the_local_one_refuses(
    remote: RemoteIndex, top_k: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        remote.search(QUERY, top_k)


def test_of_no_documents_it_takes_a_top_k_of_zero(remote: RemoteIndex) -> None:
    remote.delete([document["id"] for document in FACTS])

    assert remote.search_many([QUERY, "mars"], remote.count()) == [[], []]
    assert asyncio.run(remote.asearch(QUERY, 0)) == []


@pytest.mark.parametrize("top_k", [1, 10])
@pytest.mark.parametrize(
    "filter",
    [
        None,
        {},
        {"order": {"$gte": 5}},
        {"order": {"$in": {4, 6}}},
        {"seen": {"$gte": date(2024, 1, 1)}},
        {"order": 99},
    ],
    ids=["none", "empty", "range", "set", "date", "nothing"],
)
def test_it_finds_what_the_local_one_finds(
    remote: RemoteIndex, local: LocalIndex, top_k: int, filter: dict | None
) -> None:
    expected = local.search(QUERY, top_k, filter)

    assert same(remote.search(QUERY, top_k, filter), expected)
    assert same(asyncio.run(remote.asearch(QUERY, top_k, filter)), expected)


def test_it_finds_for_many_queries_in_parts(remote: RemoteIndex, local: LocalIndex) -> None:
    queries = [f"{number} red moons" for number in range(30)]  # times 10 are more than the bound

    for found in (remote.search_many(queries), asyncio.run(remote.asearch_many(queries))):
        assert all(
            same(one, other) for one, other in zip(found, local.search_many(queries), strict=True)
        )
    assert remote.search_many([]) == []


def test_errors_are_those_of_the_local_one(remote: RemoteIndex, local: LocalIndex) -> None:
    for call in (
        lambda index: index.search(" "),
        lambda index: index.search(QUERY, -1),
        lambda index: index.search(QUERY, 1, {"$near": 3}),
        lambda index: index.search_many("one"),
        lambda index: index.add("one"),
        lambda index: index.add(None),
        lambda index: index.add([{"text": 3}]),
        lambda index: index.add(["x"], batch_size=0),
        lambda index: index.delete(),
        lambda index: index.delete("one"),
        lambda index: index.delete(filter={}),
    ):
        with pytest.raises((TypeError, ValueError)) as expected:
            call(local)
        with pytest.raises(type(expected.value)) as found:
            call(remote)
        assert str(found.value) == str(expected.value)


def test_documents_come_back_as_they_were_stored(remote: RemoteIndex, local: LocalIndex) -> None:
    ids = [fact["id"] for fact in FACTS][::-1]

    assert remote.get(ids) == local.get(ids)
    with pytest.raises(KeyError, match="holds no document with id 'venus'"):
        remote.get(["mars", "venus"])


def test_it_stores_and_removes_as_the_local_one(remote: RemoteIndex, local: LocalIndex) -> None:
    new = [{"text": f"rock {number}", "metadata": {"test": True}} for number in range(100)]
    for documents in (FACTS, new, [{**FACTS[0], "text": "another"}], [Document("mars", "x")]):
        assert remote.add(documents) == local.add(documents)
    assert remote.count() == local.count() == 104
    assert remote.delete(["mars", "venus"]) == local.delete(["mars", "venus"]) == 1
    assert remote.delete(filter={"test": True}) == local.delete(filter={"test": True}) == 100
    assert remote.delete([]) == 0
    assert remote.add([]) == Changes()


def test_it_says_who_made_it_and_how_much_it_holds(remote: RemoteIndex, local: LocalIndex) -> None:
    assert remote.info == local.info
    assert remote.stats().documents == remote.count() == 4
    assert remote.stats().tokens == local.stats().tokens


@pytest.mark.parametrize("name", ["embeddings_for", "sync", "encoded", "search_embeddings"])
def test_what_works_on_vectors_is_said_to_be_elsewhere(remote: RemoteIndex, name: str) -> None:
    assert not hasattr(remote, name)
    with pytest.raises(AttributeError, match=f"{name} works on its vectors: call it on the index"):
        getattr(remote, name)
    with pytest.raises(AttributeError, match="object has no attribute 'serach'"):
        remote.serach  # noqa: B018


def test_it_pickles_without_its_key_and_copies_as_itself(server: Running) -> None:
    index = RemoteIndex(server.url, api_key="open sesame")

    pickled = pickle.dumps(index)

    assert b"sesame" not in pickled
    assert pickle.loads(pickled).count() == index.count()
    assert copy.copy(index) is copy.deepcopy(index) is index
    with index as opened:
        assert opened is index
    assert index.count()  # closing it closes nothing of others


def test_a_server_without_an_index_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "-m", tiny_checkpoint) as running:
        index = RemoteIndex(running.url)
        for call in (index.count, lambda: index.search(QUERY), lambda: index.get(["mars"])):
            with pytest.raises(ServerError, match="started with --index"):
                call()


def test_an_index_that_may_not_be_changed_says_so(tiny_colbert: ColBERT, tmp_path: Path) -> None:
    with LocalIndex(tmp_path / "facts.sqlite", tiny_colbert) as index:
        index.add(FACTS)
    options = ("--index", tmp_path / "facts.sqlite", "--read-only")
    with (
        serving(tmp_path, *options) as running,
        pytest.raises(ServerAccessError, match=r"does not allow POST .* only searches its index"),
    ):
        RemoteIndex(running.url).add(["mars"])


# Retrievers


def test_a_langchain_retriever_finds_the_same(
    remote: RemoteIndex, local: LocalIndex, tiny_colbert: ColBERT
) -> None:
    expected = ColBERTRetriever(index=local, colbert=tiny_colbert, k=3)
    for index in (remote, remote.name):
        retriever = ColBERTRetriever(index=index, k=3)

        for options in ({}, {"k": 1}, {"filter": {"order": 4}}):
            wanted = expected.invoke(QUERY, **options)
            for found in (
                retriever.invoke(QUERY, **options),
                asyncio.run(retriever.ainvoke(QUERY, **options)),
                pickle.loads(pickle.dumps(retriever)).invoke(QUERY, **options),
                copy.deepcopy(retriever).invoke(QUERY, **options),
            ):
                scores = [document.metadata.pop("relevance_score") for document in found]
                assert scores == pytest.approx(
                    [document.metadata["relevance_score"] for document in wanted], abs=EXACT
                )
                assert found == [
                    document.model_copy(
                        update={
                            "metadata": {
                                key: value
                                for key, value in document.metadata.items()
                                if key != "relevance_score"
                            }
                        }
                    )
                    for document in wanted
                ]


async def test_many_searches_wait_together(remote: RemoteIndex) -> None:
    retriever = ColBERTRetriever(index=remote.name, k=1)

    found = await retriever.abatch([f"{number} moons" for number in range(20)])

    assert [len(documents) for documents in found] == [1] * 20


def test_a_langchain_retriever_stores_and_removes(remote: RemoteIndex) -> None:
    retriever = ColBERTRetriever.open(remote.name, rank_fields=("title",))
    document = LangChainDocument("bread", id="loaf", metadata={"title": "Baking", "test": True})

    assert retriever.add_documents([document]) == ["loaf"]
    assert retriever.get(["loaf", "none"])[0].text == "Baking bread"
    (found,) = retriever.invoke("baking bread", k=1)
    assert (found.page_content, found.metadata["title"]) == ("bread", "Baking")
    assert ColBERTIndex(retriever=retriever).get(["loaf"])[0].page_content == "bread"
    assert retriever.delete(["loaf", "none"]) == 1
    made = ColBERTRetriever.from_texts(["cake"], [{"test": True}], index=remote.name)
    assert made.invoke("cake", k=1)[0].page_content == "cake"


def test_a_llama_index_retriever_finds_stores_and_removes(
    remote: RemoteIndex, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    nodes = [
        TextNode(
            text=text,
            id_=text,
            metadata={"test": True, "shelf": "kitchen", "page": page},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")},
        )
        for page, text in enumerate(["bread", "cake", "rolls"])
    ]
    only = MetadataFilters(filters=[MetadataFilter(key="shelf", value="kitchen")])
    retriever = LlamaIndexRetriever.from_defaults(
        nodes, index=remote.name, similarity_top_k=2, filters=only
    )
    expected = LlamaIndexRetriever.from_defaults(
        nodes, colbert=tiny_colbert, similarity_top_k=2, filters=only
    ).retrieve("bread")

    for found in (
        retriever.retrieve("bread"),
        asyncio.run(retriever.aretrieve("bread")),
        pickle.loads(pickle.dumps(retriever)).retrieve("bread"),
    ):
        assert [node.node for node in found] == [node.node for node in expected]
        assert [node.score for node in found] == pytest.approx(
            [node.score for node in expected], abs=EXACT
        )
    with pytest.raises(ValueError, match="cannot be copied from here"):
        retriever.persist(tmp_path)
    assert retriever.delete_nodes(["cake"]) == 1
    assert retriever.delete_ref_doc("book") == 2


async def test_errors_of_a_retriever_are_those_of_the_local_one(
    remote: RemoteIndex, local: LocalIndex, tiny_colbert: ColBERT
) -> None:
    expected = ColBERTRetriever(index=local, colbert=tiny_colbert)
    retriever = ColBERTRetriever(index=remote.name)
    for query, options, error in [
        (" ", {}, InvalidQueryError),
        (QUERY, {"k": 0}, ValueError),
        (QUERY, {"filter": {"$near": 1}}, InvalidFilterError),
    ]:
        with pytest.raises(error) as wanted:
            expected.invoke(query, **options)
        with pytest.raises(error) as found:
            retriever.invoke(query, **options)
        assert str(found.value) == str(wanted.value)
        with pytest.raises(error) as found:
            await retriever.ainvoke(query, **options)
        assert str(found.value) == str(wanted.value)


def test_a_retriever_takes_the_model_of_its_server() -> None:
    address = "http://127.0.0.1:1"
    retriever = ColBERTRetriever(index=address)

    assert retriever.model == address
    assert retriever._get_ls_params()["ls_vector_store_provider"] == "RemoteIndex"
    restored = ColBERTRetriever.model_validate_json(retriever.model_dump_json())
    assert (restored.index, restored.model) == (address, address)
    given = ColBERTRetriever(index=f"{address}/v1", colbert=RemoteColBERT(address))
    assert given.is_remote
    for model in ({"model": "some/checkpoint"}, {"colbert": RemoteColBERT("http://127.0.0.1:2")}):
        with pytest.raises(ValidationError, match="encodes with its own model: leave model out"):
            ColBERTRetriever(index=address, **model)
    with pytest.raises(ValidationError, match="query_length is 16, but model is the address"):
        ColBERTRetriever(index=address, query_length=16)


def test_a_reranker_does_not_take_vectors_from_a_server() -> None:
    with pytest.raises(ValidationError, match="its vectors stay there: leave index out"):
        ColBERTRerank(index="http://127.0.0.1:1")


async def test_a_call_says_for_itself_how_thoroughly(
    server: Running, local: LocalIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for name in ("search_many", "asearch_many"):
        search = getattr(RemoteIndex, name)

        def noted(self: RemoteIndex, *arguments, search=search, **how) -> object:
            asked.append((how["exact"], how["effort"]))
            return search(self, *arguments, **how)

        monkeypatch.setattr(RemoteIndex, name, noted)
    retriever = ColBERTRetriever(index=server.url, k=1, exact=True)

    found = [
        retriever.invoke(QUERY, exact=False),
        await retriever.ainvoke(QUERY, effort=2),
        *retriever.batch([QUERY], effort=5),
        *await retriever.abatch([QUERY]),
    ]

    assert [documents[0].id for documents in found] == [local.search(QUERY, 1)[0].id] * 4
    assert asked == [(False, None), (None, 2), (None, 5), (True, None)]
    with pytest.raises(ValueError, match="effort is 9, expected 1 to 5"):
        await retriever.ainvoke(QUERY, effort=9)
