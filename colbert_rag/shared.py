"""The process's one instance of each model, whatever the spelling of the call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict, Unpack

from colbert_rag.colbert import SHARED, ColBERT, resolved, shared
from colbert_rag.settings import Settings


class ModelOptions(TypedDict, total=False):
    """The keyword arguments of `ColBERT.from_pretrained`, which explains each."""

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


def shared_colbert(checkpoint: str | os.PathLike[str], **options: Unpack[ModelOptions]) -> ColBERT:
    """The process's one instance of a model, loaded by whoever asks first.

    Two calls mean the same instance where they mean the same configuration: `device=None` and the
    device it resolves to, a relative and an absolute path, a string and a `Path`. Other threads
    that ask while it loads wait for it.

    Args:
        checkpoint: As in `ColBERT.from_pretrained`.
        options: As in `ColBERT.from_pretrained`.

    Raises:
        CheckpointError: the checkpoint cannot be opened; its subclass says why.
        TypeError: an option is unknown or has the wrong type.
        ValueError: an option is out of range, or the device is not there.
    """
    return shared(resolved(Settings.normalised(checkpoint, **options)))


def clear_cache() -> None:
    """Forget every shared instance and give back the memory of its weights.

    Instances that somebody still holds go on working, and load again at their next call.
    """
    for model in SHARED.clear():
        model.unload()
