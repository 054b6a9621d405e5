"""Components whose model is a server: same scores, errors and metadata as with a local one."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import ConfigurableField
from langchain_core.tracers.context import collect_runs
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import SecretStr, ValidationError

from colbert_rag import (
    ColBERT,
    IndexMismatchError,
    InvalidQueryError,
    LocalIndex,
    RemoteColBERT,
)
from colbert_rag.adapter import Reranking
from colbert_rag.errors import ServerAccessError, ServerUnreachableError
from colbert_rag.langchain import ColBERTRerank, ColBERTRetriever
from colbert_rag.llama_index import ColBERTRerank as Postprocessor
from tests.helpers.pages import run_page
from tests.helpers.serving import Running, serving

QUERY = "which planet is red?"
TEXTS = [
    "Saturn has rings of ice and rock.",
    "Mars is red, and has two moons.",
    "",
    "A planet is not a star; the red one is Mars.",
    "Mars is red, and has two moons.",
    "!!!",
]
EXACT = 1e-4
KEY = "open sesame"


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, "-m", tiny_checkpoint, env={"COLBERT_RAG_API_KEY": KEY}) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLBERT_RAG_API_KEY", KEY)


OPTIONS = [
    {},
    {"score": "sum"},
    {"top_n": None},
    {"top_n": 1},
    {"dedupe": True, "top_n": None},
    {"score_threshold": 0.9, "top_n": None},
    {"explain": True, "top_n": 2},
    {"explain": True, "top_n": None, "score": "sum"},
]


def documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    return [
        Document(text, id=str(place), metadata={"place": place}) for place, text in enumerate(texts)
    ]


def nodes(texts: Sequence[str] = TEXTS) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(place), metadata={"n": place}), score=0.5)
        for place, text in enumerate(texts)
    ]


def plain(found: Any) -> Any:
    """Everything about a result as plain values."""
    return json.loads(json.dumps([one.model_dump(mode="json") for one in found]))


def check_same(found: Any, expected: Any) -> None:
    assert_close(plain(found), plain(expected))


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Equal, but for the last digits of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_close(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            assert_close(found[place], value, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=EXACT), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("texts", [TEXTS, ["", "!"]], ids=["texts", "no words"])
def test_langchain_gets_the_same(
    server: Running, tiny_colbert: ColBERT, options: dict, texts: list[str]
) -> None:
    expected = ColBERTRerank(colbert=tiny_colbert, **options).compress_documents(
        documents(texts), QUERY
    )
    rerank = ColBERTRerank(model=server.url, **options)
    given = documents(texts)

    check_same(rerank.compress_documents(given, QUERY), expected)
    check_same(asyncio.run(rerank.acompress_documents(given, QUERY)), expected)
    assert given == documents(texts)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("texts", [TEXTS, ["", "!"]], ids=["texts", "no words"])
def test_llama_index_gets_the_same(
    server: Running, tiny_colbert: ColBERT, options: dict, texts: list[str]
) -> None:
    local = Postprocessor(colbert=tiny_colbert, keep_retrieval_score=True, **options)
    expected = local.postprocess_nodes(nodes(texts), query_str=QUERY)
    rerank = Postprocessor(model=server.url, keep_retrieval_score=True, **options)

    check_same(rerank.postprocess_nodes(nodes(texts), query_str=QUERY), expected)
    found = asyncio.run(rerank.apostprocess_nodes(nodes(texts), query_str=QUERY))
    check_same(found, expected)


@pytest.mark.parametrize("explain", [False, True])
def test_batches_are_the_same(server: Running, tiny_colbert: ColBERT, explain: bool) -> None:
    inputs = [
        {"documents": documents(), "query": QUERY},
        {"documents": documents(["", ""]), "query": QUERY},
        {"documents": documents(TEXTS[:2]), "question": "rings"},
        (documents(TEXTS[3:]), "stars"),
        {"documents": [], "query": QUERY},
    ]
    options = {"explain": explain, "score": "sum"}
    expected = ColBERTRerank(colbert=tiny_colbert, **options).as_runnable().batch(inputs)
    step = ColBERTRerank(model=server.url, **options).as_runnable()

    for found in (step.batch(inputs), asyncio.run(step.abatch(inputs))):
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)


def test_a_wrong_input_of_a_batch_is_its_own_error(server: Running) -> None:
    step = ColBERTRerank(model=server.url).as_runnable()
    inputs = [{"documents": documents(), "query": " "}, {"documents": documents(), "query": QUERY}]

    for found in (
        step.batch(inputs, return_exceptions=True),
        asyncio.run(step.abatch(inputs, return_exceptions=True)),
    ):
        assert isinstance(found[0], InvalidQueryError)
        assert len(found[1]) == 3


def test_what_a_server_refuses_is_the_error_of_all() -> None:
    step = ColBERTRerank(model="http://127.0.0.1:9", timeout=2).as_runnable()
    inputs = [{"documents": documents(), "query": QUERY}] * 2

    with pytest.raises(ServerUnreachableError):
        step.batch(inputs)
    with pytest.raises(ServerUnreachableError):
        asyncio.run(step.abatch(inputs))


@pytest.mark.parametrize(("query", "error"), [(" ", InvalidQueryError), (3, InvalidQueryError)])
def test_errors_are_those_of_a_local_model(
    server: Running, tiny_colbert: ColBERT, query: Any, error: type
) -> None:
    local, remote = ColBERTRerank(colbert=tiny_colbert), ColBERTRerank(model=server.url)
    with pytest.raises(error) as expected:
        local.compress_documents(documents(), query)
    with pytest.raises(error, match=str(expected.value)):
        remote.compress_documents(documents(), query)
    with pytest.raises(error, match=str(expected.value)):
        asyncio.run(remote.acompress_documents(documents(), query))


def test_llama_index_errors_are_those_of_a_local_model(server: Running) -> None:
    rerank = Postprocessor(model=server.url)
    for query in (None, QueryBundle(" ")):
        with pytest.raises(ValueError, match="query"):
            asyncio.run(rerank.apostprocess_nodes(nodes(), query))
    with pytest.raises(TypeError, match="node 0 is str"):
        asyncio.run(rerank.apostprocess_nodes(["text"], query_str=QUERY))
    assert asyncio.run(rerank.apostprocess_nodes([], query_str=QUERY)) == []


async def test_awaiting_takes_no_thread(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(asyncio, "to_thread", refused)
    monkeypatch.setattr(
        asyncio.get_running_loop(), "run_in_executor", lambda *_: pytest.fail("a thread")
    )
    rerank = ColBERTRerank(model=server.url)

    assert len(await rerank._arun({"documents": documents(), "query": QUERY})) == 3
    found = await Postprocessor(model=server.url).apostprocess_nodes(nodes(), query_str=QUERY)
    assert len(found) == 5


async def test_many_calls_share_one_event_loop(server: Running, tiny_colbert: ColBERT) -> None:
    rerank = ColBERTRerank(model=server.url)
    queries = [f"{number} moons" for number in range(25)]

    found = await asyncio.gather(
        *(rerank.acompress_documents(documents(), query) for query in queries)
    )

    local = ColBERTRerank(colbert=tiny_colbert)
    for query, one in zip(queries, found, strict=True):
        check_same(one, local.compress_documents(documents(), query))


def test_an_async_rerank_is_one_run_with_its_callers_as_parent(server: Running) -> None:
    step = ColBERTRerank(model=server.url).as_runnable()
    with collect_runs() as runs:
        asyncio.run(step.ainvoke({"documents": documents(), "query": QUERY}))

    (run,) = runs.traced_runs
    assert run.name == "ColBERTRerank"
    assert not run.error


def test_llama_index_tells_start_and_end(server: Running) -> None:
    told: list[str] = []

    class Handler(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            told.append(type(event).__name__)

    handler = Handler()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        asyncio.run(Postprocessor(model=server.url).apostprocess_nodes(nodes(), query_str=QUERY))
        with pytest.raises(ServerUnreachableError):
            asyncio.run(
                Postprocessor(model="http://127.0.0.1:9", timeout=1).apostprocess_nodes(
                    nodes(), query_str=QUERY
                )
            )
    finally:
        dispatcher.event_handlers.remove(handler)

    assert told == ["ReRankStartEvent", "ReRankEndEvent"] * 2


def test_in_a_chain_with_a_retriever(server: Running) -> None:
    base = InMemoryVectorStore.from_documents(
        documents(), DeterministicFakeEmbedding(size=8)
    ).as_retriever(search_kwargs={"k": 6})
    rerank = ColBERTRerank(model=server.url, top_n=2)

    found = rerank.as_retriever(base).invoke(QUERY)
    again = asyncio.run(rerank.as_retriever(base).ainvoke(QUERY))
    classic = ContextualCompressionRetriever(base_compressor=rerank, base_retriever=base)

    assert [one.page_content for one in found] == [one.page_content for one in again]
    assert [one.page_content for one in classic.invoke(QUERY)] == [
        one.page_content for one in found
    ]


# What the component is


def test_making_one_asks_nobody_and_loads_nothing() -> None:
    rerank = ColBERTRerank(model="http://127.0.0.1:9")

    rerank.load()
    rerank.unload()
    assert isinstance(rerank.ranker, RemoteColBERT)
    assert rerank.ranker is ColBERTRerank(model="http://127.0.0.1:9", top_n=7).ranker


@pytest.mark.parametrize(
    "field",
    [{"device": "cpu"}, {"dtype": "float32"}, {"query_length": 16}, {"long_documents": "windows"}],
    ids=str,
)
def test_what_the_server_decides_is_not_decided_here(field: dict) -> None:
    with pytest.raises(ValidationError, match="is the address of a server, which decides that"):
        ColBERTRerank(model="http://127.0.0.1:9", **field)


def test_a_wrong_address_is_refused_when_it_is_given() -> None:
    with pytest.raises(ValidationError, match="expected a host"):
        ColBERTRerank(model="http://?x")
    with pytest.raises(ValidationError, match="greater than 0"):
        ColBERTRerank(model="http://127.0.0.1:9", timeout=0)


@pytest.mark.parametrize("kind", [ColBERTRerank, Postprocessor, Reranking])
def test_a_key_is_neither_shown_nor_stored_nor_pickled(kind: type[Reranking]) -> None:
    rerank = kind(model="http://127.0.0.1:9", api_key="sesame")

    shown = repr(rerank) + str(rerank.model_dump()) + rerank.model_dump_json()
    pickled = pickle.dumps(rerank)
    restored = pickle.loads(pickled)

    assert "sesame" not in shown
    assert b"sesame" not in pickled
    assert restored.api_key is None
    assert restored.model == rerank.model
    assert copy.deepcopy(rerank).api_key == SecretStr("sesame")
    assert rerank.model_copy().api_key == SecretStr("sesame")
    assert rerank.api_key == SecretStr("sesame")  # pickling leaves the object as it was


def test_the_key_of_a_component_is_the_one_that_is_sent(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("COLBERT_RAG_API_KEY")
    with caplog.at_level(logging.DEBUG):
        assert ColBERTRerank(model=server.url, api_key=KEY).compress_documents(documents(), QUERY)
        with pytest.raises(ServerAccessError, match="no key was sent"):
            ColBERTRerank(model=server.url).compress_documents(documents(), QUERY)
        with pytest.raises(ServerAccessError, match="the key was refused"):
            ColBERTRerank(model=server.url, api_key="x").compress_documents(documents(), QUERY)

    assert KEY not in caplog.text


def test_copies_and_pickles_rank_the_same(server: Running) -> None:
    rerank = ColBERTRerank(model=server.url, top_n=2)
    expected = rerank.compress_documents(documents(), QUERY)

    for other in (
        copy.deepcopy(rerank),
        rerank.model_copy(),
        pickle.loads(pickle.dumps(rerank)),
        ColBERTRerank.model_validate_json(rerank.model_dump_json()),
    ):
        assert other.compress_documents(documents(), QUERY) == expected


def test_a_given_model_is_the_same_as_its_address(server: Running) -> None:
    model = RemoteColBERT(server.url, timeout=33)
    rerank = ColBERTRerank(colbert=model)

    assert rerank.ranker is model
    assert (rerank.model, rerank.timeout) == (server.url, 33)
    assert pickle.loads(pickle.dumps(rerank)).ranker.address == server.url
    restored = ColBERTRerank.model_validate_json(rerank.model_dump_json())
    assert isinstance(restored.ranker, RemoteColBERT)
    assert len(asyncio.run(rerank.acompress_documents(documents(), QUERY))) == 3


def test_the_model_can_be_configured_for_a_call(server: Running, tiny_checkpoint: Path) -> None:
    base = InMemoryVectorStore.from_documents(
        documents(), DeterministicFakeEmbedding(size=8)
    ).as_retriever(search_kwargs={"k": 6})
    retriever = (
        ColBERTRerank(model=str(tiny_checkpoint), top_n=6)
        .as_retriever(base)
        .configurable_fields(model=ConfigurableField(id="model"), top_n=ConfigurableField(id="n"))
    )

    local = retriever.invoke(QUERY)
    there = retriever.with_config(configurable={"model": server.url, "n": 6}).invoke(QUERY)
    fewer = retriever.with_config(configurable={"model": server.url, "n": 1}).invoke(QUERY)

    check_same(there, local)
    check_same(fewer, local[:1])


def test_with_vectors_of_an_index_that_is_here(
    server: Running, tiny_colbert: ColBERT, colbert: Callable[..., ColBERT], tmp_path: Path
) -> None:
    path = tmp_path / "facts.sqlite"
    uncached = colbert("stanford-bert", document_cache=None, query_length=16)
    with LocalIndex(path, tiny_colbert) as index:
        index.add([text for text in TEXTS if text])
    rerank = ColBERTRerank(model=server.url, index=path)
    retriever = ColBERTRetriever(model=server.url, index=path, k=2)
    expected = ColBERTRerank(colbert=tiny_colbert).compress_documents(documents(), QUERY)

    found = rerank.compress_documents(documents(), QUERY)
    again = asyncio.run(rerank.acompress_documents(documents(), QUERY))

    # Stored vectors are float16.
    assert [one.id for one in found] == [one.id for one in again] == [one.id for one in expected]
    check_same(
        retriever.invoke(QUERY),
        ColBERTRetriever(index=path, colbert=tiny_colbert, k=2).invoke(QUERY),
    )
    with LocalIndex(tmp_path / "other.sqlite", uncached) as index:
        index.add(["mars"])
    with pytest.raises(IndexMismatchError, match="was made by"):
        ColBERTRetriever(model=server.url, index=tmp_path / "other.sqlite").invoke(QUERY)


def test_the_page_about_servers_shows_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[1] / "docs" / "remote.md"
    with LocalIndex(tmp_path / "handbook.sqlite", ColBERT.from_pretrained("offline-minilm")):
        pass
    with serving(
        tmp_path, "-m", "offline-minilm", "--index", tmp_path / "handbook.sqlite"
    ) as there:
        text = page.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", there.url)
        copied = tmp_path / page.name
        copied.write_text(text, encoding="utf-8")
        run_page(copied, tmp_path, monkeypatch)


PROGRAM = """
import sys
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from colbert_rag import RemoteColBERT
from colbert_rag.langchain import ColBERTRerank, ColBERTRetriever
from colbert_rag.llama_index import ColBERTRerank as Postprocessor
address = sys.argv[1]
texts = ["bread", "mars is red"]
assert RemoteColBERT(address).rank("red planet", texts)[0].text
for options in ({}, {"explain": True}, {"score": "sum"}):
    rerank = ColBERTRerank(model=address, **options)
    assert len(rerank.compress_documents([Document(text) for text in texts], "red planet")) == 2
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    rerank = Postprocessor(model=address, **options)
    assert len(rerank.postprocess_nodes(nodes, query_str="red planet")) == 2
print(*sorted(sys.modules))
"""


def test_a_client_loads_no_torch(server: Running) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, server.url],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )

    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert "colbert_rag.remote.model" in loaded
    assert {"torch", "tokenizers", "safetensors", "transformers"} & loaded == set()
