"""What a server answers from the model: rankings, scores and vectors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from typing import Any

from colbert_rag.colbert import ColBERT
from colbert_rag.encoder import default_batch_tokens
from colbert_rag.errors import ScoringError
from colbert_rag.explanation import Explanation
from colbert_rag.index import Hit
from colbert_rag.ranking import Ranked, Ranking
from colbert_rag.remote.wire import FLOAT, pack_rows
from colbert_rag.server.bodies import Body, Explain, Pooling, Rerank, Scale, Score
from colbert_rag.server.errors import ApiError
from colbert_rag.server.limits import Limits

Json = dict[str, Any]

SECRET = ("token", "cache_folder")
"""Settings that are not told to clients."""

CHARACTERS = 3
"""Characters of a token, at least, in an estimate of how much there is to encode."""

NUMBER = {"float": 12.0, "base64": FLOAT.itemsize * 4 / 3}
"""Bytes that a number of a vector takes in a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One model; its methods block, and may be called from any thread.

    Attributes:
        colbert: The model, loaded.
        names: What clients may call it; the first is what it calls itself.
        limits: What is refused.
        created: When the server started, in seconds since 1970.
    """

    colbert: ColBERT
    names: tuple[str, ...]
    limits: Limits
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def batch_tokens(self) -> int:
        """Tokens of one of the encoder's batches."""
        device = self.colbert.device.partition(":")[0]
        return self.colbert.settings.batch_tokens or default_batch_tokens(device)

    def check_model(self, body: Body) -> None:
        """Refuse the name of another model, whose scores would be expected.

        Raises:
            ApiError: it is not served here (404).
        """
        if body.model is not None and body.model not in self.names:
            raise ApiError(
                404,
                f"this server has no model of that name, expected {self.names[0]!r} or no model "
                "at all; its option --name gives it more names",
                code="model_not_found",
                param="model",
            )

    def check_texts(self, texts: Iterable[str], name: str) -> None:
        """Refuse a text that is too long to be a document.

        Raises:
            ApiError: one is longer than `limits.characters` (413).
        """
        longest = max(map(len, texts), default=0)
        if longest > self.limits.characters:
            raise ApiError(
                413,
                f"a text in {name} has {longest:,} characters, expected {self.limits.characters:,} "
                "at most: split it (--max-characters)",
                code="text_too_long",
                param=name,
            )

    def check_count(self, count: int, limit: int, name: str, option: str) -> None:
        """Refuse more texts than one request may hold.

        Raises:
            ApiError: there are more than `limit` (413).
        """
        if count > limit:
            raise ApiError(
                413,
                f"{name} holds {count:,} texts, expected {limit:,} at most: send several requests "
                f"({option})",
                code="too_many_texts",
                param=name,
            )

    def check_explained(self, count: int, explain: Explain) -> None:
        """Refuse explanations of more results than one response should hold.

        Raises:
            ApiError: there are more than `limits.explained` (400).
        """
        if explain and count > self.limits.explained:
            raise ApiError(
                400,
                f"explain asks for up to {count:,} explanations, expected "
                f"{self.limits.explained} at most: ask for fewer results",
                code="too_many_explanations",
                param="explain",
            )

    def tokens(self, texts: Iterable[str]) -> int:
        """About how many tokens there are to encode, where none of the texts is known."""
        length = self.colbert.tokenizer.rules("document").length
        return sum(min(len(text) // CHARACTERS + 1, length) for text in texts)

    def models(self) -> Json:
        """What OpenAI's clients list, and what a client needs to stand for the model."""
        settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.colbert.settings).items()
            if name not in SECRET
        }
        shared = {
            "object": "model",
            "owned_by": "colbert-rag",
            "created": self.created,
            "max_model_len": self.colbert.tokenizer.rules("document").length,
            "dim": self.colbert.dim,
            "fingerprint": self.colbert.fingerprint,
            "settings": settings,
            "device": self.colbert.device,
        }
        return {"object": "list", "data": [{"id": name, **shared} for name in self.names]}

    def check_rerank(self, body: Rerank) -> list[str]:
        """Refuse what is too much, and give all documents.

        Raises:
            ApiError: there is too much of something.
        """
        self.check_model(body)
        queries = body.asked
        texts = (
            [text for some in body.documents for text in some]
            if body.has_lists
            else list(body.documents)
        )
        results = len(texts) if body.has_lists else len(texts) * len(queries)
        if body.top_n:
            results = min(results, body.top_n * len(queries))
        self.check_count(len(queries), self.limits.queries, "queries", "--max-queries")
        self.check_count(len(texts), self.limits.documents, "documents", "--max-documents")
        self.check_texts(queries, body.field)
        self.check_texts(texts, "documents")
        self.check_explained(results, body.explain)
        if body.return_documents and not body.has_lists:
            self._check_repeated(texts, len(queries), body.top_n or len(texts))
        return texts

    def _check_repeated(self, texts: Sequence[str], queries: int, top: int) -> None:
        """Refuse an answer that would hold the texts of all queries, and so be many times the body.

        Args:
            texts: What is ranked for each query.
            queries: How many there are.
            top: Results of each.

        Raises:
            ApiError: the longest of the texts may not fit into one answer (413).
        """
        size = sum(nlargest(top, map(len, texts))) * queries
        if size > self.limits.response:
            raise ApiError(
                413,
                f"the documents' texts may come {queries:,} times, {size >> 20:,} MiB in one "
                f"answer, expected {self.limits.response >> 20} MiB at most: send return_documents "
                "as false, a smaller top_n, or fewer queries",
                code="answer_too_large",
                param="return_documents",
            )

    def rerank(self, body: Rerank) -> Json:
        """Documents in the order of their scores, for one query or for each of several."""
        top_k = body.top_n or None
        documents = body.documents
        if body.max_tokens_per_doc is not None:
            documents = self._cut(documents, body.max_tokens_per_doc)
        if body.queries is None:
            ranking = self.colbert.rank(body.query, documents, top_k=top_k)
            answer = self._ranked(ranking, body, body.documents)
        else:
            rankings = self.colbert.rank_many(body.queries, documents, top_k=top_k)
            own = body.documents if body.has_lists else [body.documents] * len(rankings)
            pairs = zip(rankings, own, strict=True)
            answer = {"data": [self._ranked(ranking, body, texts) for ranking, texts in pairs]}
        units = {"search_units": len(body.asked)}
        meta = {"api_version": {"version": "2"}, "billed_units": units}
        return {**self.head("rerank"), **answer, "meta": meta}

    def head(self, kind: str) -> Json:
        """How an answer begins."""
        return {"id": f"{kind}-{uuid.uuid4().hex}", "model": self.names[0]}

    def _ranked(self, ranking: Ranking, body: Rerank, texts: Sequence[str]) -> Json:
        results = []
        for position, place in enumerate(ranking):
            result: Json = {
                "index": place.index,
                "relevance_score": scaled(place, body.score),
            }
            # Not even as null where it was not asked for: some clients take it for a document.
            if body.return_documents:
                result["document"] = {"text": texts[place.index]}
            if body.explain:
                result["explanation"] = explained(ranking.explain(position), body.explain)
            results.append(result)
        return {"query_rows": ranking.query_rows, "results": results}

    def _cut(self, documents: list[Any], tokens: int) -> list[Any]:
        """Documents, or lists of them, without what follows so many tokens."""
        tokenizer, settings = self.colbert.tokenizer, self.colbert.settings
        if settings.long_documents == "truncate" and tokens >= tokenizer.room("document"):
            return documents
        if documents and isinstance(documents[0], list):
            return [self._cut(some, tokens) for some in documents]
        return [
            text[: starts[tokens]] if len(starts) > tokens else text
            for text, starts in zip(documents, tokenizer.starts(documents), strict=True)
        ]

    def check_score(self, body: Score) -> list[str]:
        """As `check_rerank`."""
        self.check_model(body)
        self.check_count(len(body.text_1), self.limits.documents, "text_1", "--max-documents")
        self.check_count(len(body.text_2), self.limits.documents, "text_2", "--max-documents")
        self.check_texts(body.text_1, "text_1")
        self.check_texts(body.text_2, "text_2")
        return [*body.text_1, *body.text_2]

    def score(self, body: Score) -> Json:
        """The score of each pair, in the order in which they came."""
        if len(body.text_1) == 1:
            rankings = [self.colbert.rank(body.text_1[0], body.text_2)]
        else:
            rankings = self.colbert.rank_many(body.text_1, [[text] for text in body.text_2])
        in_order = [
            scaled(place, body.score)
            for ranking in rankings
            for place in sorted(ranking, key=lambda place: place.index)
        ]
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(in_order)
        ]
        return {**self.head("score"), "object": "list", "created": int(time.time()), "data": data}

    def check_pooling(self, body: Pooling) -> list[str]:
        """As `check_rerank`, and refuse an answer that would be too large.

        Raises:
            ApiError: there is too much of something.
        """
        self.check_model(body)
        texts: list[str] = body.input
        self.check_count(len(texts), self.limits.documents, "input", "--max-documents")
        self.check_texts(texts, "input")
        rows = max(self.colbert.tokenizer.rules(body.input_type).length, 1)
        size = rows * self.colbert.dim * NUMBER[body.encoding_format]
        if (fit := int(self.limits.response // size)) < len(texts):
            hint = ', or encoding_format: "base64"' if body.encoding_format == "float" else ""
            raise ApiError(
                413,
                f"the vectors of {len(texts):,} texts may not fit into one answer, expected "
                f"{fit:,} texts at most{hint}",
                code="answer_too_large",
                param="input",
            )
        return texts

    def pooling(self, body: Pooling) -> Json:
        """Token vectors of texts."""
        if body.input_type == "query":
            encoded = self.colbert.encode_queries(body.input)
        else:
            encoded = self.colbert.encode_documents(body.input)
        vectors = [rows.float().cpu().numpy() for rows in encoded]
        packed = [
            pack_rows(rows) if body.encoding_format == "base64" else rows.tolist()
            for rows in vectors
        ]
        data = [
            {"index": index, "object": "pooling", "data": rows} for index, rows in enumerate(packed)
        ]
        rows = sum(map(len, vectors))
        usage = {"prompt_tokens": rows, "total_tokens": rows}
        head = self.head("pooling")
        return {**head, "object": "list", "created": int(time.time()), "data": data, "usage": usage}


def scaled(found: Ranked | Hit, score: Scale) -> float:
    """A score on the scale that was asked for; raises what `on_scale` does."""
    return on_scale(found.mean if score == "mean" else found.score, score)


def on_scale(value: float, score: Scale) -> float:
    """A score as clients expect it: a mean that rounding made larger than 1 is 1.

    Raises:
        ScoringError: it is not a number, which no client expects.
    """
    if value != value:
        raise ScoringError("a document has no score that is a number")
    return min(max(value, -1.0), 1.0) if score == "mean" else value


def explained(explanation: Explanation, how: Explain) -> Mapping[str, object]:
    """An explanation as JSON, and as the notebook shows it where that was asked for."""
    found = explanation.to_dict()
    return {**found, "html": explanation.to_html()} if how == "html" else found
