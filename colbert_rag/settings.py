"""Everything a caller may choose about a model, as one comparable value."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import SupportsIndex

DEFAULT_CHECKPOINT = "answerdotai/answerai-colbert-small-v1"
"""What adapters and the command line open when no checkpoint is named: 33M parameters, dim 96."""

OFFLINE_CHECKPOINT = "offline-minilm"
"""The name that opens the weights carried by the extra `offline`, without any model hub."""

LONG_DOCUMENTS = ("truncate", "windows")

DTYPES = ("auto", "float32", "bfloat16", "float16")

DOCUMENT_CACHE_BYTES = 256 * 2**20
"""Default size of the document embedding cache: about 4,500 documents of 150 tokens at dim 96."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One model as its caller described it; equal settings mean one shared instance.

    Field meanings are those of `ColBERT.from_pretrained`. Optional fields left at None follow the
    checkpoint.
    """

    checkpoint: str
    revision: str | None = None
    cache_folder: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False
    device: str | None = None
    dtype: str = "auto"
    query_marker: str | None = None
    document_marker: str | None = None
    query_length: int | None = None
    document_length: int | None = None
    query_expansion: bool | None = None
    attend_to_expansion: bool | None = None
    skiplist: tuple[str, ...] | None = None
    language: str | None = None
    raw_token_embeddings: bool = False
    allow_pickle: bool = False
    batch_tokens: int | None = None
    document_cache: int | None = DOCUMENT_CACHE_BYTES
    long_documents: str = "truncate"

    def __post_init__(self) -> None:
        """Refuse what no checkpoint could satisfy.

        Raises:
            TypeError: a field has the wrong type.
            ValueError: a number is out of range, or `dtype` is unknown.
        """
        if not isinstance(self.checkpoint, str) or not self.checkpoint.strip():
            raise TypeError(
                f"checkpoint is {self.checkpoint!r}, expected a hub id such as "
                f"{DEFAULT_CHECKPOINT!r} or a local folder"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.long_documents not in LONG_DOCUMENTS:
            raise ValueError(
                f"long_documents is {self.long_documents!r}, expected one of "
                f"{', '.join(LONG_DOCUMENTS)}"
            )
        for name, least in (
            ("query_length", 4),
            ("document_length", 4),
            ("batch_tokens", 1),
            ("document_cache", 0),
        ):
            if (number := getattr(self, name)) is not None:
                whole = whole_number(name, number, least=least)
                object.__setattr__(self, name, whole)
        if isinstance(self.skiplist, str):
            raise TypeError("skiplist is one string, expected a sequence of words, such as ['!']")

    @classmethod
    def normalised(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        cache_folder: str | os.PathLike[str] | None = None,
        skiplist: Sequence[str] | None = None,
        **options: object,
    ) -> Settings:
        """Bring every spelling of the same choice to one form.

        An existing folder becomes its absolute, resolved path; sequences become tuples.

        Raises:
            TypeError: an option is unknown or has the wrong type.
            ValueError: an option is out of range.
        """
        name = os.fspath(checkpoint) if isinstance(checkpoint, os.PathLike) else checkpoint
        if isinstance(name, str) and name.strip() and name != OFFLINE_CHECKPOINT:
            folder = Path(name).expanduser()
            if folder.exists():
                name = str(folder.resolve())
        if skiplist is not None and not isinstance(skiplist, str):
            skiplist = tuple(skiplist)
        folder_name = None if cache_folder is None else str(Path(cache_folder).expanduser())
        return cls(
            checkpoint=name,
            cache_folder=folder_name,
            skiplist=skiplist,  # type: ignore[arg-type]  # a str is refused in __post_init__
            **options,  # type: ignore[arg-type]  # checked by the dataclass and __post_init__
        )

    def with_device(self, device: str, dtype: str) -> Settings:
        """The same choice with device and dtype resolved, so that `None` and `"cpu"` are equal."""
        return replace(self, device=device, dtype=dtype)


def whole_number(name: str, value: object, *, least: int) -> int:
    """An argument as Python's own whole number.

    Raises:
        TypeError: it is none; numpy's are, and True is one only to Python.
        ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is {value!r}, expected a whole number")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} is {number}, expected at least {least}")
    return number
