"""Copying between indexes of any kind, without encoding again."""

from __future__ import annotations

from colbert_rag.index.base import Index
from colbert_rag.index.documents import Changes
from colbert_rag.progress import progress_bar


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
    changes = Changes()
    total = source.count() if show_progress else None
    with progress_bar(None, total=total, unit=" documents", show=show_progress) as bar:
        for documents, vectors in source.encoded(batch_size):
            changes += target.add_encoded(documents, vectors)
            bar.update(len(documents))
    return changes
