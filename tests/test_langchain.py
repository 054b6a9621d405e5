"""The LangChain adapter: in every place where LangChain calls a reranker."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import tool
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.context import collect_runs
from langchain_core.tracers.schemas import Run
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from colbert_rag import ColBERT, InvalidQueryError, clear_cache
from colbert_rag.errors import ScoringError
from colbert_rag.langchain import ColBERTRerank
from tests.helpers.rerankers import LengthRanker, RerankerSuite

TEXTS = ["bb", "dddd", "a", "ccc"]


class Chapter(Document):
    """A user's own kind of document."""

    number: int = 0


class TestBehaviour(RerankerSuite):
    def reranker(self, **options: Any) -> ColBERTRerank:
        return ColBERTRerank(**options)

    def items(self, texts: Sequence[Any], ids: Sequence[str] | None = None) -> list[Document]:
        return [
            Document(text or "", id=ids and ids[place], metadata={"place": place})
            for place, text in enumerate(texts)
        ]

    def run(self, reranker: Any, items: list[Document], query: str) -> list[Document]:
        return reranker.compress_documents(items, query)

    def read(self, item: Document) -> tuple[str, float]:
        return item.page_content, item.metadata["relevance_score"]


class TestBehaviourAsync(TestBehaviour):
    """The same rows again, through the executor."""

    def run(self, reranker: Any, items: list[Document], query: str) -> list[Document]:
        import asyncio

        return asyncio.run(reranker.acompress_documents(items, query))


@pytest.fixture
def rerank() -> ColBERTRerank:
    return ColBERTRerank(colbert=LengthRanker(), top_n=2, score="sum")


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text, id=text, metadata={"source": f"{text}.txt"}) for text in TEXTS]


@pytest.fixture
def store(documents: list[Document]) -> InMemoryVectorStore:
    return InMemoryVectorStore.from_documents(documents, DeterministicFakeEmbedding(size=8))


@pytest.fixture
def base(store: InMemoryVectorStore) -> BaseRetriever:
    return store.as_retriever(search_kwargs={"k": 10})


def contents(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


# What comes back


def test_results_keep_id_class_and_metadata(rerank: ColBERTRerank) -> None:
    chapter = Chapter("text", id="7", number=3, metadata={"source": "book"})

    (result,) = rerank.compress_documents([chapter], "q")

    assert type(result) is Chapter
    assert (result.id, result.type, result.number) == ("7", "Document", 3)
    assert result.metadata == {"source": "book", "relevance_score": 4.0}
    assert chapter.metadata == {"source": "book"}


def test_an_old_score_is_replaced(rerank: ColBERTRerank) -> None:
    (result,) = rerank.compress_documents([Document("a", metadata={"relevance_score": 9.0})], "q")

    assert result.metadata == {"relevance_score": 1.0}


def test_the_key_of_the_score_can_be_chosen() -> None:
    rerank = ColBERTRerank(colbert=LengthRanker(), score="sum", score_key="colbert")

    (result,) = rerank.compress_documents([Document("a")], "q")

    assert result.metadata == {"colbert": 1.0}


def test_results_survive_a_langgraph_checkpoint(rerank: ColBERTRerank) -> None:
    serializer = JsonPlusSerializer()
    results = rerank.compress_documents([Document("a", id="1"), Document("bb")], "q")

    assert serializer.loads_typed(serializer.dumps_typed(results)) == results


def test_an_explanation_is_one_plain_value_of_the_metadata(tiny_colbert: ColBERT) -> None:
    rerank = ColBERTRerank(colbert=tiny_colbert, explain=True, top_n=None, score="sum")
    documents = [Document("mars is red", metadata={"source": "book"}), Document("")]

    first, last = rerank.compress_documents(documents, "red planet")

    assert {*first.metadata} == {"source", "relevance_score", "colbert_explanation"}
    assert json.loads(json.dumps(first.metadata)) == first.metadata
    assert first.metadata["colbert_explanation"]["text"] == "mars is red"
    assert first.metadata["colbert_explanation"]["score"] == pytest.approx(
        first.metadata["relevance_score"], abs=1e-5
    )
    assert last.metadata["colbert_explanation"] is None
    assert documents[0].metadata == {"source": "book"}


def test_an_explanation_survives_a_langgraph_checkpoint(tiny_colbert: ColBERT) -> None:
    serializer = JsonPlusSerializer()
    rerank = ColBERTRerank(colbert=tiny_colbert, explain=True)

    results = rerank.compress_documents([Document("mars is red")], "red planet")

    assert serializer.loads_typed(serializer.dumps_typed(results)) == results


def test_a_retriever_of_a_reranker_explains_too(tiny_colbert: ColBERT, base: BaseRetriever) -> None:
    rerank = ColBERTRerank(colbert=tiny_colbert, explain=True, top_n=1)

    (result,) = rerank.as_retriever(base).invoke("q")

    assert result.metadata["colbert_explanation"]["query"] == "q"


@pytest.mark.parametrize("query", [None, 3, ["q"]])
@pytest.mark.parametrize("found", [[], [Document("a")]], ids=["nothing", "a document"])
def test_a_query_that_is_no_string_is_refused(
    rerank: ColBERTRerank, query: Any, found: list[Document]
) -> None:
    with pytest.raises(InvalidQueryError, match=f"query is {type(query).__name__}, expected a str"):
        rerank.compress_documents(found, query)


@pytest.mark.parametrize("documents", [[], [Document("a")]], ids=["nothing", "a document"])
@pytest.mark.parametrize("query", ["q", ""])
def test_a_query_in_front_of_the_documents_is_told_the_order(
    rerank: ColBERTRerank, query: str, documents: list[Document]
) -> None:
    message = (
        "query is list and documents is a string, expected them the other way round: the documents "
        "come first, then the query"
    )
    with pytest.raises(InvalidQueryError, match=message):
        rerank.compress_documents(query, documents)  # type: ignore[arg-type]


def test_what_is_no_document_is_named_by_its_index(rerank: ColBERTRerank) -> None:
    with pytest.raises(TypeError, match=r"document 1 is str, expected .*Document"):
        rerank.compress_documents([Document("a"), "text"], "q")  # type: ignore[list-item]


def test_content_that_is_no_string_is_named_by_its_index(rerank: ColBERTRerank) -> None:
    odd = Document.model_construct(page_content=b"bytes", metadata={}, id=None)

    with pytest.raises(TypeError, match="the text of 1 is bytes, expected a string"):
        rerank.compress_documents([Document("a"), odd], "q")


# In chains


def test_in_an_lcel_chain(rerank: ColBERTRerank, base: BaseRetriever) -> None:
    def join(found: list[Document]) -> str:
        return ", ".join(contents(found))

    prompt = ChatPromptTemplate.from_template("{context} | {input}")
    chain = (
        {"context": rerank.as_retriever(base) | join, "input": RunnablePassthrough()}
        | prompt
        | RunnableLambda(lambda message: message.to_string())
    )

    assert chain.invoke("q") == "Human: dddd, ccc | q"


def test_an_lcel_chain_answers_with_a_model(rerank: ColBERTRerank, base: BaseRetriever) -> None:
    prompt = ChatPromptTemplate.from_template("{context} {input}")
    llm = FakeListChatModel(responses=["an answer"])
    chain = (
        {"context": rerank.as_retriever(base), "input": RunnablePassthrough()}
        | prompt
        | llm
        | StrOutputParser()
    )

    assert chain.invoke("q") == "an answer"


async def test_in_an_async_lcel_chain(rerank: ColBERTRerank, base: BaseRetriever) -> None:
    chain = rerank.as_retriever(base) | RunnableLambda(contents)

    assert await chain.ainvoke("q") == ["dddd", "ccc"]


@pytest.mark.parametrize("key", ["query", "question", "input"])
def test_as_runnable_takes_a_mapping(
    rerank: ColBERTRerank, documents: list[Document], key: str
) -> None:
    results = rerank.as_runnable().invoke({"documents": documents, key: "q"})

    assert contents(results) == ["dddd", "ccc"]


def test_as_runnable_takes_documents_from_a_generator(rerank: ColBERTRerank) -> None:
    found = (Document(text) for text in TEXTS)

    assert contents(rerank.as_runnable().invoke((found, "q"))) == ["dddd", "ccc"]


def test_as_runnable_takes_a_pair(rerank: ColBERTRerank, documents: list[Document]) -> None:
    assert contents(rerank.as_runnable().invoke((documents, "q"))) == ["dddd", "ccc"]


def test_as_runnable_gives_nothing_for_nothing(rerank: ColBERTRerank) -> None:
    assert rerank.as_runnable().invoke(([], "q")) == []


def test_as_runnable_is_a_step_of_a_chain(rerank: ColBERTRerank, base: BaseRetriever) -> None:
    chain = {"documents": itemgetter("q") | base, "query": itemgetter("q")} | rerank.as_runnable()

    assert contents(chain.invoke({"q": "q"})) == ["dddd", "ccc"]


async def test_as_runnable_runs_in_batches(
    rerank: ColBERTRerank, documents: list[Document]
) -> None:
    batches = await rerank.as_runnable().abatch([(documents, "q"), (documents[:1], "q")])

    assert [contents(results) for results in batches] == [["dddd", "ccc"], ["bb"]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each call of `rank_many` was given."""
    counts: list[int] = []
    rank = ColBERT.rank_many

    def watched(self: ColBERT, queries: list[str], *rest: Any, **options: Any) -> Any:
        counts.append(len(queries))
        return rank(self, queries, *rest, **options)

    monkeypatch.setattr(ColBERT, "rank_many", watched)
    return counts


@pytest.mark.parametrize("explain", [False, True])
async def test_a_batch_asks_a_model_once_and_answers_as_one_by_one(
    explain: bool, tiny_colbert: ColBERT, asked: list[int]
) -> None:
    step = ColBERTRerank(colbert=tiny_colbert, top_n=2, explain=explain).as_runnable()
    texts = [Document(text) for text in ("mars is red", "", "saturn has rings", "venus")]
    given: list[Any] = [(texts, "red"), (texts[:2], "rings"), (texts[1:2], "ice"), ([], "wind")]
    alone = [step.invoke(one) for one in given]

    for together in (step.batch(given), await step.abatch(given)):
        assert [[document.page_content for document in found] for found in together] == [
            [document.page_content for document in found] for found in alone
        ]
        assert [
            document.metadata["relevance_score"] for found in together for document in found
        ] == pytest.approx(
            [document.metadata["relevance_score"] for found in alone for document in found],
            abs=1e-5,
        )
    assert asked == ([] if explain else [2, 2])  # two of them have words to rank
    assert all("colbert_explanation" in found.metadata for found in alone[0]) is explain


def test_a_batch_needs_no_model_that_ranks_many(documents: list[Document]) -> None:
    ranker = LengthRanker()
    step = ColBERTRerank(colbert=ranker, top_n=1).as_runnable()

    found = step.batch([(documents, "q"), (documents[:1], "q")])

    assert [contents(results) for results in found] == [["dddd"], ["bb"]]
    assert len(ranker.asked) == 2


def test_an_error_of_one_input_is_not_that_of_the_batch(documents: list[Document]) -> None:
    step = ColBERTRerank(colbert=LengthRanker({"a": float("nan")}), top_n=1).as_runnable()
    given: Any = [(documents, "q"), (documents, " "), "no input", ([Document("a")], "q")]

    with collect_runs() as runs:
        first, blank, wrong, lost = step.batch(given, return_exceptions=True)

    assert contents(first) == ["dddd"]
    assert [type(error) for error in (blank, wrong, lost)] == [
        InvalidQueryError,
        TypeError,
        ScoringError,
    ]
    assert [run.error is None for run in runs.traced_runs] == [True, False, False, False]
    with pytest.raises(InvalidQueryError, match="blank"):
        step.batch(given)


def test_a_batch_of_a_retriever_encodes_each_text_once(tiny_colbert: ColBERT) -> None:
    texts = [f"planet {number} is a planet" for number in range(40)]
    base = RunnableLambda(lambda query: [Document(text) for text in texts])
    retriever = ColBERTRerank(colbert=tiny_colbert, top_n=2).as_retriever(base)
    tiny_colbert.unload()  # with what it has in its cache
    before = tiny_colbert.truncation_info().documents

    found = retriever.batch(["red", "rings", "ice", "wind", "rock", "storms"])

    assert [len(results) for results in found] == [2] * 6
    assert tiny_colbert.truncation_info().documents - before == len(texts)


def test_a_chain_hands_its_batch_on(
    base: BaseRetriever, tiny_colbert: ColBERT, asked: list[int]
) -> None:
    step = ColBERTRerank(colbert=tiny_colbert, top_n=2).as_runnable()
    chain = {"documents": base, "query": RunnablePassthrough()} | step | RunnableLambda(contents)

    found = chain.batch(["red", "rings", "ice"])

    assert [len(results) for results in found] == [2, 2, 2]
    assert asked == [3]


@pytest.mark.parametrize(
    ("given", "error", "advice"),
    [
        pytest.param({"docs": [], "query": "q"}, ValueError, "keys 'docs', 'query'", id="docs"),
        pytest.param({"documents": []}, ValueError, "expected 'documents' and one of", id="query"),
        pytest.param("q", TypeError, "input is str, expected a mapping", id="text"),
    ],
)
def test_as_runnable_says_what_it_takes(
    rerank: ColBERTRerank, given: Any, error: type[Exception], advice: str
) -> None:
    with pytest.raises(error, match=advice):
        rerank.as_runnable().invoke(given)


def test_as_runnable_has_schemas(rerank: ColBERTRerank) -> None:
    assert rerank.as_runnable().get_input_jsonschema()
    assert rerank.as_runnable().get_output_jsonschema()["type"] == "array"


# As a retriever


async def test_call_arguments_reach_the_base_retriever(
    rerank: ColBERTRerank, base: BaseRetriever
) -> None:
    retriever = rerank.as_retriever(base)

    assert len(retriever.invoke("q", k=1)) == 1
    assert len(await retriever.ainvoke("q", k=1)) == 1


def test_any_runnable_that_finds_documents_is_a_base(rerank: ColBERTRerank) -> None:
    retriever = rerank.as_retriever(RunnableLambda(lambda query: [Document(query), Document("a")]))

    assert contents(retriever.invoke("question")) == ["question", "a"]


def test_fields_can_be_configured_per_call(rerank: ColBERTRerank, base: BaseRetriever) -> None:
    retriever = rerank.as_retriever(base).configurable_fields(top_n=ConfigurableField("n"))

    assert len(retriever.invoke("q")) == 2
    assert len(retriever.invoke("q", {"configurable": {"n": 3}})) == 3


def test_configuring_the_model_changes_the_model(
    checkpoint: Any, base: BaseRetriever, store: InMemoryVectorStore
) -> None:
    store.add_texts(["mars is red", "venus", "saturn has rings"])
    exact = {"device": "cpu", "dtype": "float32", "score": "sum", "top_n": None}
    first, second = str(checkpoint("stanford-bert")), str(checkpoint("stanford-electra"))
    rerank = ColBERTRerank(model=first, **exact)
    retriever = rerank.as_retriever(base).configurable_fields(model=ConfigurableField("model"))

    retriever.invoke("red planet")
    results = retriever.invoke("red planet", {"configurable": {"model": second}})

    expected = ColBERT.from_pretrained(second, device="cpu", dtype="float32")
    assert [result.metadata["relevance_score"] for result in results] == pytest.approx(
        expected.score("red planet", contents(results)), abs=1e-5
    )
    clear_cache()


def test_configuring_the_model_of_a_given_encoder_is_refused(
    tiny_colbert: ColBERT, base: BaseRetriever
) -> None:
    rerank = ColBERTRerank(colbert=tiny_colbert)
    retriever = rerank.as_retriever(base).configurable_fields(model=ConfigurableField("model"))

    with pytest.raises(ValueError, match="leave one of the two out"):
        retriever.invoke("q", {"configurable": {"model": "somebody/else"}})


def test_a_subclass_keeps_its_ways_behind_a_retriever(base: BaseRetriever) -> None:
    class Shouting(ColBERTRerank):
        mark: str = "!"

        def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> Any:
            results = super().compress_documents(documents, query, callbacks)
            return [Document(result.page_content + self.mark) for result in results]

    rerank = Shouting(colbert=LengthRanker(), top_n=1, mark="?")

    assert contents(rerank.as_retriever(base).invoke("q")) == ["dddd?"]


def test_in_a_contextual_compression_retriever(rerank: ColBERTRerank, base: BaseRetriever) -> None:
    retriever = ContextualCompressionRetriever(base_compressor=rerank, base_retriever=base)

    assert contents(retriever.invoke("q")) == ["dddd", "ccc"]


async def test_in_an_async_contextual_compression_retriever(
    rerank: ColBERTRerank, base: BaseRetriever
) -> None:
    retriever = ContextualCompressionRetriever(base_compressor=rerank, base_retriever=base)

    assert contents(await retriever.ainvoke("q")) == ["dddd", "ccc"]


def test_in_a_document_compressor_pipeline(
    rerank: ColBERTRerank, documents: list[Document]
) -> None:
    last = rerank.model_copy(update={"top_n": 1})
    pipeline = DocumentCompressorPipeline(transformers=[rerank, last])

    assert contents(pipeline.compress_documents(documents, "q")) == ["dddd"]


# In an agent


class ToolCallingModel(GenericFakeChatModel):
    """Calls the tool `retrieve` once, then answers."""

    def bind_tools(self, tools: Any, **options: Any) -> ToolCallingModel:
        return self


@pytest.fixture
def agent(rerank: ColBERTRerank, store: InMemoryVectorStore) -> Any:
    @tool(response_format="content_and_artifact")
    def retrieve(query: str) -> tuple[str, list[Document]]:
        """Search the handbook."""
        found = rerank.compress_documents(store.similarity_search(query, top_k=10), query)
        return "\n".join(contents(found)), found

    def turns() -> Iterator[AIMessage]:
        yield AIMessage("", tool_calls=[{"name": "retrieve", "args": {"query": "q"}, "id": "1"}])
        yield AIMessage("an answer")

    return create_agent(ToolCallingModel(messages=turns()), [retrieve])


def test_in_the_tool_of_an_agent(agent: Any) -> None:
    messages = agent.invoke({"messages": [("user", "q")]})["messages"]

    (answer,) = [message for message in messages if isinstance(message, ToolMessage)]
    assert answer.content == "dddd\nccc"
    assert [document.id for document in answer.artifact] == ["dddd", "ccc"]


# Tracing


class Tracer(BaseTracer):
    """Keeps every run by name."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, Run] = {}

    def _persist_run(self, run: Run) -> None:
        pass

    def _end_trace(self, run: Run) -> None:
        self.runs[run.name] = run
        super()._end_trace(run)


def test_a_tracer_sees_one_run_with_inputs_and_outputs(
    rerank: ColBERTRerank, documents: list[Document]
) -> None:
    tracer = Tracer()

    results = rerank.compress_documents(documents, "q", callbacks=[tracer])

    assert list(tracer.runs) == ["ColBERTRerank"]
    assert tracer.runs["ColBERTRerank"].inputs == {"documents": documents, "query": "q"}
    assert tracer.runs["ColBERTRerank"].outputs == {"output": results}


async def test_a_tracer_sees_the_run_of_an_async_call(
    rerank: ColBERTRerank, documents: list[Document]
) -> None:
    tracer = Tracer()

    await rerank.acompress_documents(documents, "q", callbacks=[tracer])

    assert list(tracer.runs) == ["ColBERTRerank"]


def test_a_tracer_sees_the_error_of_a_run(rerank: ColBERTRerank) -> None:
    tracer = Tracer()
    odd = Document.model_construct(page_content=3, metadata={}, id=None)

    with pytest.raises(TypeError):
        rerank.compress_documents([odd], "q", callbacks=[tracer])

    assert "expected a string" in str(tracer.runs["ColBERTRerank"].error)


def test_nothing_to_rank_is_no_run(rerank: ColBERTRerank) -> None:
    tracer = Tracer()

    rerank.compress_documents([], "q", callbacks=[tracer])

    assert tracer.runs == {}


@pytest.mark.parametrize("classic", [True, False], ids=["ContextualCompression", "as_retriever"])
def test_the_run_is_a_child_of_the_retrievers(
    rerank: ColBERTRerank, base: BaseRetriever, classic: bool
) -> None:
    tracer = Tracer()
    retriever = (
        ContextualCompressionRetriever(base_compressor=rerank, base_retriever=base)
        if classic
        else rerank.as_retriever(base)
    )

    retriever.invoke("q", {"callbacks": [tracer], "run_name": "outer"})

    outer = tracer.runs["outer"]
    assert tracer.runs["ColBERTRerank"].parent_run_id == outer.id
    assert tracer.runs["VectorStoreRetriever"].parent_run_id == outer.id


async def test_the_run_is_a_child_of_an_async_retriever(
    rerank: ColBERTRerank, base: BaseRetriever
) -> None:
    tracer = Tracer()

    config = {"callbacks": [tracer], "run_name": "outer"}
    await rerank.as_retriever(base).ainvoke("q", config)

    assert tracer.runs["ColBERTRerank"].parent_run_id == tracer.runs["outer"].id
    assert tracer.runs["VectorStoreRetriever"].parent_run_id == tracer.runs["outer"].id


def test_the_run_is_a_child_of_a_caller_that_passes_no_callbacks(
    rerank: ColBERTRerank, documents: list[Document]
) -> None:
    tracer = Tracer()
    step = RunnableLambda(lambda query: rerank.compress_documents(documents, query), name="step")

    step.invoke("q", {"callbacks": [tracer]})

    assert tracer.runs["ColBERTRerank"].parent_run_id == tracer.runs["step"].id


def test_the_run_in_an_agent_is_a_child_of_the_tool(agent: Any) -> None:
    tracer = Tracer()

    agent.invoke({"messages": [("user", "q")]}, {"callbacks": [tracer]})

    assert tracer.runs["ColBERTRerank"].parent_run_id == tracer.runs["retrieve"].id


async def test_a_stream_of_events_holds_start_and_end(
    rerank: ColBERTRerank, base: BaseRetriever
) -> None:
    retriever = rerank.as_retriever(base)

    events = [event async for event in retriever.astream_events("q", version="v2")]

    ours = [event["event"] for event in events if event["name"] == "ColBERTRerank"]
    assert ours[0] == "on_chain_start"
    assert ours[-1] == "on_chain_end"


def test_runs_can_be_collected(rerank: ColBERTRerank, documents: list[Document]) -> None:
    with collect_runs() as collected:
        rerank.compress_documents(documents, "q")

    assert [run.name for run in collected.traced_runs] == ["ColBERTRerank"]


async def test_an_async_call_runs_in_a_worker_thread_with_the_callers_context(
    documents: list[Document],
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Noting(LengthRanker):
        def rank(self, query: str, texts: Sequence[str], **options: Any) -> Any:
            seen.append((variable.get(), threading.current_thread()))
            return super().rank(query, texts, **options)

    variable.set("from the caller")
    await ColBERTRerank(colbert=Noting()).acompress_documents(documents, "q")

    ((value, thread),) = seen
    assert value == "from the caller"
    assert thread is not threading.main_thread()
