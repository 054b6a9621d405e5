"""What of `config.json` is used: the keys that the backbone's row lists, with sizes it can have."""

from __future__ import annotations

from collections.abc import Mapping

from colbert_rag.backbones import Backbone, Config
from colbert_rag.errors import MetadataError, UnsupportedBackboneError

MAX_NUMBER = 2**20
"""No size of a text encoder is near: the largest vocabularies have 262,144 entries."""

MAX_LAYERS = 256

DECODING = ("is_decoder", "add_cross_attention")
"""What makes another model of the same tensors."""


def used_config(
    config: Mapping[str, object], backbone: Backbone, *, tensors: int, name: str
) -> Config:
    """The part of `config.json` that describes the encoder, checked before it costs anything.

    The rest is not read: labels of a classifier, outputs that somebody wanted, how training split
    its work. Exact sizes are compared with the tensors by `hosting`.

    Args:
        config: The whole file.
        backbone: Its row.
        tensors: How many tensors are stored.
        name: Of the checkpoint, for messages.

    Raises:
        MetadataError: a number is beyond any model, or beyond the stored tensors.
        UnsupportedBackboneError: it is a decoder.
    """
    for key in DECODING:
        if config.get(key):
            raise UnsupportedBackboneError(
                f"config.json of {name} has {key}={config[key]!r}: a decoder, and only encoders "
                "are hosted"
            )
    kept = {key: value for key, value in config.items() if key in backbone.keys}
    for key, value in kept.items():
        least = -1 if key.endswith("_token_id") else 0  # -1 is what some call no token
        if isinstance(value, int) and not least <= value <= MAX_NUMBER:
            raise MetadataError(
                f"config.json of {name} has {key}={_short(value)}, expected {least} to "
                f"{MAX_NUMBER:,}"
            )
    # Even without memory for its numbers, a model of a million layers takes hours to set up.
    parts = 1
    for key in ("num_hidden_layers", "n_layers", "languages"):
        value = kept.get(key, 0)
        count = len(value) if isinstance(value, list) else value
        if isinstance(count, int) and count > 0:
            parts *= count
            if parts > tensors or (not isinstance(value, list) and count > MAX_LAYERS):
                raise MetadataError(
                    f"config.json of {name} has {count:,} {key}, but there are weights for "
                    f"{tensors:,} tensors in all, and {MAX_LAYERS} layers are the most"
                )
    return kept


def _short(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**18 else f"a number of {value.bit_length()} bits"
