"""The border that nothing but this package's errors passes while a checkpoint is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from colbert_rag.errors import CheckpointError, ColBERTRagError

PASSES = (ColBERTRagError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""What is no fault of the checkpoint, or says already what the fault is."""


@contextmanager
def border(name: str) -> Iterator[None]:
    """Turn whatever the files of a checkpoint run into, in any library, into a `CheckpointError`.

    Args:
        name: How the caller called the checkpoint.

    Raises:
        CheckpointError: something else than `PASSES` was raised.
    """
    try:
        yield
    except PASSES:
        raise
    # Not Exception: a panic of the tokenizers library, which is in Rust, is none.
    except BaseException as error:
        reason = (str(error).splitlines() or ["no details"])[0][:300]
        raise CheckpointError(
            f"{name} cannot be opened as a ColBERT model: a file of it, or the lack of one, led to "
            f"{type(error).__name__}: {reason}. Compare the folder with the published one"
        ) from error
