"""What clients send. Unknown fields are ignored, as the servers do whose clients these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from colbert_rag.index.how import How
from colbert_rag.inputs import read_text, read_texts

Scale = Literal["mean", "sum"]
Explain = bool | Literal["html"]

TEXTS = "texts, or objects with a text"


class Body(BaseModel):
    """What all requests share.

    Attributes:
        model: The name of the model that is served; the one there is, where it is left out.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        """Null as absent: some clients send every field that they know."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class Scored(Body):
    """A request whose answer has scores.

    Attributes:
        score: "mean" is the mean similarity of the query's tokens, from -1 to 1; "sum" is ColBERT's
            own score.
    """

    score: Scale = "mean"


class Asking(Scored):
    """A request with a query, or several.

    Attributes:
        query: The query: a text, or an object with one.
        queries: Several, instead.
        explain: Whether results hold an explanation; "html" adds it as the notebook shows it.
    """

    query: Any = None
    queries: list[Any] | None = None
    explain: Explain = False

    @model_validator(mode="after")
    def _read_queries(self) -> Self:
        self.query, self.queries = _queries(self.query, self.queries)
        return self

    @property
    def asked(self) -> list[str]:
        """All queries."""
        return [self.query] if self.queries is None else self.queries

    @property
    def field(self) -> str:
        """Where they stand, for messages."""
        return "query" if self.queries is None else "queries"


class Rerank(Asking):
    """As Cohere's, Jina's and vLLM's clients send it.

    Attributes:
        documents: Texts, or objects with a `text`; with `queries` also a list of them for each.
        top_n: Results of each query; None and 0 for all.
        return_documents: Whether results hold their text; None leaves it to the path.
        max_tokens_per_doc: Cut documents after so many tokens, where the model reads more.
    """

    documents: list[Any] = Field(description=TEXTS)
    top_n: int | None = Field(default=None, ge=0)
    return_documents: bool | None = None
    max_tokens_per_doc: int | None = Field(default=None, ge=1)

    @property
    def has_lists(self) -> bool:
        """Whether each query has documents of its own."""
        return bool(self.documents) and isinstance(self.documents[0], list)

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.queries is not None and any(isinstance(item, list) for item in self.documents):
            self.documents = _lists(self.documents, len(self.queries))
        else:
            self.documents = _texts(self.documents, "documents")
        return self


class Score(Scored):
    """As vLLM's clients send it: one text with many, or pairs.

    Attributes:
        text_1: Queries; `queries` is another name of it.
        text_2: Documents; `documents` is another name of it.
    """

    text_1: Any = None
    text_2: Any = None
    queries: Any = None
    documents: Any = None

    @model_validator(mode="after")
    def _read(self) -> Self:
        first = self.queries if self.text_1 is None else self.text_1
        second = self.documents if self.text_2 is None else self.text_2
        self.text_1 = _texts(_listed(first, "text_1"), "text_1")
        for text in self.text_1:
            _asked(text, "text_1")
        self.text_2 = _texts(_listed(second, "text_2"), "text_2")
        if len(self.text_1) not in (1, len(self.text_2)):
            raise ValueError(
                f"text_1 holds {len(self.text_1)} texts and text_2 {len(self.text_2)}, expected "
                "one text with many, or as many of one as of the other"
            )
        return self


class Pooling(Body):
    """As vLLM's clients send it: texts, for their token vectors.

    Attributes:
        input: A text, or several.
        input_type: What they are encoded as.
        encoding_format: Numbers, or base64 of little-endian float32.
    """

    input: Any
    input_type: Literal["query", "document"] = "document"
    encoding_format: Literal["float", "base64"] = "float"

    @model_validator(mode="after")
    def _read(self) -> Self:
        self.input = _texts(_listed(self.input, "input"), "input")
        return self


class Search(Asking):
    """What to look for in the index.

    Attributes:
        k: Results of each query.
        filter: Which metadata a document must have.
        exact: Whether to look at every document; None leaves it to the index.
        effort: How far to look otherwise.
    """

    k: int = Field(default=10, ge=1)
    filter: dict[str, Any] | None = None
    exact: bool | None = Field(default=None, strict=True)
    effort: int | None = Field(default=None, strict=True)

    @model_validator(mode="after")
    def _check_how(self) -> Self:
        How.checked(self.exact, self.effort)
        return self


class Documents(BaseModel):
    """Documents to store: texts, or objects with `text` and perhaps `id` and `metadata`."""

    documents: list[Any]


class Deletion(BaseModel):
    """Which documents to remove: by their ids, or by their metadata."""

    ids: list[str] | None = None
    filter: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("expected either ids or a filter")
        return self


def _queries(query: object, queries: list[Any] | None) -> tuple[str | None, list[str] | None]:
    """One query or several, each as a text."""
    if (query is None) == (queries is None):
        raise ValueError("expected a query, or queries instead of it")
    if queries is None:
        return _asked(_text(query, "query"), "query"), None
    texts = [_text(item, f"queries[{place}]") for place, item in enumerate(queries)]
    return None, [_asked(text, f"queries[{place}]") for place, text in enumerate(texts)]


def _asked(query: str, name: str) -> str:
    """A query, which is refused here if it is blank: later, nothing knows its field."""
    if not query.strip():
        raise ValueError(f"{name} is empty or blank, expected some text to search for")
    return query


def _lists(documents: Sequence[Any], queries: int) -> list[list[str]]:
    """A list of texts for each query."""
    for place, item in enumerate(documents):
        if not isinstance(item, list):
            raise ValueError(
                f"documents[{place}] is no list, but another one is: expected a list for each "
                "query, or one list of texts for all of them"
            )
    if len(documents) != queries:
        raise ValueError(
            f"documents holds {len(documents)} lists for {queries} queries, expected one for each"
        )
    return [_texts(item, f"documents[{place}]") for place, item in enumerate(documents)]


def _listed(value: object, name: str) -> list[Any]:
    if value is None:
        raise ValueError(f"{name} is missing, expected a text or a list of texts")
    return value if isinstance(value, list) else [value]


def _texts(value: Sequence[Any], name: str) -> list[str]:
    """Texts, with pydantic told of errors in the one type it collects."""
    try:
        return read_texts(value, name)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _text(value: object, name: str) -> str:
    try:
        return read_text(value, name)
    except TypeError as error:
        raise ValueError(str(error)) from error
