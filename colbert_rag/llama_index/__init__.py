"""LlamaIndex: rerank retrieved nodes by late interaction, or retrieve by it."""

from colbert_rag.errors import MissingExtraError

try:
    import llama_index.core  # noqa: F401  # asked for here, once for all modules below
except ImportError as error:
    raise MissingExtraError("llama-index-core", extra="llama-index") from error

from colbert_rag.llama_index.rerank import ColBERTRerank, ColbertRerank
from colbert_rag.llama_index.retriever import ColBERTRetriever

__all__ = ["ColBERTRerank", "ColBERTRetriever", "ColbertRerank"]
