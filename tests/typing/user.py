"""The public API as a program of a user's writes it; read by mypy alone, never run.

`assert_type` holds what a type checker must see. A line with an ignore is a mistake on purpose: if
its error is lost, mypy reports the ignore as unused.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

import colbert_rag
from colbert_rag import (
    ColBERT,
    Explanation,
    LocalIndex,
    Ranked,
    Ranking,
    RemoteColBERT,
    RemoteIndex,
    TokenEmbeddings,
    shared_colbert,
)
from colbert_rag.index import Changes, Document, Hit
from colbert_rag.langchain import ColBERTRerank as LangChainRerank
from colbert_rag.llama_index import ColBERTRerank as LlamaIndexRerank
from colbert_rag.model import AsyncRanker, Model
from colbert_rag.remote.ranking import RemoteExplanation, RemoteRanking


def opened(folder: Path) -> ColBERT:
    colbert = ColBERT.from_pretrained("offline-minilm")
    assert_type(colbert, ColBERT)
    ColBERT.from_pretrained(
        folder,
        revision="main",
        cache_folder=folder,
        local_files_only=True,
        device=None,
        dtype="float32",
        query_length=32,
        skiplist=["!", "?"],
        document_cache=None,
        long_documents="windows",
    )
    ColBERT.from_pretrained("offline-minilm", query_lenght=32)  # type: ignore[call-arg]
    ColBERT.from_pretrained("offline-minilm", query_length="32")  # type: ignore[arg-type]
    ColBERT.from_pretrained(3)  # type: ignore[arg-type]
    _ = colbert_rag.Colbert  # type: ignore[attr-defined]
    ColBERT("offline-minilm")  # type: ignore[arg-type]
    assert_type(shared_colbert("offline-minilm", device="cpu"), ColBERT)
    shared_colbert("offline-minilm", gpu=True)  # type: ignore[call-arg]
    return colbert


def ranked(colbert: ColBERT) -> list[float]:
    ranking = colbert.rank("a query", ["a text", {"text": "another"}, Document("1", "third")])
    assert_type(ranking, Ranking)
    assert_type(ranking[0], Ranked)
    assert_type(ranking[:2], list[Ranked])
    for place in ranking:
        assert_type(place.rank, int)
        assert_type(place.index, int)
        assert_type(place.score, float)
        assert_type(place.mean, float)
        assert_type(place.text, str)
        assert_type(place.span, tuple[int, int] | None)
        assert_type(place.to_dict(), dict[str, object])
        place.score = 0.0  # type: ignore[misc]
        _ = place.postion  # type: ignore[attr-defined]
    assert_type(colbert.rank_many(["a query"], ["a text", {"text": "another"}]), list[Ranking])
    assert_type(colbert.rank_many(["a query"], [["a text"], (ranking[0],)]), list[Ranking])
    colbert.rank_many("a query", [1])  # type: ignore[list-item]
    colbert.rank_many(["a query"], ["a text"], top_n=3)  # type: ignore[arg-type]
    colbert.rank("a query", ["a text"], top_k=3)
    colbert.rank("a query", ["a text"], top_n=3)  # type: ignore[arg-type]
    colbert.rank(["a query"], ["a text"])  # type: ignore[arg-type]
    colbert.rank("a query", [1, 2])  # type: ignore[list-item]
    colbert.rank("a query")  # type: ignore[call-arg]
    assert_type(colbert.encode_queries(["a query"]), TokenEmbeddings)
    return colbert.score("a query", ["a text"])


def explained(colbert: ColBERT) -> str:
    explanation = colbert.explain("a query", "a text")
    assert_type(explanation, Explanation)
    assert_type(colbert.rank("a query", ["a text"]).explain(0), Explanation)
    assert_type(explanation.score, float)
    for match in explanation.matches:
        assert_type(match.query.text, str)
        assert_type(match.similarity, float)
        _ = match.document.text  # type: ignore[union-attr]
    explanation.best_passage("280")  # type: ignore[arg-type]
    return explanation.best_passage(width=280).text


def searched(folder: Path, colbert: ColBERT) -> list[str]:
    with LocalIndex(folder / "texts.colbert", colbert) as index:
        assert_type(index, LocalIndex)
        changes = index.add(["a text", Document("1", "another", {"year": 2020})])
        assert_type(changes, Changes)
        hits = index.search("a query", top_k=3, filter={"year": {"$gte": 2000}})
        assert_type(hits, list[Hit])
        assert_type(hits[0].mean, float)
        index.search("a query", k=3)  # type: ignore[call-arg]
        index.search("a query", filter="year > 2000")  # type: ignore[arg-type]
        index.add([3])  # type: ignore[list-item]
    LocalIndex(folder, "offline-minilm")  # type: ignore[arg-type]
    return [hit.text for hit in hits]


def with_langchain(base: BaseRetriever) -> BaseRetriever:
    rerank = LangChainRerank(model="offline-minilm", top_n=3, score="sum")
    found = rerank.compress_documents([LangChainDocument(page_content="a text")], "a query")
    assert_type(list(found), list[LangChainDocument])
    LangChainRerank(top_k=3)  # type: ignore[call-arg]
    LangChainRerank(score="max")  # type: ignore[arg-type]
    rerank.compress_documents(["a text"], "a query")  # type: ignore[list-item]
    return rerank.as_retriever(base)


def with_llama_index() -> list[NodeWithScore]:
    rerank = LlamaIndexRerank(model="offline-minilm", top_n=3, keep_retrieval_score=True)
    nodes = [NodeWithScore(node=TextNode(text="a text"), score=0.5)]
    LlamaIndexRerank(top_n="many")  # type: ignore[arg-type]
    LlamaIndexRerank(similarity_top_k=3)  # type: ignore[call-arg]
    return rerank.postprocess_nodes(nodes, query_str="a query")


async def behind_a_server(folder: Path) -> Model:
    remote = RemoteColBERT("http://127.0.0.1:8000", api_key="key", timeout=5)
    model: Model = remote
    awaited: AsyncRanker = remote
    assert_type(remote.rank("a query", ["a text"]), RemoteRanking)
    assert_type(await remote.arank("a query", ["a text"]), RemoteRanking)
    assert_type(remote.rank("a query", ["a text"]).explain(0), RemoteExplanation)
    assert_type(remote.encode_queries(["a query"]), TokenEmbeddings)
    remote.rank("a query", ["a text"], top_n=3)  # type: ignore[arg-type]
    RemoteColBERT(folder)  # type: ignore[arg-type]
    LocalIndex(folder / "index.sqlite", remote)
    LangChainRerank(colbert=remote)
    LlamaIndexRerank(colbert=awaited)
    index = RemoteIndex("http://127.0.0.1:8000")
    assert_type(index.search("a query", 3, {"year": {"$gte": 2000}}), list[Hit])
    assert_type(await index.asearch("a query"), list[Hit])
    assert_type(index.add(["a text"]), Changes)
    return model
