"""From `config.json` to the shape of the encoder, refused before it costs anything."""

from __future__ import annotations

from colbert_rag.backbone.fields import Fields
from colbert_rag.backbone.shape import Shape
from colbert_rag.backbone.table import Backbone, Config
from colbert_rag.errors import MetadataError, UnsupportedBackboneError

DECODING = ("is_decoder", "add_cross_attention")
"""What makes another model of the same tensors."""


def encoder_shape(
    config: Config, backbone: Backbone, *, language: str | None, tensors: int, name: str
) -> Shape | None:
    """The shape that a configuration describes; `hosting` compares it with the tensors.

    Args:
        config: The whole file, of which only the family's own keys are read.
        backbone: The row that fits.
        language: Which adapter of a backbone that has one per language; None for its default.
        tensors: How many tensors are stored.
        name: Of the checkpoint, for messages.

    Returns:
        The shape, or None where the row is refused.

    Raises:
        MetadataError: a value is not one that an encoder can have.
        UnsupportedBackboneError: it is a decoder.
    """
    for key in DECODING:
        if config.get(key):
            raise UnsupportedBackboneError(
                f"config.json of {name} has {key}={config[key]!r}: a decoder, and only encoders "
                "are hosted"
            )
    if backbone.shape is None:
        return None
    fields = Fields(config)
    if backbone.has_languages and language is not None:
        fields = fields.with_values(default_language=language)
    try:
        shape = backbone.shape(fields)
    except ValueError as error:
        raise MetadataError(
            f"config.json of {name} does not describe a {backbone.name} model: {error}"
        ) from error
    # Each layer has tensors of its own, and so has each adapter in it.
    parts = len(shape.layers) * (len(shape.adapter.languages) if shape.adapter else 1)
    if parts > tensors:
        raise MetadataError(
            f"config.json of {name} has {len(shape.layers):,} layers with {parts:,} parts, but "
            f"there are weights for {tensors:,} tensors in all"
        )
    return shape
