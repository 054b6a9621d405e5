"""From what is published to `Checkpoint`: files, formats, tensor names, vocabulary; no weights."""

from colbert_rag.checkpoint.checkpoint import Checkpoint, Description, open_checkpoint
from colbert_rag.checkpoint.recipe import Expansion, Projection, Recipe, TextRules
from colbert_rag.checkpoint.vocabulary import Vocabulary

__all__ = [
    "Checkpoint",
    "Description",
    "Expansion",
    "Projection",
    "Recipe",
    "TextRules",
    "Vocabulary",
    "open_checkpoint",
]
