"""`RemoteColBERT`: a model behind a server, to be used like one in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never, Self

from colbert_rag.inputs import TextLike, TextList, check_query, read_lists, read_text, read_texts
from colbert_rag.progress import progress_bar
from colbert_rag.ranking import Rankings
from colbert_rag.remote.answers import Scores, count, member
from colbert_rag.remote.description import describe, read_settings
from colbert_rag.remote.exchange import RETRIES, TIMEOUT, Plan, Server
from colbert_rag.remote.ranking import RemoteExplanation, RemoteRanking
from colbert_rag.remote.scoring import score_one, score_several
from colbert_rag.remote.vectors import encode
from colbert_rag.settings import Settings, read_top_k, refuse_unknown

if TYPE_CHECKING:
    from colbert_rag.embeddings import TokenEmbeddings
    from colbert_rag.scoring import KnownVectors


class RemoteColBERT:
    """A late-interaction model behind `colbert-rag serve`: its scores, and none of its weights.

    It goes wherever a `ColBERT` goes: into `colbert=` of a component, into `LocalIndex`. Ranking
    and scoring need no torch; vectors do. Any number of threads and event loops may use one
    instance, and all instances of a process share the connections to a server. What takes several
    requests, and what is refused for the moment, is asked for again by itself.

    Pickles without the key: where it is unpickled, the environment variable `COLBERT_RAG_API_KEY`
    has it.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ) -> None:
        """Say where the server is; nothing is asked yet.

        Args:
            address: Such as "http://127.0.0.1:8000".
            api_key: The key of the server; None takes that of the environment variable
                `COLBERT_RAG_API_KEY`, if there is one.
            timeout: Seconds that a request may take, with all its tries.
            retries: Tries after the first, where the server is not there or has too much to do.

        Raises:
            MissingExtraError: the extra `remote` is not installed.
            TypeError: an argument is of another type.
            ValueError: this is no address, or a number is out of range.
        """
        self._server = Server(base=address, api_key=api_key, timeout=timeout, retries=retries)
        self._described: Mapping[str, Any] | None = None

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._server.base

    @property
    def timeout(self) -> float:
        """Seconds that a request may take."""
        return self._server.timeout

    @property
    def settings(self) -> Settings:
        """How the server opened its model: paths and devices are the server's.

        Raises:
            ServerError: the server does not say; its subclass says why.
        """
        return read_settings(self._description(), self.address)

    @property
    def dim(self) -> int:
        """Width of a token vector."""
        return count(self._description(), "dim", self.address, least=1)

    @property
    def fingerprint(self) -> str:
        """Identifies the server's weights and recipe; asked for each time, as both may change."""
        self._described = None
        return str(member(self._description(), "fingerprint", str, self.address))

    @property
    def device(self) -> str:
        """Where the vectors are that arrive here: on the CPU, wherever the server computes."""
        return "cpu"

    def _description(self) -> Mapping[str, Any]:
        if self._described is None:
            self._described = self._server.run(describe(self.address))
        return self._described

    def rank(
        self,
        query: str,
        texts: Sequence[TextLike],
        *,
        top_k: int | None = None,
        known: KnownVectors | None = None,
        explain: bool = False,
        show_progress: bool = False,
        **unknown: Never,
    ) -> RemoteRanking:
        """Texts in the order of their MaxSim with a query, as `ColBERT.rank` gives them.

        Args:
            query: The query.
            texts: As in `ColBERT.rank`.
            top_k: Places to return; None for all.
            known: As in `ColBERT.rank`. What it finds is scored here, which needs torch, and the
                rest there.
            explain: Bring the explanations of all places along; else each is a request of its own.
            show_progress: Draw a progress bar on standard error.
            unknown: Refused, with the name that was probably meant.

        Raises:
            InvalidQueryError: the query is blank or not a string.
            ServerError: the server did not answer as it should; its subclass says why.
            TypeError: not a list of texts.
            ValueError: `top_k` is below 1, and there are texts.
        """
        names = ("top_k", "known", "explain", "show_progress")
        refuse_unknown("an argument of rank", unknown, known=names)
        if known is None:
            return self._server.run(self._rank(query, texts, top_k, explain, show_progress))
        from colbert_rag.remote.known import rank_known

        return rank_known(self, query, texts, known=known, top_k=top_k)

    async def arank(
        self,
        query: str,
        texts: Sequence[TextLike],
        *,
        top_k: int | None = None,
        explain: bool = False,
        show_progress: bool = False,
    ) -> RemoteRanking:
        """`rank`, without holding up the event loop or a thread."""
        return await self._server.arun(self._rank(query, texts, top_k, explain, show_progress))

    def _rank(
        self,
        query: str,
        texts: Sequence[TextLike],
        top_k: int | None,
        explain: bool,
        show_progress: bool,
    ) -> Plan[RemoteRanking]:
        check_query(query, texts)
        documents, items = read_texts(texts), tuple(texts)
        top_k = read_top_k(top_k, texts=len(documents))
        if not documents:
            return self._ranking(Scores(0, []), query, (documents, items), top_k)
        with progress_bar("Ranking documents", total=len(documents), show=show_progress) as bar:
            scores = yield from score_one(
                query, documents, where=self.address, top_k=top_k, explain=explain, bar=bar
            )
        return self._ranking(scores, query, (documents, items), top_k)

    def rank_many(
        self,
        queries: Sequence[str],
        texts: Sequence[TextLike | Sequence[TextLike]],
        *,
        top_k: int | None = None,
        known: KnownVectors | None = None,
        ready: Callable[[int, RemoteRanking], object] | None = None,
        show_progress: bool = False,
        **unknown: Never,
    ) -> list[RemoteRanking]:
        """Rank for many queries, as `ColBERT.rank_many` does; as few requests as the bounds allow.

        Args:
            queries: The queries; an empty list gives an empty list.
            texts: As in `ColBERT.rank_many`.
            top_k: Places of each ranking; None for all.
            known: As in `rank`.
            ready: Told the place of a query and its ranking, once all are there.
            show_progress: Draw a progress bar on standard error.
            unknown: Refused, with the name that was probably meant.

        Raises:
            InvalidQueryError: a query is blank or not a string.
            ServerError: the server did not answer as it should; its subclass says why.
            TypeError: neither a list of texts nor a list of lists, or a mixture of both.
            ValueError: there are more or fewer lists than queries, or `top_k` is below 1.
        """
        names = ("top_k", "known", "ready", "show_progress")
        refuse_unknown("an argument of rank_many", unknown, known=names)
        if known is None:
            rankings = self._server.run(self._rank_many(queries, texts, top_k, show_progress))
        else:
            read, lists = read_lists(queries, texts)
            rankings = Rankings(
                self.rank(query, items, top_k=top_k, known=known)  # type: ignore[arg-type]  # read
                for query, (_, items) in zip(read, lists, strict=True)
            )
        for place, ranking in enumerate(rankings):
            if ready is not None:
                ready(place, ranking)
        return rankings

    async def arank_many(
        self,
        queries: Sequence[str],
        texts: Sequence[TextLike | Sequence[TextLike]],
        *,
        top_k: int | None = None,
        show_progress: bool = False,
    ) -> list[RemoteRanking]:
        """`rank_many`, without holding up the event loop or a thread."""
        return await self._server.arun(self._rank_many(queries, texts, top_k, show_progress))

    def _rank_many(
        self,
        queries: Sequence[str],
        texts: Sequence[TextLike | Sequence[TextLike]],
        top_k: int | None,
        show_progress: bool,
    ) -> Plan[list[RemoteRanking]]:
        read, lists = read_lists(queries, texts)
        top_k = read_top_k(top_k, texts=sum(len(documents) for documents, _ in lists))
        asked = [place for place, (documents, _) in enumerate(lists) if documents]
        scores = dict.fromkeys(range(len(read)), Scores(0, []))
        if asked:
            documents = [lists[place][0] for place in asked]
            total = sum(map(len, documents))
            with progress_bar("Ranking documents", total=total, show=show_progress) as bar:
                found = yield from score_several(
                    [read[place] for place in asked],
                    documents,
                    where=self.address,
                    top_k=top_k,
                    bar=bar,
                )
            scores |= zip(asked, found, strict=True)
        return Rankings(
            self._ranking(scores[place], query, lists[place], top_k)
            for place, query in enumerate(read)
        )

    def _ranking(
        self, scores: Scores, query: str, texts: TextList, top_k: int | None
    ) -> RemoteRanking:
        documents, items = texts
        return RemoteRanking.of(
            scores, query=query, texts=documents, items=items, top_k=top_k, explain=self.explain
        )

    def score(
        self, query: str, texts: Sequence[TextLike], *, known: KnownVectors | None = None
    ) -> list[float]:
        """MaxSim of a query with each text, in input order, as `ColBERT.score` gives it."""
        return _in_order(self.rank(query, texts, known=known))

    async def ascore(self, query: str, texts: Sequence[TextLike]) -> list[float]:
        """`score`, without holding up the event loop or a thread."""
        return _in_order(await self.arank(query, texts))

    def explain(self, query: str, text: TextLike) -> RemoteExplanation:
        """Which token of a document each token of a query matched, and what that adds up to.

        Raises:
            InvalidQueryError: the query is blank or not a string.
            ServerAnswerError: the server does not explain.
            TypeError: the document has no text.
        """
        check_query(query, text, "text")
        return self.rank(query, [read_text(text)], explain=True).explain(0)

    def encode_queries(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of queries, float32, on the CPU; this needs torch.

        Raises:
            InvalidQueryError: a query is blank.
            ServerError: the server did not answer as it should; its subclass says why.
            TypeError: not a list of strings.
        """
        queries = read_texts(texts)
        for query in queries:
            check_query(query)
        return self._encode(queries, "query", show_progress)

    def encode_documents(
        self, texts: Sequence[TextLike], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of documents, as `ColBERT.encode_documents` cuts them; needs torch.

        Raises:
            ServerError: the server did not answer as it should; its subclass says why.
            TypeError: not a list of texts.
        """
        return self._encode(read_texts(texts), "document", show_progress)

    def _encode(self, texts: Sequence[str], kind: str, show: bool) -> TokenEmbeddings:
        plan = encode(texts, kind, where=self.address, dim=self.dim, show_progress=show)
        return self._server.run(plan)

    def __copy__(self) -> Self:
        """The same one: nothing in it changes."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """The same one: nothing in it changes."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by address: never the key."""
        return (_restored, (self.address, self.timeout, self._server.retries))

    def __repr__(self) -> str:
        """Where it is."""
        return f"{type(self).__name__}({self.address!r})"


def _restored(address: str, timeout: float, retries: int) -> RemoteColBERT:
    return RemoteColBERT(address, timeout=timeout, retries=retries)


def _in_order(ranking: RemoteRanking) -> list[float]:
    return [place.score for place in sorted(ranking, key=lambda place: place.index)]
