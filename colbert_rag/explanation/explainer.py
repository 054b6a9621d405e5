"""Explains the places of a ranking, with the vectors that ranked them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from colbert_rag.explanation.explanation import Explanation
from colbert_rag.tokenizer import Span, TextTokenizer


class Model(Protocol):
    """What is asked of a model; `ColBERT` is one."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """What made the tokens."""

    def explain(self, query: str, text: str) -> Explanation:
        """Explain any score."""


@dataclass(frozen=True, eq=False, slots=True)
class Explainer:
    """Explains scores of one query.

    Attributes:
        model: What computed the scores.
        query: The query.
        vectors: Those of the query, `(query_rows, dim)`.
        kept: Those of some documents, or of their best windows, by position in the input. Others
            are computed again, or come from the model's document cache.
    """

    model: Model
    query: str
    vectors: Tensor
    kept: Mapping[int, Tensor]

    def __call__(self, index: int, text: str, window: Span | None) -> Explanation:
        """Explain the score of one text.

        Args:
            index: Its position in the input.
            text: The text.
            window: Which part of it has this score; None for all of it.
        """
        document = self.kept.get(index)
        if document is None:
            return self.model.explain(self.query, text)
        return Explanation.of(
            self.query,
            text,
            vectors=(self.vectors, document),
            tokenizer=self.model.tokenizer,
            window=window,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Explainer:
        """The same one: nothing in it changes."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as None: a stored ranking should neither carry vectors nor load a model."""
        return (type(None), ())
