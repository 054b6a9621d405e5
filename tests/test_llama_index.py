"""The LlamaIndex adapter: in every place where LlamaIndex calls a reranker."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    ImageNode,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow, step
from pydantic import Field

from colbert_rag import ColBERT, InvalidQueryError
from colbert_rag.adapter import Reranking
from colbert_rag.errors import ScoringError
from colbert_rag.llama_index import ColBERTRerank, ColbertRerank
from tests.helpers.rerankers import LengthRanker, RerankerSuite

TEXTS = ["bb", "dddd", "a", "ccc"]


class TestBehaviour(RerankerSuite):
    def reranker(self, **options: Any) -> ColBERTRerank:
        return ColBERTRerank(**options)

    def items(self, texts: Sequence[Any], ids: Sequence[str] | None = None) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(text=text or "", id_=ids[place] if ids else str(place)),
                score=0.5 - place,
            )
            for place, text in enumerate(texts)
        ]

    def run(self, reranker: Any, items: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        return reranker.postprocess_nodes(items, query_str=query)

    def read(self, item: NodeWithScore) -> tuple[str, float]:
        return item.node.get_content(), item.score

    def stored(self, reranker: Reranking) -> str:
        fields = json.loads(super().stored(reranker))
        assert fields.pop("class_name") == "ColBERTRerank"
        return json.dumps(fields)


class TestBehaviourAsync(TestBehaviour):
    """The same rows again, through a worker thread."""

    def run(self, reranker: Any, items: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        return asyncio.run(reranker.apostprocess_nodes(items, query_str=query))


class TestBehaviourKeepingTheRetrievalScore(TestBehaviour):
    """The same rows again, with metadata written: the text that is ranked must not change."""

    def reranker(self, **options: Any) -> ColBERTRerank:
        return ColBERTRerank(keep_retrieval_score=True, **options)


@pytest.fixture
def rerank() -> ColBERTRerank:
    return ColBERTRerank(colbert=LengthRanker(), top_n=2, score="sum")


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=text, metadata={"title": text}), score=0.5)
        for text in TEXTS
    ]


def contents(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [found.node.get_content() for found in nodes]


# What comes back


@pytest.mark.parametrize("bundle", [None, QueryBundle(None)], ids=["none", "empty bundle"])
@pytest.mark.parametrize("found", [[], [NodeWithScore(node=TextNode(text="a"))]])
def test_a_missing_query_is_refused(
    rerank: ColBERTRerank, bundle: Any, found: list[NodeWithScore]
) -> None:
    with pytest.raises(ValueError, match=r"Missing query bundle in extra info: .* query_str="):
        rerank.postprocess_nodes(found, query_bundle=bundle)


def test_a_query_bundle_is_ranked_by_its_text(
    rerank: ColBERTRerank, nodes: list[NodeWithScore]
) -> None:
    results = rerank.postprocess_nodes(nodes, query_bundle=QueryBundle("q"))

    assert contents(results) == ["dddd", "ccc"]


def test_results_are_new_and_hold_the_same_node(rerank: ColBERTRerank) -> None:
    found = NodeWithScore(node=TextNode(text="a", id_="7"), score=0.25)

    (result,) = rerank.postprocess_nodes([found], query_str="q")

    assert result is not found
    assert result.node is found.node
    assert (found.score, result.score) == (0.25, 1.0)


def test_what_is_no_node_is_named_by_its_index(
    rerank: ColBERTRerank, nodes: list[NodeWithScore]
) -> None:
    with pytest.raises(TypeError, match="node 1 is TextNode, expected NodeWithScore"):
        rerank.postprocess_nodes([nodes[0], nodes[1].node], query_str="q")


def test_content_that_is_no_string_is_named_by_its_index(
    rerank: ColBERTRerank, nodes: list[NodeWithScore]
) -> None:
    class Odd(TextNode):
        def get_content(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> Any:
            return b"bytes"

    with pytest.raises(TypeError, match="the text of 1 is bytes, expected a string"):
        rerank.postprocess_nodes([nodes[0], NodeWithScore(node=Odd())], query_str="q")


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(ImageNode(image_url="x.png", metadata={"file": "x.png"}), id="image node"),
        pytest.param(TextNode(text="", metadata={"title": "t"}), id="metadata alone"),
        pytest.param(Node(metadata={"title": "t"}), id="node without text"),
    ],
)
def test_a_node_without_text_comes_last_whatever_its_metadata(
    rerank: ColBERTRerank, nodes: list[NodeWithScore], node: Any
) -> None:
    rerank.top_n = None

    *_, last = rerank.postprocess_nodes([NodeWithScore(node=node), *nodes], query_str="q")

    assert last.node is node
    assert last.score == -4.0


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (MetadataMode.EMBED, "seen: s\n\ntext"),
        (MetadataMode.NONE, "text"),
        (MetadataMode.ALL, "seen: s\nhidden: h\n\ntext"),
    ],
)
def test_the_metadata_mode_chooses_what_is_ranked(mode: MetadataMode, expected: str) -> None:
    ranker = LengthRanker()
    metadata = {"seen": "s", "hidden": "h"}
    node = TextNode(text="text", metadata=metadata, excluded_embed_metadata_keys=["hidden"])

    rerank = ColBERTRerank(colbert=ranker, metadata_mode=mode)
    rerank.postprocess_nodes([NodeWithScore(node=node)], query_str="q")

    assert ranker.asked == [[expected]]


def test_the_retrieval_score_is_kept_out_of_every_text(nodes: list[NodeWithScore]) -> None:
    rerank = ColBERTRerank(colbert=LengthRanker(), keep_retrieval_score=True, top_n=1)

    (result,) = rerank.postprocess_nodes(nodes, query_str="q")

    before = nodes[1].node
    assert result.node.metadata == {"title": "dddd", "retrieval_score": 0.5}
    assert before.metadata == {"title": "dddd"}
    assert result.node.node_id == before.node_id
    assert type(result.node) is TextNode
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert result.node.get_content(mode) == before.get_content(mode)


def test_reranking_twice_keeps_the_latest_score_and_excludes_it_once(
    nodes: list[NodeWithScore],
) -> None:
    rerank = ColBERTRerank(colbert=LengthRanker(), keep_retrieval_score=True, score="sum", top_n=1)

    first = rerank.postprocess_nodes(nodes, query_str="q")
    (second,) = rerank.postprocess_nodes(first, query_str="q")

    assert second.score == first[0].score
    assert second.node.metadata["retrieval_score"] == first[0].score
    assert second.node.excluded_llm_metadata_keys == ["retrieval_score"]


def test_an_explanation_is_one_plain_value_that_no_model_reads(
    tiny_colbert: ColBERT, nodes: list[NodeWithScore]
) -> None:
    rerank = ColBERTRerank(colbert=tiny_colbert, explain=True, top_n=1, score="sum")

    (result,) = rerank.postprocess_nodes(nodes, query_str="red planet")

    explanation = result.node.metadata["colbert_explanation"]
    (before,) = [found.node for found in nodes if found.node.node_id == result.node.node_id]
    assert {*result.node.metadata} == {"title", "colbert_explanation"}
    assert json.loads(json.dumps(explanation)) == explanation
    assert explanation["text"] == before.get_content(MetadataMode.EMBED)
    assert explanation["score"] == pytest.approx(result.score, abs=1e-5)
    assert [result.node.get_content(mode) for mode in (MetadataMode.EMBED, MetadataMode.LLM)] == [
        before.get_content(mode) for mode in (MetadataMode.EMBED, MetadataMode.LLM)
    ]
    assert {*before.metadata} == {"title"}


def test_an_explanation_of_an_earlier_query_is_replaced(
    tiny_colbert: ColBERT, nodes: list[NodeWithScore]
) -> None:
    rerank = ColBERTRerank(colbert=tiny_colbert, explain=True)

    first = rerank.postprocess_nodes(nodes, query_str="red planet")
    (second, *_) = rerank.postprocess_nodes(first, query_str="rings")

    assert second.node.metadata["colbert_explanation"]["query"] == "rings"
    assert second.node.excluded_llm_metadata_keys == ["colbert_explanation"]


# Stored and restored


def test_the_class_name_is_ours() -> None:
    assert ColBERTRerank.class_name() == "ColBERTRerank"
    assert issubclass(ColBERTRerank, BaseNodePostprocessor)


def test_to_json_and_back(tiny_colbert: ColBERT) -> None:
    rerank = ColBERTRerank(colbert=tiny_colbert, metadata_mode="none", keep_retrieval_score=True)

    restored = ColBERTRerank.from_json(rerank.to_json())

    assert restored.to_dict() == rerank.to_dict()
    assert restored.metadata_mode is MetadataMode.NONE
    assert restored.ranker.settings == tiny_colbert.settings


def test_to_dict_and_back_by_name_alone() -> None:
    rerank = ColBERTRerank(model="somebody/colbert", top_n=None, query_length=64)

    restored = ColBERTRerank.from_dict(rerank.to_dict())

    assert restored.to_dict() == rerank.to_dict()


# Events


class Events(BaseEventHandler):
    """Keeps the reranking events."""

    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **options: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.seen.append(event)


class Callbacks(BaseCallbackHandler):
    """Keeps the starts and ends of reranking."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.started: list[dict[str, Any]] = []
        self.ended: list[dict[str, Any]] = []

    def on_event_start(self, event_type: CBEventType, payload: Any = None, **_: Any) -> str:
        self.started += [payload] if event_type == CBEventType.RERANKING else []
        return ""

    def on_event_end(self, event_type: CBEventType, payload: Any = None, **_: Any) -> None:
        self.ended += [payload] if event_type == CBEventType.RERANKING else []

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None: ...


class Spans(SimpleSpanHandler):
    """Keeps the names of finished and dropped spans."""

    def names(self, spans: Sequence[SimpleSpan]) -> list[str]:
        return [span.id_.rsplit("-", 5)[0] for span in spans]


@pytest.fixture
def events() -> Iterator[list[Any]]:
    root, handler = get_dispatcher(), Events()
    root.add_event_handler(handler)
    yield handler.seen
    root.event_handlers.remove(handler)


@pytest.fixture
def spans() -> Iterator[Spans]:
    root, handler = get_dispatcher(), Spans()
    root.add_span_handler(handler)
    yield handler
    root.span_handlers.remove(handler)


@pytest.fixture
def callbacks(rerank: ColBERTRerank) -> Callbacks:
    handler = Callbacks()
    rerank.callback_manager = CallbackManager([handler])
    return handler


def test_a_success_is_one_start_and_one_end(
    rerank: ColBERTRerank, nodes: list[NodeWithScore], events: list[Any], callbacks: Callbacks
) -> None:
    results = rerank.postprocess_nodes(nodes, query_str="q")

    start, end = events
    assert (start.query.query_str, start.nodes, start.top_n) == ("q", nodes, 2)
    assert start.model_name == rerank.model
    assert end.nodes == results
    assert callbacks.started == [
        {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: rerank.model,
            EventPayload.QUERY_STR: "q",
            EventPayload.TOP_K: 2,
        }
    ]
    assert callbacks.ended == [{EventPayload.NODES: results}]


def test_without_top_n_the_event_counts_all_nodes(
    rerank: ColBERTRerank, nodes: list[NodeWithScore], events: list[Any], callbacks: Callbacks
) -> None:
    rerank.top_n = None

    rerank.postprocess_nodes(nodes, query_str="q")

    assert events[0].top_n == 4
    assert callbacks.started[0][EventPayload.TOP_K] == 4


def test_a_failure_is_one_start_and_one_end(
    rerank: ColBERTRerank, nodes: list[NodeWithScore], events: list[Any], callbacks: Callbacks
) -> None:
    rerank.colbert = LengthRanker({f"title: {text}\n\n{text}": float("nan") for text in TEXTS})

    with pytest.raises(ScoringError):
        rerank.postprocess_nodes(nodes, query_str="q")

    start, end = events
    assert isinstance(start, ReRankStartEvent)
    assert end.nodes == []
    assert len(callbacks.started) == 1
    assert isinstance(callbacks.ended[0][EventPayload.EXCEPTION], ScoringError)


@pytest.mark.parametrize(
    ("found", "query", "error"),
    [
        pytest.param([], "q", None, id="no nodes"),
        pytest.param([NodeWithScore(node=TextNode(text="a"))], "", InvalidQueryError, id="blank"),
        pytest.param([NodeWithScore(node=TextNode(text="a"))], None, ValueError, id="no query"),
    ],
)
def test_without_a_ranking_there_are_no_events(
    rerank: ColBERTRerank,
    events: list[Any],
    callbacks: Callbacks,
    found: list[NodeWithScore],
    query: str | None,
    error: type[Exception] | None,
) -> None:
    if error is None:
        assert rerank.postprocess_nodes(found, query_str=query) == []
    else:
        with pytest.raises(error):
            rerank.postprocess_nodes(found, query_str=query)

    assert events == callbacks.started == callbacks.ended == []


async def test_every_call_is_a_span(
    rerank: ColBERTRerank, nodes: list[NodeWithScore], spans: Spans
) -> None:
    rerank.postprocess_nodes(nodes, query_str="q")
    await rerank.apostprocess_nodes(nodes, query_str="q")

    assert spans.names(spans.completed_spans) == ["ColBERTRerank._postprocess_nodes"] * 2


async def test_an_async_call_runs_in_a_worker_thread(nodes: list[NodeWithScore]) -> None:
    seen = []

    class Noting(LengthRanker):
        def rank(self, query: str, texts: Sequence[str], **options: Any) -> Any:
            seen.append(threading.current_thread())
            return super().rank(query, texts, **options)

    await ColBERTRerank(colbert=Noting()).apostprocess_nodes(nodes, query_str="q")

    assert seen != [threading.main_thread()]


# In query engines and workflows


@pytest.fixture
def index(nodes: list[NodeWithScore]) -> VectorStoreIndex:
    return VectorStoreIndex([found.node for found in nodes], embed_model=MockEmbedding(8))


def test_in_a_query_engine(rerank: ColBERTRerank, index: VectorStoreIndex) -> None:
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[rerank])

    response = engine.query("q")

    assert contents(response.source_nodes) == ["dddd", "ccc"]


async def test_in_an_async_query_engine(rerank: ColBERTRerank, index: VectorStoreIndex) -> None:
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=4), llm=MockLLM(), node_postprocessors=[rerank]
    )

    response = await engine.aquery("q")

    assert contents(response.source_nodes) == ["dddd", "ccc"]


def test_a_query_engine_leaves_its_store_as_it_was(index: VectorStoreIndex) -> None:
    rerank = ColBERTRerank(colbert=LengthRanker(), keep_retrieval_score=True)
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[rerank])

    first = engine.query("q").source_nodes
    second = engine.query("q").source_nodes

    stored = index.docstore.docs.values()
    assert [found.score for found in first] == [found.score for found in second]
    assert [found.node.get_content("llm") for found in first] == [
        f"title: {text}\n\n{text}" for text in contents(first)
    ]
    assert {key for node in stored for key in node.metadata} == {"title"}


def test_in_the_step_of_a_workflow(rerank: ColBERTRerank, nodes: list[NodeWithScore]) -> None:
    class Flow(Workflow):
        @step
        async def rerank(self, context: Context, event: StartEvent) -> StopEvent:
            return StopEvent(await rerank.apostprocess_nodes(nodes, query_str=event.query))

    async def run() -> list[NodeWithScore]:
        return await Flow().run(query="q")

    assert contents(asyncio.run(run())) == ["dddd", "ccc"]


def test_two_engines_share_the_model_of_their_rerankers(
    tiny_colbert: ColBERT, index: VectorStoreIndex
) -> None:
    rerankers = [ColBERTRerank(colbert=tiny_colbert), ColBERTRerank(colbert=tiny_colbert, top_n=1)]

    engines = [
        index.as_query_engine(llm=MockLLM(), node_postprocessors=[rerank]) for rerank in rerankers
    ]

    assert [len(engine.query("q").source_nodes) for engine in engines] == [2, 1]
    assert rerankers[0].ranker is rerankers[1].ranker


# The old package's name and arguments


def test_the_old_name_takes_the_old_arguments() -> None:
    with pytest.warns(DeprecationWarning, match="tokenizer is ignored") as warned:
        rerank = ColbertRerank(
            top_n=3,
            model="colbert-ir/colbertv2.0",
            tokenizer="colbert-ir/colbertv2.0",
            device="cpu",
            keep_retrieval_score=None,
        )

    assert (rerank.top_n, rerank.model, rerank.device) == (3, "colbert-ir/colbertv2.0", "cpu")
    assert rerank.keep_retrieval_score is False
    assert warned[0].filename == __file__


def test_the_old_name_keeps_the_old_defaults() -> None:
    rerank = ColbertRerank()

    assert (rerank.top_n, rerank.model) == (5, "colbert-ir/colbertv2.0")
    assert ColbertRerank.class_name() == "ColbertRerank"


def test_the_old_name_can_be_stored(tiny_colbert: ColBERT) -> None:
    rerank = ColbertRerank(colbert=tiny_colbert, top_n=1)

    restored = ColbertRerank.from_json(rerank.to_json())

    assert restored.to_dict() == rerank.to_dict()
    assert pickle.loads(pickle.dumps(rerank)).ranker is tiny_colbert


def test_the_old_name_still_refuses_typos() -> None:
    with pytest.raises(ValueError, match="tokeniser"):
        ColbertRerank(tokeniser="x")
