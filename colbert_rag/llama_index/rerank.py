"""Rerank nodes that any retriever found."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field, model_validator

from colbert_rag.adapter.model import PathText
from colbert_rag.adapter.reranking import EXPLANATION_KEY, Reranked, Reranking
from colbert_rag.inputs import check_query

RETRIEVAL_SCORE_KEY = "retrieval_score"

_dispatcher = get_dispatcher(__name__)


class ColBERTRerank(Reranking, BaseNodePostprocessor):
    """Order retrieved nodes by late interaction, and keep the best.

    The model opens at the first query, or in `load()`, and is shared with every component that
    names the same one. Scores order nodes; they are not probabilities.

    What `explain` and `keep_retrieval_score` put into the metadata is excluded from every text that
    is embedded or prompted with.
    """

    top_n: int | None = Field(default=5, ge=1)
    """How many to return; None returns all."""
    keep_retrieval_score: bool = False
    """Keep the retriever's score as `retrieval_score` in the metadata."""
    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata is ranked along with a node's text."""

    @classmethod
    def class_name(cls) -> str:
        """The name this class is stored under."""
        return "ColBERTRerank"

    # There is no async twin: the base class runs this one in a thread, inside its span.
    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Return new nodes with scores, best first; the given ones stay as they are.

        Raises:
            InvalidQueryError: the query is blank or not a string.
            ScoringError: no node received a finite score.
            TypeError: an item of `nodes` is not a `NodeWithScore`, or its text not a string.
            ValueError: there is no query.
        """
        if query_bundle is None or query_bundle.query_str is None:
            raise ValueError(
                "Missing query bundle in extra info: give postprocess_nodes a query_str= or a "
                "query_bundle="
            )
        query = query_bundle.query_str
        check_query(query)
        for index, found in enumerate(nodes):
            if not isinstance(found, NodeWithScore):
                raise TypeError(f"node {index} is {type(found).__name__}, expected NodeWithScore")
        if not nodes:
            return []
        top_n = self.top_n or len(nodes)  # an event must carry a number
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        reranked: list[NodeWithScore] = []
        _dispatcher.event(
            ReRankStartEvent(
                query=query_bundle,
                nodes=nodes,
                top_n=top_n,
                model_name=self.model,
            )
        )
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                reranked = self._reranked(nodes, query)
                event.on_end(payload={EventPayload.NODES: reranked})
        finally:
            # After an error too: a handler that saw the start waits for the end.
            _dispatcher.event(ReRankEndEvent(nodes=reranked))
        return reranked

    def _reranked(self, nodes: Sequence[NodeWithScore], query: str) -> list[NodeWithScore]:
        results = self._rerank(
            query,
            [self._text(found.node) for found in nodes],
            [found.node.node_id for found in nodes],
        )
        return [self._returned(nodes[result.index], result) for result in results]

    def _text(self, node: BaseNode) -> str | None:
        # Metadata describes a text and does not replace it: an image with a file name has none.
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        if not isinstance(text, str) or not text.strip():
            return text
        return node.get_content(metadata_mode=self.metadata_mode)

    def _returned(self, found: NodeWithScore, result: Reranked) -> NodeWithScore:
        added: dict[str, Any] = {}
        if self.keep_retrieval_score:
            added[RETRIEVAL_SCORE_KEY] = found.score
        if self.explain:
            added[EXPLANATION_KEY] = result.explanation
        node = _with_hidden(found.node, added) if added else found.node
        return found.model_copy(update={"node": node, "score": result.score})


class ColbertRerank(ColBERTRerank):
    """`ColBERTRerank` under the name and arguments of `llama-index-postprocessor-colbert-rerank`.

    `tokenizer` is accepted and ignored: a checkpoint brings its own.
    """

    model: PathText = "colbert-ir/colbertv2.0"
    """Hub id or local folder of the checkpoint."""

    @classmethod
    def class_name(cls) -> str:
        """The name this class is stored under."""
        return "ColbertRerank"

    @model_validator(mode="before")
    @classmethod
    def _without_old_arguments(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        if data.get("tokenizer") is not None:
            warnings.warn(
                "tokenizer is ignored, since the checkpoint brings its own; leave it out",
                DeprecationWarning,
                stacklevel=3,
            )
        fields = {name: value for name, value in data.items() if name != "tokenizer"}
        if fields.get("keep_retrieval_score", False) is None:
            fields["keep_retrieval_score"] = False
        return fields


def _with_hidden(node: BaseNode, added: Mapping[str, Any]) -> BaseNode:
    """A copy of the node with more metadata, which no model reads.

    The node itself may belong to a document store, and metadata is part of the text that is
    embedded and prompted with, unless its key is excluded.
    """
    return node.model_copy(
        update={
            "metadata": {**node.metadata, **added},
            "excluded_embed_metadata_keys": _both(node.excluded_embed_metadata_keys, added),
            "excluded_llm_metadata_keys": _both(node.excluded_llm_metadata_keys, added),
        }
    )


def _both(keys: Sequence[str], added: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*keys, *added]))
