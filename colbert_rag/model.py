"""What the rest of the package needs of a model: the seam at which another kind can dock.

`ColBERT` is such a model, in this process. One behind a server can be another: nothing here asks
for weights, a tokenizer or a local folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from colbert_rag.settings import Settings

if TYPE_CHECKING:  # a name alone must load neither torch nor a tokenizer
    from colbert_rag.embeddings import TokenEmbeddings
    from colbert_rag.ranking import Ranking
    from colbert_rag.scoring import KnownVectors


@runtime_checkable
class Ranker(Protocol):
    """What a reranker needs."""

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        show_progress: bool = False,
    ) -> Ranking:
        """Order the texts by their score for the query, best first."""


@runtime_checkable
class ManyRanker(Ranker, Protocol):
    """A reranker's model that ranks for many queries better than one after another."""

    def rank_many(
        self,
        queries: Sequence[str],
        texts: Sequence[Sequence[str]],
        *,
        top_k: int | None = None,
        known: KnownVectors | None = None,
        show_progress: bool = False,
    ) -> Sequence[Ranking]:
        """Order each query's texts as `rank` does; a component asks it where it has several."""


@runtime_checkable
class AsyncRanker(ManyRanker, Protocol):
    """A reranker's model that is elsewhere: it can be awaited, and told what it shall explain.

    What is not explained along with the scores would be a request of its own.
    """

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        explain: bool = False,
        show_progress: bool = False,
    ) -> Ranking:
        """Order the texts as a `Ranker` does, perhaps with the explanations of all places."""

    async def arank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        explain: bool = False,
        show_progress: bool = False,
    ) -> Ranking:
        """`rank`, without holding up the event loop or a thread."""

    async def arank_many(
        self,
        queries: Sequence[str],
        texts: Sequence[Sequence[str]],
        *,
        top_k: int | None = None,
        show_progress: bool = False,
    ) -> Sequence[Ranking]:
        """`rank_many`, without holding up the event loop or a thread."""


@runtime_checkable
class Model(Ranker, Protocol):
    """What an index and its retriever need, and a reranker that takes vectors from an index."""

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        known: KnownVectors | None = None,
        show_progress: bool = False,
    ) -> Ranking:
        """Order the texts as a `Ranker` does; `known` finds vectors that need not be made again."""

    @property
    def settings(self) -> Settings:
        """How the model was asked for: an index records the checkpoint and the recipe."""

    @property
    def dim(self) -> int:
        """Width of a token vector."""

    @property
    def device(self) -> str:
        """Where its vectors are, and searches compute."""

    @property
    def fingerprint(self) -> str:
        """Equal for models whose vectors may be mixed."""

    def encode_queries(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of queries."""

    def encode_documents(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of documents."""
