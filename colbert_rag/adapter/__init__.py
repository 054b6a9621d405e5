"""What the adapters of every framework share: fields that name a model and an index, and the work.

`SharedModel` names a model, `SharedIndex` an index beside it; `Reranking` and `Retrieving` say what
a component does with them, whatever the framework.
"""

from colbert_rag.adapter.index import SharedIndex
from colbert_rag.adapter.model import SharedModel
from colbert_rag.adapter.reranking import Reranking
from colbert_rag.adapter.retrieving import Retrieving

__all__ = ["Reranking", "Retrieving", "SharedIndex", "SharedModel"]
