"""Copying between indexes of any kind, without encoding again."""

from __future__ import annotations

import contextlib

from tqdm import tqdm

from colbert_rag.index.documents import Changes
from colbert_rag.index.protocol import Index


def copy_index(
    source: Index, target: Index, *, batch_size: int = 256, show_progress: bool = False
) -> Changes:
    """Store every document of `source` in `target`, with the vectors it has.

    Neither index needs a model; make a new target with `like=source.info`. Documents that `target`
    holds already are skipped, so a copy that was interrupted can be repeated.

    Raises:
        IndexMismatchError: they were made by different models, or one of them with token pooling.
    """
    target.info.check(source.info, "the target of the copy")
    with contextlib.ExitStack() as stack:
        bar = None
        if show_progress:
            bar = stack.enter_context(tqdm(total=source.count(), unit=" documents"))
        changes = Changes()
        for documents, vectors in source.encoded(batch_size):
            changes += target.add_encoded(documents, vectors)
            if bar is not None:
                bar.update(len(documents))
    return changes
