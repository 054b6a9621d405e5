"""`LocalIndex`: documents and token vectors in one SQLite file."""

from colbert_rag.index.local.index import LocalIndex

__all__ = ["LocalIndex"]
