"""`LocalIndex`: documents and token vectors in one SQLite file."""

from colbert_rag.index.local.index import LocalIndex
from colbert_rag.index.local.place import MEMORY

__all__ = ["MEMORY", "LocalIndex"]
