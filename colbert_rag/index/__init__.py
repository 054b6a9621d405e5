"""Searchable documents: `LocalIndex` keeps them in one file, `QdrantIndex` on a server.

Both are an `Index`, with the same filters, the same scores and the same order.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from colbert_rag.index.base import Index
from colbert_rag.index.documents import Changes, Document, Hit
from colbert_rag.index.info import IndexInfo, IndexStats
from colbert_rag.index.recall import Recall
from colbert_rag.index.transfer import copy_index

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
    from colbert_rag.index.local import LocalIndex
    from colbert_rag.index.qdrant import QdrantIndex
else:
    _HOME = {
        "LocalIndex": "colbert_rag.index.local",
        "QdrantIndex": "colbert_rag.index.qdrant",
    }

    def __getattr__(name: str) -> object:
        """Import an index when it is asked for: Qdrant's client is optional, and large."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)
