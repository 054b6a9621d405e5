"""What the adapters of every framework share: fields that name a model and an index, and the work.

`SharedModel` names a model, `SharedIndex` an index beside it; `Reranking` and `Retrieving` say what
a component does with them, whatever the framework.
"""

from colbert_rag.adapter.index import SharedIndex, read_info
from colbert_rag.adapter.model import PathText, SharedModel
from colbert_rag.adapter.reranking import EXPLANATION_KEY, Reranked, Reranking
from colbert_rag.adapter.retrieving import (
    NODE_KEY,
    SOURCE_KEY,
    START_KEY,
    Retrieving,
    as_given,
    check_metadata,
    in_memory,
)

__all__ = [
    "EXPLANATION_KEY",
    "NODE_KEY",
    "SOURCE_KEY",
    "START_KEY",
    "PathText",
    "Reranked",
    "Reranking",
    "Retrieving",
    "SharedIndex",
    "SharedModel",
    "as_given",
    "check_metadata",
    "in_memory",
    "read_info",
]
