"""What an index promises, what it needs of a model, and what it remembers of the model it had."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import IndexCorruptError, IndexMismatchError
from colbert_rag.index.documents import Changes, Document, DocumentLike, Hit, Json
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


class ModelSettings(Protocol):
    """How a model was asked for."""

    @property
    def checkpoint(self) -> str:
        """Hub id or folder."""
        ...


class Encoder(Protocol):
    """What an index needs of a model; `ColBERT` is one."""

    @property
    def settings(self) -> ModelSettings:
        """How the model was asked for."""
        ...

    @property
    def dim(self) -> int:
        """Width of a token vector."""
        ...

    @property
    def device(self) -> str:
        """Where the model computes."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for models whose vectors may be mixed."""
        ...

    def encode_queries(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of queries."""
        ...

    def encode_documents(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        """Token vectors of documents."""
        ...


@dataclass(frozen=True, slots=True)
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
    def of(cls, colbert: Encoder, *, token_pooling: float | None = None) -> IndexInfo:
        """What an index made by `colbert` records."""
        settings = colbert.settings
        defaults = {option.name: option.default for option in fields(Settings)}
        options = {name: getattr(settings, name, defaults[name]) for name in RECIPE_OPTIONS}
        recipe = {name: value for name, value in options.items() if value != defaults[name]}
        # Through JSON and back, so that what was just made equals what is read again.
        recipe = json.loads(json.dumps(recipe))
        return cls(settings.checkpoint, colbert.fingerprint, colbert.dim, recipe, token_pooling)

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
            pooling = record["token_pooling"]
            return cls(
                str(record["checkpoint"]),
                str(record["fingerprint"]),
                int(str(record["dim"])),
                dict(record["recipe"]),  # type: ignore[arg-type]  # the except clause checks
                None if pooling is None else float(str(pooling)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IndexCorruptError(
                f"{where} does not say which model made it ({error!r}): found {dict(record)}"
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

    def _model(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.recipe.items())
        return f"{self.checkpoint}{options} (width {self.dim}, fingerprint {self.fingerprint[:12]})"


def resolve_info(
    stored: IndexInfo | None,
    colbert: Encoder | None,
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
    if token_pooling is not None and not token_pooling >= 1:
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
        known.check(
            IndexInfo(known.checkpoint, known.fingerprint, known.dim, known.recipe, token_pooling),
            where,
        )
    return known


@runtime_checkable
class Index(Protocol):
    """Searchable documents: `LocalIndex` in one file, `QdrantIndex` on a server."""

    @property
    def info(self) -> IndexInfo:
        """Which model made the index."""
        ...

    def add(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_size: int = 256,
        show_progress: bool = False,
    ) -> Changes:
        """Encode and store documents; a known id is replaced, an identical document skipped."""
        ...

    def add_encoded(self, documents: Sequence[Document], embeddings: TokenEmbeddings) -> Changes:
        """Store documents whose vectors exist already."""
        ...

    def update(self, documents: Iterable[DocumentLike], *, show_progress: bool = False) -> Changes:
        """Replace documents that the index holds."""
        ...

    def delete(self, ids: Iterable[str]) -> int:
        """Remove documents; returns how many there were."""
        ...

    def search(
        self, query: str, k: int = 10, filter: Mapping[str, object] | None = None
    ) -> list[Hit]:
        """The `k` best documents that pass the filter, best first."""
        ...

    def search_many(
        self, queries: Sequence[str], k: int = 10, filter: Mapping[str, object] | None = None
    ) -> list[list[Hit]]:
        """`search` for several queries at once."""
        ...

    def search_embeddings(
        self, queries: TokenEmbeddings, k: int = 10, filter: Mapping[str, object] | None = None
    ) -> list[list[Hit]]:
        """`search_many` for queries that are encoded already."""
        ...

    def get(self, ids: Iterable[str]) -> list[Document]:
        """Documents by id, in the order asked for."""
        ...

    def embeddings(self, ids: Iterable[str]) -> TokenEmbeddings:
        """Stored vectors by id, in the order asked for; float16, on the CPU."""
        ...

    def embeddings_for(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Stored vectors of those of the texts that the index holds; float16, on the CPU."""
        ...

    def encoded(self, batch_size: int = 256) -> Iterator[tuple[list[Document], TokenEmbeddings]]:
        """Everything the index holds, in order of insertion, batch by batch."""
        ...

    def count(self) -> int:
        """How many documents the index holds."""
        ...

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order of insertion."""
        ...

    def compact(self) -> None:
        """Give back the space of what was removed."""
        ...

    def close(self) -> None:
        """Release what the index holds; it cannot be used afterwards."""
        ...
