"""The field that names an index, and the index files that this process has open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from colbert_rag.adapter.model import SharedModel, path_as_text
from colbert_rag.index.handle import MEMORY, Handle
from colbert_rag.index.info import IndexInfo
from colbert_rag.inputs import is_address
from colbert_rag.model import Model
from colbert_rag.registry import Registry
from colbert_rag.remote import RemoteIndex

if TYPE_CHECKING:  # who asks a server needs no torch
    from colbert_rag.index import Index, LocalIndex

_OPEN: Registry[tuple[int, int, int], LocalIndex] = Registry(weak=True)
"""Open files by device, inode and the `id` of the model, which the open index keeps alive."""


def path_of(index: object) -> str | None:
    """What names an index outside this process: a file, a server's address, or nothing."""
    if isinstance(index, RemoteIndex):
        return index.name
    if isinstance(index, Handle):
        from colbert_rag.index import LocalIndex

        index = index.name if isinstance(index, LocalIndex) else None
    return index if isinstance(index, str) and index != MEMORY else None


IndexField: TypeAlias = Annotated[
    str | SkipJsonSchema[Handle] | None,
    BeforeValidator(path_as_text),
    PlainSerializer(path_of, return_type=str | None),
]


@dataclass
class _Held:
    """Keeps a component's index open. Copies and pickles empty: a copy finds the open file again.

    Equal to every other holder: pydantic compares private attributes.
    """

    index: LocalIndex | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        """Without the index."""
        return (_Held, ())


class SharedIndex(SharedModel):
    """The public fields that name an index and its model, which are those of the file by default.

    Components that name the same file and model share the open index.
    """

    index: IndexField = None
    """File of a `LocalIndex`, the address of a server, or an open index of any kind. Of an index
    that is open, no more than the path or address is pickled or stored."""

    _held: _Held = PrivateAttr(default_factory=_Held)

    @model_validator(mode="before")
    @classmethod
    def _follow_index(cls, data: object) -> object:
        """Take from the index what its caller left open about the model.

        Whether the rest fits is seen when the model is there: a model may have moved, or changed.
        """
        if not isinstance(data, dict) or data.get("colbert") is not None:
            return data
        index = path_as_text(data.get("index"))
        if is_address(index) or isinstance(index, RemoteIndex):
            # The model is there, too; which one it is, is not worth a request here.
            return data | {"model": path_of(index)} if _follows(data.get("model")) else data
        if is_address(data.get("model")):
            return data
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

    def _open_index(self, model: Model, *, create: bool = False) -> Index:
        """The index, for a model.

        Raises:
            FileNotFoundError: there is no such file, and `create` is not set.
            IndexMismatchError: the index was made by another model.
            ValueError: no index is named.
        """
        from colbert_rag.index import Index

        if self.index is None:
            raise ValueError("no index is named: set index")
        if isinstance(self.index, str):
            self._held.index = index = _open_file(self.index, model, create=create)
            return index
        assert isinstance(self.index, Index)  # nothing else is a handle, but for a `RemoteIndex`
        info = self.index.info
        info.check(
            IndexInfo.of(model, token_pooling=info.token_pooling),
            f"the given {type(self.index).__name__}",
        )
        return self.index

    def _remote_index(self) -> RemoteIndex | None:
        """The index, if it is a server's."""
        if not is_address(self.index):
            return self.index if isinstance(self.index, RemoteIndex) else None
        return RemoteIndex(self.index, api_key=self._key(), timeout=self.timeout)

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle an index by its path; one that has none stays behind, and so does a key."""
        # A copy, since LlamaIndex takes what cannot be pickled away from the object itself.
        bare = self.__copy__()
        bare.__dict__["index"] = path_of(self.index)
        bare.__dict__["api_key"] = None
        return super(SharedIndex, bare).__getstate__()


def _follows(model: object) -> bool:
    """Whether a field leaves it to the index which model is used, as another address does."""
    return model is None or is_address(model)


def read_info(path: str) -> IndexInfo | None:
    """Which model made the index in a file; None where there is no file, or an empty one.

    Raises:
        IndexCorruptError: the file is damaged, or no index.
        IndexStorageError: the file cannot be opened.
    """
    if path == MEMORY:
        return None
    from colbert_rag.index import LocalIndex

    try:
        with LocalIndex(path, read_only=True) as index:
            return index.info
    except FileNotFoundError:
        return None


def _open_file(path: str, model: Model, *, create: bool) -> LocalIndex:
    """The process's one index on a file, for a model; it closes when no component holds it."""
    from colbert_rag.index import LocalIndex

    file = Path(path)
    # A file has no inode before it is there. Of two threads that make it, one gives its index up.
    made = LocalIndex(path, model) if create and not file.exists() else None
    try:
        status = file.stat()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no index at {path}") from error
    # By inode and not by path: a file that was replaced by another is opened anew.
    key = (status.st_dev, status.st_ino, id(model))
    return _OPEN.get(key, lambda: LocalIndex(path, model) if made is None else made)
