"""Why a document got its score: which token matched which, as values, HTML and text."""

from colbert_rag.explanation.alignment import Match, Token
from colbert_rag.explanation.explanation import Explanation
from colbert_rag.explanation.passage import Passage

__all__ = ["Explanation", "Match", "Passage", "Token"]
