"""`QdrantIndex`: the same index in a Qdrant collection, for corpora that outgrow one machine."""

from colbert_rag.errors import MissingExtraError

try:
    import qdrant_client  # noqa: F401  # asked for here, once for all modules below
except ImportError as error:
    raise MissingExtraError("qdrant-client", extra="qdrant") from error

from colbert_rag.index.qdrant.index import QdrantIndex

__all__ = ["QdrantIndex"]
