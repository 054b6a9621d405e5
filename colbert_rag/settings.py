"""Everything a caller may choose about a model, as one comparable value."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, SupportsIndex, TypedDict, Unpack

DEFAULT_CHECKPOINT = "answerdotai/answerai-colbert-small-v1"
"""What adapters and the command line open when no checkpoint is named: 33M parameters, dim 96."""

OFFLINE_CHECKPOINT = "offline-minilm"
"""The name that opens the weights carried by the extra `offline`, without any model hub."""

LONG_DOCUMENTS = ("truncate", "windows")

DTYPES = ("auto", "float32", "bfloat16", "float16")

DOCUMENT_CACHE_BYTES = 256 * 2**20
"""Default size of the document embedding cache: about 4,500 documents of 150 tokens at dim 96."""


class ModelOptions(TypedDict, total=False):
    """What a caller may choose about a model beside its checkpoint; `Settings` explains each."""

    revision: str | None
    cache_folder: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool
    device: str | None
    dtype: str
    query_marker: str | None
    document_marker: str | None
    query_length: int | None
    document_length: int | None
    query_expansion: bool | None
    attend_to_expansion: bool | None
    skiplist: Sequence[str] | None
    language: str | None
    raw_token_embeddings: bool
    allow_pickle: bool
    batch_tokens: int | None
    document_cache: int | None
    long_documents: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One model as its caller described it; equal settings mean one shared instance.

    Options left at None follow the checkpoint, or the machine.

    Attributes:
        checkpoint: A hub id, a local folder, or "offline-minilm".
        revision: Branch, tag or commit of the hub repository.
        cache_folder: Where downloads are kept; None is the hub's own cache.
        token: Access token of the hub; None uses the one you logged in with.
        local_files_only: Never use the network.
        device: Such as "cpu", "cuda:1" or "mps"; None takes CUDA, else MPS, else the CPU.
        dtype: "auto" is the fastest type the device computes natively (bfloat16 or float32), or
            what the environment variable COLBERT_RAG_AUTO_DTYPE says; "float32" is exact.
        query_marker: Vocabulary entry inserted into queries; "" for none.
        document_marker: Vocabulary entry inserted into documents; "" for none.
        query_length: Tokens of a query at most, specials and marker included.
        document_length: Tokens of a document at most, specials and marker included.
        query_expansion: Whether queries are filled up with the mask token.
        attend_to_expansion: Whether the encoder sees those tokens.
        skiplist: Words of documents that do not count in a score.
        language: Language adapter of an XMOD backbone, such as "en_XX".
        raw_token_embeddings: Use a plain encoder's own token vectors, without a projection.
        allow_pickle: Read `pytorch_model.bin`, as plain tensors only.
        batch_tokens: Tokens per forward pass; bounds memory.
        document_cache: Bytes of document vectors kept for later calls; None or 0 for none.
        long_documents: What `score` and `rank` do with a document longer than the document length:
            "truncate" it, or score it by its best overlapping piece ("windows").
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
        cls, checkpoint: str | os.PathLike[str], **options: Unpack[ModelOptions]
    ) -> Settings:
        """Bring every spelling of the same choice to one form.

        An existing folder becomes its absolute, resolved path; sequences become tuples.

        Raises:
            TypeError: an option is unknown or has the wrong type.
            ValueError: an option is out of range.
        """
        chosen: dict[str, Any] = dict(options)
        refuse_unknown("an option of a model", chosen, known=ModelOptions.__annotations__)
        name = os.fspath(checkpoint) if isinstance(checkpoint, os.PathLike) else checkpoint
        if isinstance(name, str) and name.strip() and name != OFFLINE_CHECKPOINT:
            folder = existing(name)
            name = name if folder is None else str(folder.resolve())
        if chosen.get("cache_folder") is not None:
            # Not that of `Path`, which raises where there is no such user.
            chosen["cache_folder"] = os.path.expanduser(chosen["cache_folder"])  # noqa: PTH111
        if not isinstance(chosen.get("skiplist"), str | None):
            chosen["skiplist"] = tuple(chosen["skiplist"])
        return cls(checkpoint=name, **chosen)


def existing(name: str) -> Path | None:
    """The file or folder of that name, if there is one."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, "~nobody"
        return None


OTHER_WORDS = {
    "k": ("top_k", "top_n"),
    "limit": ("top_k", "top_n", "k"),
    "top_k": ("top_n", "k", "similarity_top_k"),
    "top_n": ("top_k", "k", "similarity_top_k"),
    "max_length": ("document_length",),
}
"""What other packages, or other parts of this one, call an argument: those it may be here."""


def refuse_unknown(what: str, given: Iterable[str], *, known: Iterable[str]) -> None:
    """Refuse arguments that do not exist, and name the one that was probably meant.

    Raises:
        TypeError: one of them is not known.
    """
    names = list(known)
    for name in given:
        if name not in names:
            if near := meant(name, names):
                raise TypeError(f"{name} is not {what}; did you mean {near}?")
            raise TypeError(f"{name} is not {what}, expected one of {', '.join(names)}")


def meant(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant; "" if none is near.

    Options of the command line are names, too.
    """
    by_word = {word.lstrip("-").replace("-", "_"): word for word in names}
    word = name.lstrip("-").replace("-", "_")
    near = [word, *OTHER_WORDS.get(word, ()), *get_close_matches(word, by_word, n=1)]
    return next((by_word[word] for word in near if word in by_word), "")


def read_top_k(top_k: object, *, texts: int) -> int | None:
    """How many places of a ranking of so many texts are asked for; None for all.

    Zero is none of them to a slice, and all of them to a shell and to clients over HTTP, so it is
    refused; but of no texts both are the same, as where `min(5, len(texts))` is asked for.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is too small; says how to get all.
    """
    if top_k is None:
        return None
    return whole_number("top_k", top_k, least=min(texts, 1), advice="; leave it out to get all")


def wanted_hits(name: str, number: object, *, least: int = 1) -> int:
    """How many documents of an index are asked for, in the argument of that name.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is too small. Both say how to get all: of an index, None does not mean that.
    """
    return whole_number(name, number, least=least, advice="; give index.count() to get all")


def whole_number(name: str, value: object, *, least: int, advice: str = "") -> int:
    """An argument as Python's own whole number.

    Args:
        name: What it is called.
        value: What was given.
        least: The smallest that is taken.
        advice: What to say to whoever gives something else.

    Raises:
        TypeError: it is none; numpy's are, and True is one only to Python.
        ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} is {value!r}, expected a whole number{advice}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} is {number}, expected at least {least}{advice}")
    return number
