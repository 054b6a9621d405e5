"""LangChain: rerank retrieved documents by late interaction, or retrieve by it."""

from colbert_rag.errors import MissingExtraError

try:
    import langchain_core  # noqa: F401  # asked for here, once for all modules below
except ImportError as error:
    raise MissingExtraError("langchain-core", extra="langchain") from error

from colbert_rag.langchain.index import ColBERTIndex
from colbert_rag.langchain.rerank import ColBERTRerank, ColBERTRerankRetriever
from colbert_rag.langchain.retriever import ColBERTRetriever

__all__ = ["ColBERTIndex", "ColBERTRerank", "ColBERTRerankRetriever", "ColBERTRetriever"]
