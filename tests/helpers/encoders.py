"""Encoders around something else than their own model."""

from __future__ import annotations

from dataclasses import replace

import torch

from colbert_rag.encoder import Encoder


def around(
    model: object, encoder: Encoder, *, batch_tokens: int, packs: bool | None = None
) -> Encoder:
    """An encoder as another one, but with `model`, and padding or not as `packs` says."""
    row = encoder._backbone
    return Encoder(
        model,  # type: ignore[arg-type]
        encoder._projection,
        backbone=row if packs is None else replace(row, packs=packs),
        dim=encoder.dim,
        batch_tokens=batch_tokens,
    )


class StandIn:
    """Stands before a model; a subclass says what happens on a call."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.config, self.parameters = model, model.config, model.parameters
