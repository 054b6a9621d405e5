"""What an index remembers of the model that made it, and whether another one fits."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from textwrap import shorten

from colbert_rag.errors import IndexCorruptError, IndexMismatchError
from colbert_rag.index.documents import Json
from colbert_rag.model import Model
from colbert_rag.settings import Settings

# The options of `ColBERT.from_pretrained` that change a token vector.
RECIPE_OPTIONS = (
    "revision",
    "query_marker",
    "document_marker",
    "query_length",
    "document_length",
    "query_expansion",
    "attend_to_expansion",
    "skiplist",
    "language",
    "raw_token_embeddings",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo:
    """Which model made an index, and how.

    Attributes:
        checkpoint: Hub id or folder of the model.
        fingerprint: Of its weights and recipe.
        dim: Width of a token vector.
        recipe: Options the model was opened with beside the checkpoint:
            `ColBERT.from_pretrained(info.checkpoint, **info.recipe)` opens it again.
        token_pooling: Tokens merged into one stored vector, on average; None keeps every token.
    """

    checkpoint: str
    fingerprint: str
    dim: int
    recipe: Mapping[str, Json]
    token_pooling: float | None = None

    @classmethod
    def of(cls, colbert: Model, *, token_pooling: float | None = None) -> IndexInfo:
        """What an index made by `colbert` records."""
        settings = colbert.settings
        defaults = {option.name: option.default for option in fields(Settings)}
        options = {name: getattr(settings, name, defaults[name]) for name in RECIPE_OPTIONS}
        recipe = {name: value for name, value in options.items() if value != defaults[name]}
        # Through JSON and back, so that what was just made equals what is read again.
        recipe = json.loads(json.dumps(recipe))
        return cls(
            checkpoint=settings.checkpoint,
            fingerprint=colbert.fingerprint,
            dim=colbert.dim,
            recipe=recipe,
            token_pooling=token_pooling,
        )

    def to_json(self) -> dict[str, Json]:
        """The record that an index keeps."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, record: Mapping[str, Json], where: str) -> IndexInfo:
        """Read the record that an index kept.

        Raises:
            IndexCorruptError: it is not one.
        """
        try:
            pooling, dim = record["token_pooling"], int(str(record["dim"]))
            token_pooling = None if pooling is None else float(str(pooling))
            if not 1 <= dim < 2**31 or not 1 <= (token_pooling or 1) < math.inf:
                raise ValueError("a width or a pooling that no index has")
            return cls(
                checkpoint=str(record["checkpoint"]),
                fingerprint=str(record["fingerprint"]),
                dim=dim,
                recipe=dict(record["recipe"]),  # type: ignore[arg-type]  # the except clause checks
                token_pooling=token_pooling,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IndexCorruptError(
                f"{where} does not say which model made it ({shorten(repr(error), 200)}): found "
                f"{shorten(repr(record), 500)}"
            ) from error

    def check(self, other: IndexInfo, where: str) -> None:
        """Refuse vectors of `other` beside the ones made under this record.

        Raises:
            IndexMismatchError: weights, recipe, width or pooling differ; names both.
        """
        if (self.fingerprint, self.dim) != (other.fingerprint, other.dim):
            raise IndexMismatchError(
                f"{where} was made by {self._model()}, but it is being opened with "
                f"{other._model()}. Open it with the model it was made by, or make a new index"
            )
        if self.token_pooling != other.token_pooling:
            raise IndexMismatchError(
                f"{where} was made with token_pooling={self.token_pooling}, found "
                f"token_pooling={other.token_pooling}. Leave it out to follow the index, or make a "
                "new one"
            )

    def check_model(self, colbert: Model) -> None:
        """Refuse what a model has just encoded, if it is no longer the one of this record.

        After the encoding, not before: that may have loaded files which were changed meanwhile.

        Raises:
            IndexMismatchError: its weights or its recipe are others by now.
        """
        if colbert.fingerprint != self.fingerprint:
            raise IndexMismatchError(
                f"the index was made by {self._model()}, but the model's files were changed and it "
                f"was loaded again: it is {IndexInfo.of(colbert)._model()} now. Bring the files "
                "back and unload() the model, or make a new index"
            )

    def _model(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.recipe.items())
        return f"{self.checkpoint}{options} (width {self.dim}, fingerprint {self.fingerprint[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStats:
    """How much an index holds; None is not known without reading everything.

    Attributes:
        documents: Documents.
        tokens: Stored token vectors.
        bytes: Bytes on disk, deleted documents that are not compacted yet included.
        shared_bytes: Bytes beside it of the copy of its vectors that processes share, if there is
            one (`LocalIndex`).
        level_bytes: Bytes beside it of the level that large searches go by, if there is one
            (`LocalIndex`).
        vectors: How vectors are stored.
        vector_bytes: Bytes of one stored vector.
        mapped_bytes: Of vectors that this process maps, and shares with others (`LocalIndex`).
        held_bytes: Of vectors in this process's own memory, or on its device (`LocalIndex`).
    """

    documents: int
    tokens: int | None = None
    bytes: int | None = None
    shared_bytes: int | None = None
    level_bytes: int | None = None
    vectors: str | None = None
    vector_bytes: int | None = None
    mapped_bytes: int | None = None
    held_bytes: int | None = None


def resolve_info(
    stored: IndexInfo | None,
    colbert: Model | None,
    like: IndexInfo | None,
    token_pooling: float | None,
    where: str,
) -> IndexInfo:
    """The one record that store, model, `like` and `token_pooling` agree on.

    Raises:
        IndexMismatchError: two of them disagree.
        TypeError: `colbert` is the name of a model.
        ValueError: nothing says which model a new index is for, or `token_pooling` is below 1.
    """
    if isinstance(token_pooling, bool) or not (
        token_pooling is None or 1 <= token_pooling < math.inf
    ):
        raise ValueError(f"token_pooling is {token_pooling}, expected at least 1, or None")
    if isinstance(colbert, str | os.PathLike):
        raise TypeError(
            f"colbert is {os.fspath(colbert)!r}, expected a model: "
            "ColBERT.from_pretrained(...) or shared_colbert(...)"
        )
    known = stored or like
    if known is None:
        if colbert is None:
            raise ValueError(
                f"{where} is a new index, and nothing says which model it is for: pass colbert, "
                "or like=other_index.info"
            )
        return IndexInfo.of(colbert, token_pooling=token_pooling)
    if like is not None:
        known.check(like, where)
    if colbert is not None:
        known.check(IndexInfo.of(colbert, token_pooling=known.token_pooling), where)
    if token_pooling is not None and token_pooling != known.token_pooling:
        known.check(replace(known, token_pooling=token_pooling), where)
    return known
