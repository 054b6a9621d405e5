"""The long-lived process of the job `soak`: sixteen threads that share a model and an index."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_byte
from functools import partial

import numpy as np
import torch
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from benchmarks.soak_truth import (
    BASE,
    BUSY_TIMEOUT,
    OPTIONS,
    TOLERANCE,
    LostError,
    Record,
    StuckError,
    Truth,
    chosen,
    quiet,
)
from colbert_rag import ColBERT, clear_cache, langchain, llama_index, shared_colbert
from colbert_rag.index import Hit, LocalIndex

THREADS = 16

FORK_SECONDS = 20.0
"""Seconds after which a forked child counts as stuck."""

WEIGHTS = {
    "rank": 4.0,
    "score": 4.0,
    "explain": 2.0,
    "encode": 2.0,
    "search": 6.0,
    "filtered search": 3.0,
    "search by level": 2.0,
    "get": 3.0,
    "freshness": 3.0,
    "rank with index": 2.0,
    "LangChain rerank": 1.0,
    "LlamaIndex rerank": 1.0,
    "LangChain retrieve": 1.0,
    "LlamaIndex retrieve": 1.0,
    "evict": 0.5,
    "unload": 0.1,
    "fork": 0.05,
}


class Reader:
    """The calls of one thread."""

    def __init__(
        self, truth: Truth, index: LocalIndex, beats: Sequence[int], rng: random.Random
    ) -> None:
        """Share `index` and, through the registry, the model with all other threads."""
        self.truth = truth
        self.index = index
        self.beats = beats
        self.rng = rng
        self.calls: Mapping[str, Callable[[], None]] = {
            "rank": self.rank,
            "score": self.score,
            "explain": self.explain,
            "encode": self.encode,
            "search": partial(self.search, None),
            "filtered search": partial(self.search, {"source": "base"}),
            "search by level": partial(self.search, {"source": "base"}, exact=False),
            "get": self.get,
            "freshness": self.freshness,
            "rank with index": self.rank_with_index,
            "LangChain rerank": self.langchain_rerank,
            "LlamaIndex rerank": self.llama_index_rerank,
            "LangChain retrieve": self.langchain_retrieve,
            "LlamaIndex retrieve": self.llama_index_retrieve,
            "evict": self.evict,
            "unload": self.unload,
            "fork": self.fork,
        }

    @property
    def model(self) -> ColBERT:
        """The one that everybody shares."""
        return shared_colbert(self.truth.checkpoint, **OPTIONS)

    def some(self, most: int = 12) -> tuple[int, list[int], list[str]]:
        """A query, and texts with repetitions, by number and as they are."""
        query = self.rng.randrange(len(self.truth.queries))
        picked = self.rng.choices(range(len(self.truth.texts)), k=self.rng.randint(1, most))
        return query, picked, [self.truth.texts[at] for at in picked]

    def rank(self) -> None:
        """Texts in the order of their scores."""
        query, picked, texts = self.some()
        ranking = self.model.rank(self.truth.queries[query], texts)
        self._check_places(query, picked, {place.index: place.score for place in ranking})

    def _check_places(self, query: int, picked: list[int], by_place: dict[int, float]) -> None:
        found = [by_place[at] for at in range(len(picked))]
        self.truth.close(query, found, [self.truth.scores[query][at] for at in picked])

    def score(self) -> None:
        """Scores alone."""
        query, picked, texts = self.some()
        found = self.model.score(self.truth.queries[query], texts)
        self.truth.close(query, found, [self.truth.scores[query][at] for at in picked])

    def explain(self) -> None:
        """An explanation adds up to the score."""
        query, picked, texts = self.some(1)
        explanation = self.model.explain(self.truth.queries[query], texts[0])
        self.truth.close(query, [explanation.score], [self.truth.scores[query][picked[0]]])

    def encode(self) -> None:
        """Vectors of documents."""
        _, picked, texts = self.some()
        for at, rows in zip(picked, self.model.encode_documents(texts), strict=True):
            expected = self.truth.vectors[at]
            assert rows.shape == expected.shape, "another number of vectors"
            assert np.abs(rows.numpy() - expected).max() <= TOLERANCE, "other vectors"

    def search(self, filter: dict[str, object] | None, *, exact: bool | None = None) -> None:
        """The shared index, perhaps with a filter; by its level, all of so few are scored."""
        query, k = self.rng.randrange(len(self.truth.queries)), self.rng.choice((1, 5, 300))
        hits = self.index.search(self.truth.queries[query], k, filter, exact=exact)
        self.truth.check_hits(query, hits, k, base_only=filter is not None)

    def get(self) -> None:
        """Documents by id, and how many there are."""
        at = self.rng.sample(range(BASE), 3)
        try:
            found = self.index.get([f"base-{number}" for number in at])
        except KeyError as error:
            raise LostError(str(error)) from error
        assert found == [self.truth.base()[number] for number in at]
        if self.index.count() < BASE:
            raise LostError(f"the index holds {self.index.count()} documents")

    def freshness(self) -> None:
        """A read shows at least what was committed before it began."""
        writer = self.rng.randrange(len(self.beats))
        before = self.beats[writer]
        if before:
            (beat,) = self.index.get([f"beat{writer}-0"])
            if beat.metadata["turn"] < before:
                raise LostError(f"commit {before} is not seen, but {beat.metadata['turn']}")

    def rank_with_index(self) -> None:
        """With vectors that the index holds."""
        query, picked, texts = self.some()
        known = self.index.embeddings_for
        ranking = self.model.rank(self.truth.queries[query], texts, known=known)
        self._check_either(query, picked, {place.index: place.score for place in ranking})

    def _check_either(self, query: int, picked: list[int], by_place: dict[int, float]) -> None:
        """Scores of stored vectors or of fresh ones: which of them depends on what was cached."""
        found = np.array([by_place[at] for at in range(len(picked))])
        truths = (self.truth.scores[query][picked], self.truth.stored[query][picked])
        off = np.minimum(*(np.abs(found - expected) for expected in truths)).max()
        assert off <= TOLERANCE * len(self.truth.asked[query]), f"a score is off by {off:.2g}"

    def langchain_rerank(self) -> None:
        """LangChain's component, perhaps with an index."""
        query, picked, texts = self.some()
        reranker = langchain.ColBERTRerank(
            model=str(self.truth.checkpoint), top_n=None, score="sum", **self._options()
        )
        given = [Document(text, metadata={"at": at}) for at, text in enumerate(texts)]
        found = reranker.compress_documents(given, self.truth.queries[query])
        scores = {one.metadata["at"]: one.metadata["relevance_score"] for one in found}
        self._check_either(query, picked, scores)

    def _options(self) -> dict[str, object]:
        index = {"index": str(self.truth.index)} if self.rng.random() < 0.3 else {}
        return {**OPTIONS, **index}

    def llama_index_rerank(self) -> None:
        """LlamaIndex's component, perhaps with an index."""
        query, picked, texts = self.some()
        reranker = llama_index.ColBERTRerank(
            model=str(self.truth.checkpoint), top_n=None, score="sum", **self._options()
        )
        nodes = [
            NodeWithScore(node=TextNode(text=text, id_=str(at))) for at, text in enumerate(texts)
        ]
        found = reranker.postprocess_nodes(nodes, query_str=self.truth.queries[query])
        scores = {int(one.node.node_id): one.get_score() for one in found}
        self._check_either(query, picked, scores)

    def langchain_retrieve(self) -> None:
        """LangChain's retriever on the shared file."""
        query = self.rng.randrange(len(self.truth.queries))
        path = str(self.truth.index)
        retriever = langchain.ColBERTRetriever(
            index=path, k=5, score="sum", filter={"source": "base"}, **OPTIONS
        )
        found = retriever.invoke(self.truth.queries[query])
        self._check_base(
            query, [(one.metadata["text"], one.metadata["relevance_score"]) for one in found]
        )
        if self.rng.random() < 0.05:
            retriever.unload()

    def llama_index_retrieve(self) -> None:
        """LlamaIndex's retriever on the shared file."""
        query = self.rng.randrange(len(self.truth.queries))
        retriever = llama_index.ColBERTRetriever(
            self.truth.index,
            similarity_top_k=5,
            score="sum",
            filters=MetadataFilters(filters=[MetadataFilter(key="source", value="base")]),
            **OPTIONS,
        )
        found = retriever.retrieve(self.truth.queries[query])
        self._check_base(query, [(one.metadata["text"], one.get_score()) for one in found])

    def _check_base(self, query: int, found: list[tuple[int, float]]) -> None:
        base = self.truth.base()
        documents = [(base[at], score) for at, score in found]
        rows = len(self.truth.asked[query])
        hits = [Hit(document, score, rows) for document, score in documents]
        self.truth.check_hits(query, hits, 5, base_only=True)

    def evict(self) -> None:
        """More documents than the cache holds."""
        _, _, texts = self.some(100)
        self.model.cache_documents(texts)
        info = self.model.cache_info()
        assert info.bytes <= info.limit, f"{info}"

    def unload(self) -> None:
        """Take the weights from under the other threads."""
        clear_cache() if self.rng.random() < 0.5 else self.model.unload()

    def fork(self) -> None:
        """A child beside working threads must answer, or say that it cannot, and end."""
        query, picked, texts = self.some(3)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os._exit(self._in_child(query, picked, texts))
        end = time.monotonic() + FORK_SECONDS
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise StuckError(f"a forked child had not ended after {FORK_SECONDS:g} s")
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(status)
        assert code == 0, f"a forked child ended with {code}"

    def _in_child(self, query: int, picked: list[int], texts: list[str]) -> int:
        try:
            try:
                self.index.count()
            except RuntimeError:
                self.index.close()
            else:
                return 2
            model = ColBERT.from_pretrained(self.truth.checkpoint, **OPTIONS)
            for one in (model, self.model):
                found = one.score(self.truth.queries[query], texts)
                self.truth.close(query, found, [self.truth.scores[query][at] for at in picked])
            with LocalIndex(self.truth.index, model, busy_timeout=BUSY_TIMEOUT) as index:
                assert index.count() >= BASE
        except BaseException:
            return 1
        return 0


def read(
    truth: Truth, seed: int, without: frozenset[str], stop: c_byte, beats: Sequence[int]
) -> None:
    """Call at random from all threads until `stop`."""
    quiet()
    torch.set_num_threads(1)
    # Its 1,024 places fill for as long as a soak lasts, which would hide what grows without end.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")
    weights = {name: weight for name, weight in WEIGHTS.items() if name not in without}
    record = Record(truth, "reader")
    model = shared_colbert(truth.checkpoint, **OPTIONS)
    index = LocalIndex(truth.index, model, busy_timeout=BUSY_TIMEOUT)

    def work(number: int) -> None:
        reader = Reader(truth, index, beats, random.Random(f"{seed}/{os.getpid()}/{number}"))
        while not stop.value:
            name = chosen(reader.rng, weights)
            # Not from the main thread, whose calls are interrupted: a child would be left behind.
            if name != "fork" or number:
                record.call(name, reader.calls[name])

    others = [threading.Thread(target=work, args=(number,)) for number in range(1, THREADS)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    index.close()
    record.save()
