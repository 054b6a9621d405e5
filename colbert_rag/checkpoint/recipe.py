"""Values that say how a checkpoint turns text into tokens, and tokens into vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TextRules:
    """The rules for one kind of text, queries or documents.

    Attributes:
        marker: The token inserted by id at position 1, as written in the vocabulary; "" for none.
        prompt: Text put in front of every text, before tokenising.
        length: Tokens of the finished sequence at most: specials, marker and prompt included.
    """

    marker: str
    prompt: str
    length: int


@dataclass(frozen=True, slots=True)
class Expansion:
    """Filling a query with a placeholder token, as ColBERT does with `[MASK]`.

    Attributes:
        length: Tokens a query has at least after filling.
        attends: Whether the encoder sees the filled positions. They are scored either way.
        token: The placeholder; None means the mask token, or the end token where there is none.
    """

    length: int
    attends: bool = False
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides ids and masks; `tokenizer.py` carries it out.

    Attributes:
        query: Rules for queries.
        document: Rules for documents.
        expansion: How queries are filled, or None.
        skiplist: Words whose tokens do not count in a score (punctuation, usually).
        skiplist_lookup: "entry" takes the vocabulary entry equal to the word (PyLate,
            sentence-transformers); "first-piece" takes the first piece the word tokenises to
            (Stanford). On WordPiece the two agree, on sentencepiece they do not.
        skiplist_on: Which texts the skip-list applies to.
        strips: Drop white space around a text.
        lowercases: Lower-case a text in Python, before the tokenizer sees it.
        padding_is_blank: A literal padding token in a text becomes the expansion token in a query
            and does not count in a document: Stanford's masks compare ids, not positions.
        skips_first: The first token of every text, query or document, does not count. The encoder
            sees it all the same (FlagEmbedding drops the row of `<s>`).
    """

    query: TextRules
    document: TextRules
    expansion: Expansion | None = None
    skiplist: tuple[str, ...] = ()
    skiplist_lookup: Literal["entry", "first-piece"] = "entry"
    skiplist_on: frozenset[str] = frozenset({"document"})
    strips: bool = False
    lowercases: bool = False
    padding_is_blank: bool = False
    skips_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One layer of the projection, described by what the files say.

    Computes `activation(x @ weight.T + bias)`, plus `x` or `x @ residual.T`.

    Attributes:
        in_features: Width that goes in, from the tensor.
        out_features: Width that comes out, from the tensor.
        weight: Stored name of the weight, `(out_features, in_features)`.
        file: The weight file, relative to the checkpoint.
        activation: Class name in `torch.nn`.
        bias: Stored name of the bias `(out_features,)`, or None.
        residual: "none", "identity", or the stored name of a `(out_features, in_features)` weight.
    """

    in_features: int
    out_features: int
    weight: str
    file: str
    activation: str = "Identity"
    bias: str | None = None
    residual: str = "none"
