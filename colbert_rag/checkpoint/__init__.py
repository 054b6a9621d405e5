"""From what is published to `Checkpoint`: files, formats, tensor names; no weights are read."""

from colbert_rag.checkpoint.checkpoint import Checkpoint, open_checkpoint
from colbert_rag.checkpoint.recipe import Expansion, Projection, Recipe, TextRules

__all__ = ["Checkpoint", "Expansion", "Projection", "Recipe", "TextRules", "open_checkpoint"]
