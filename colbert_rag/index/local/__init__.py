"""`LocalIndex`: documents and token vectors in one SQLite file, searched exactly."""

from colbert_rag.index.local.index import LocalIndex

__all__ = ["LocalIndex"]
