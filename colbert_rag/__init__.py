"""Late-interaction reranking and retrieval with ColBERT models, from one shared model.

Names are imported on first use (PEP 562): `import colbert_rag` loads neither torch nor a
framework, so that a command line answers `--help` at once and an adapter's extra is asked for only
by whoever uses that adapter. The framework components are imported from their own modules,
`colbert_rag.langchain` and `colbert_rag.llama_index`; every other error is in `colbert_rag.errors`.

The function `colbert_rag.maxsim.maxsim` is not repeated here: a package attribute `maxsim` is the
subpackage as soon as anything has imported it, whatever name we give it before.
"""

from importlib import import_module

# Type checkers know this name. Importing it from `typing` would take longer than all the rest here.
TYPE_CHECKING = False

__version__ = "0.1.0.dev0"

__all__ = [
    "DEFAULT_CHECKPOINT",
    "Checkpoint",
    "CheckpointError",
    "ColBERT",
    "ColBERTRagError",
    "Explanation",
    "IndexMismatchError",
    "InvalidQueryError",
    "LocalIndex",
    "MissingExtraError",
    "QdrantIndex",
    "Ranked",
    "Ranking",
    "RemoteColBERT",
    "RemoteIndex",
    "Settings",
    "TokenEmbeddings",
    "clear_cache",
    "open_checkpoint",
    "shared_colbert",
]

_HOME = {
    "Checkpoint": "colbert_rag.checkpoint",
    "CheckpointError": "colbert_rag.errors",
    "ColBERT": "colbert_rag.colbert",
    "ColBERTRagError": "colbert_rag.errors",
    "DEFAULT_CHECKPOINT": "colbert_rag.settings",
    "Explanation": "colbert_rag.explanation",
    "IndexMismatchError": "colbert_rag.errors",
    "InvalidQueryError": "colbert_rag.errors",
    "LocalIndex": "colbert_rag.index.local",
    "MissingExtraError": "colbert_rag.errors",
    "QdrantIndex": "colbert_rag.index.qdrant",
    "Ranked": "colbert_rag.ranking",
    "Ranking": "colbert_rag.ranking",
    "RemoteColBERT": "colbert_rag.remote.model",
    "RemoteIndex": "colbert_rag.remote.index",
    "Settings": "colbert_rag.settings",
    "TokenEmbeddings": "colbert_rag.embeddings",
    "clear_cache": "colbert_rag.colbert",
    "open_checkpoint": "colbert_rag.checkpoint",
    "shared_colbert": "colbert_rag.colbert",
}

if TYPE_CHECKING:
    from colbert_rag.checkpoint import Checkpoint, open_checkpoint
    from colbert_rag.colbert import ColBERT, clear_cache, shared_colbert
    from colbert_rag.embeddings import TokenEmbeddings
    from colbert_rag.errors import (
        CheckpointError,
        ColBERTRagError,
        IndexMismatchError,
        InvalidQueryError,
        MissingExtraError,
    )
    from colbert_rag.explanation import Explanation
    from colbert_rag.index.local import LocalIndex
    from colbert_rag.index.qdrant import QdrantIndex
    from colbert_rag.ranking import Ranked, Ranking
    from colbert_rag.remote import RemoteColBERT, RemoteIndex
    from colbert_rag.settings import DEFAULT_CHECKPOINT, Settings

else:
    # Out of a type checker's sight: a module with __getattr__ accepts every misspelt name.
    def __getattr__(name: str) -> object:
        """Import a public name from the module that defines it."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
