"""Encoders around something else than their own model."""

from __future__ import annotations

from colbert_rag.backbone.transformer import Transformer
from colbert_rag.encoder import Encoder


def around(model: object, encoder: Encoder, *, batch_tokens: int) -> Encoder:
    """An encoder as another one, but with `model`."""
    return Encoder(
        model,  # type: ignore[arg-type]
        encoder._projection,
        dim=encoder.dim,
        batch_tokens=batch_tokens,
    )


class StandIn:
    """Stands before a model; a subclass says what happens on a call."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.shape = model, model.shape
        self.device, self.dtype = model.device, model.dtype
