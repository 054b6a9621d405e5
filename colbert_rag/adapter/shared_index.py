"""The field that names an index, and the index files that this process has open."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from colbert_rag.adapter.model import SharedModel, path_as_text
from colbert_rag.colbert import ColBERT
from colbert_rag.index import Index, IndexInfo, LocalIndex

MEMORY = ":memory:"


def path_of(index: object) -> str | None:
    """What names an index outside this process: the file of a `LocalIndex`, else nothing."""
    if isinstance(index, LocalIndex):
        index = index.name
    return index if isinstance(index, str) and index != MEMORY else None


IndexField: TypeAlias = Annotated[
    str | SkipJsonSchema[Index] | None,
    BeforeValidator(path_as_text),
    PlainSerializer(path_of, return_type=str | None),
]


class _Holder:
    """Keeps an open index alive for one component; a copy of the component finds it again."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.index: LocalIndex | None = None

    def __eq__(self, other: object) -> bool:
        """Nothing here tells two components apart."""
        return isinstance(other, _Holder)

    __hash__ = None  # type: ignore[assignment]  # equal whatever it holds

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle empty."""
        return (_Holder, ())


class SharedIndex(SharedModel):
    """The public fields that name an index and its model, which are those of the file by default.

    Components that name the same file and model share the open index.
    """

    index: IndexField = None
    """File of a `LocalIndex`, or an open index of any kind. Of an index that is open, no more than
    the path is pickled or stored."""

    _held: _Holder = PrivateAttr(default_factory=_Holder)

    @model_validator(mode="before")
    @classmethod
    def _follow_index(cls, data: object) -> object:
        """Take from the index what is not said about the model.

        Whether the rest fits is seen when the model is there: a model may have moved, or changed.
        """
        if not isinstance(data, dict) or data.get("colbert") is not None:
            return data
        index = path_as_text(data.get("index"))
        info = read_info(index) if isinstance(index, str) else getattr(index, "info", None)
        if not isinstance(info, IndexInfo):
            return data
        return {"model": info.checkpoint, **info.recipe, **data}

    def unload(self) -> None:
        """Give back the memory of the weights, and of the index unless others use its file too.

        The next query loads them again.
        """
        super().unload()
        self._held.index = None

    @property
    def _model(self) -> ColBERT:
        """The model, which must be able to do more than rank.

        Raises:
            TypeError: the given model is of another kind.
        """
        if isinstance(ranker := self.ranker, ColBERT):
            return ranker
        raise TypeError(
            f"colbert is {type(ranker).__name__}, expected a ColBERT: an index holds its vectors"
        )

    def _open_index(self, colbert: ColBERT, *, create: bool = False) -> Index:
        """The index, for a model.

        Raises:
            FileNotFoundError: there is no such file, and `create` is not set.
            IndexMismatchError: the index was made by another model.
            ValueError: no index is named.
        """
        if self.index is None:
            raise ValueError("no index is named: set index")
        if isinstance(self.index, str):
            self._held.index = index = _open_file(self.index, colbert, create=create)
            return index
        info = self.index.info
        info.check(
            IndexInfo.of(colbert, token_pooling=info.token_pooling),
            f"the given {type(self.index).__name__}",
        )
        return self.index

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle an index by its path; one that has none stays behind."""
        # A copy, since LlamaIndex takes what cannot be pickled away from the object itself.
        bare = self.__copy__()
        bare.__dict__["index"] = path_of(self.index)
        return super(SharedIndex, bare).__getstate__()


def read_info(path: str) -> IndexInfo | None:
    """Which model made the index in a file; None where there is no file, or an empty one.

    Raises:
        IndexCorruptError: the file is damaged, or no index.
        IndexStorageError: the file cannot be opened.
    """
    if path == MEMORY:
        return None
    try:
        with LocalIndex(path, read_only=True) as index:
            return index.info
    except FileNotFoundError:
        return None


_Identity: TypeAlias = tuple[int, int]
_open: weakref.WeakValueDictionary[tuple[_Identity, ColBERT], LocalIndex] = (
    weakref.WeakValueDictionary()
)
_guard = threading.Lock()


def _open_file(path: str, colbert: ColBERT, *, create: bool) -> LocalIndex:
    """The process's one index on a file, for a model; it closes when no component holds it."""
    with _guard:
        identity = _identity(path)
        if identity is None and not create:
            raise FileNotFoundError(f"there is no index at {path}")
        index = None if identity is None else _open.get((identity, colbert))
        if index is None:
            index = LocalIndex(path, colbert)
            identity = _identity(path)
            if identity is not None:
                _open[identity, colbert] = index
        return index


def _identity(path: str) -> _Identity | None:
    """Tells files apart whatever their names: one that was replaced is another."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _forget() -> None:
    """In a forked process: connections do not survive it, and the guard may be locked for ever."""
    global _guard
    _guard = threading.Lock()
    _open.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget)
