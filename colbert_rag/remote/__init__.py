"""A model behind a server: what a client and a server agree on, and the client."""

from colbert_rag.remote.index import RemoteIndex
from colbert_rag.remote.model import RemoteColBERT

__all__ = ["RemoteColBERT", "RemoteIndex"]
