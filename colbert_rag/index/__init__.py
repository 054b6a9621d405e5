"""Searchable documents: `LocalIndex` keeps them in one file, `QdrantIndex` on a server.

Both are an `Index`, with the same filters, the same scores and the same order.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from colbert_rag.index.documents import Changes, Document, Hit
from colbert_rag.index.info import IndexInfo, IndexStats

__all__ = [
    "Changes",
    "Document",
    "Hit",
    "Index",
    "IndexInfo",
    "IndexStats",
    "LocalIndex",
    "QdrantIndex",
    "Recall",
    "copy_index",
]

if TYPE_CHECKING:
    from colbert_rag.index.base import Index
    from colbert_rag.index.local import LocalIndex
    from colbert_rag.index.qdrant import QdrantIndex
    from colbert_rag.index.recall import Recall
    from colbert_rag.index.transfer import copy_index
else:
    _HOME = {
        "Index": "colbert_rag.index.base",
        "LocalIndex": "colbert_rag.index.local",
        "QdrantIndex": "colbert_rag.index.qdrant",
        "Recall": "colbert_rag.index.recall",
        "copy_index": "colbert_rag.index.transfer",
    }

    def __getattr__(name: str) -> object:
        """Import what holds vectors when it is asked for.

        Qdrant's client is optional, and large; torch is larger, and not needed for what a server
        finds.
        """
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)
