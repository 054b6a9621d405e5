"""Reads `config.json` with suspicion: each value by its kind and within its bounds."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, cast

from colbert_rag.backbone.shape import Activation

MAX_NUMBER = 2**20
"""No size of a text encoder is near: the largest vocabularies have 262,144 entries."""

MAX_LAYERS = 256

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What configurations call them; `gelu_new` and its like are spellings of one approximation."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The keys that a family's shape is made of.

    Whatever is not asked for is never looked at: labels of a classifier, outputs that somebody
    wanted, how training split its work.

    All raise `ValueError` with what was found and what was expected.
    """

    values: Mapping[str, object]

    def size(self, *names: str, default: int | None = None) -> int:
        """A positive whole number under the first of the names that is there."""
        name, value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_NUMBER:
            raise ValueError(f"{name} is {_short(value)}, expected 1 to {MAX_NUMBER:,}")
        return value

    def layers(self, name: str = "num_hidden_layers") -> int:
        """How many layers there are; even without memory for its numbers, a million take hours."""
        count = self.size(name)
        if count > MAX_LAYERS:
            raise ValueError(f"{name} is {count:,}, expected {MAX_LAYERS} at most")
        return count

    def limit(self, name: str) -> int | None:
        """A positive whole number, or None where there is none."""
        return None if self.values.get(name) is None else self.size(name)

    def under(self, keys: Mapping[str, str], **more: object) -> Fields:
        """The same values under the names that another family has for them; both are understood.

        Args:
            keys: Name there -> name here.
            more: Further values.
        """
        found: dict[str, object] = {}
        for name, here in keys.items():
            own, other = self.values.get(here), self.values.get(name)
            if None not in (own, other) and own != other:
                raise ValueError(
                    f"{name} is {_short(other)} and {here} is {_short(own)}, which mean the same: "
                    "expected one of them"
                )
            found[name] = own if other is None else other
        return self.with_values(**found, **more)

    def with_values(self, **more: object) -> Fields:
        """The same with other values under some names."""
        return Fields(ChainMap(more, cast(MutableMapping[str, object], self.values)))

    def token(self, name: str, vocabulary: int) -> int | None:
        """The id of a token, or None where there is none; -1 is what some call no token."""
        value = self.values.get(name)
        if isinstance(value, int) and not -1 <= value < vocabulary:
            raise ValueError(f"{name} is {_short(value)}, expected less than {vocabulary:,}")
        return value if isinstance(value, int) and value >= 0 else None

    def number(self, *names: str, default: float) -> float:
        """A positive number."""
        name, value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise ValueError(f"{name} is {_short(value)}, expected a positive number")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Yes or no."""
        value = self._first((name,), default)[1]
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {_short(value)}, expected true or false")
        return value

    def words(self, name: str) -> list[str] | None:
        """A list of words, or None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"{name} is {_short(value)}, expected a list of words")
        return value

    def activation(self, *names: str, default: str) -> Activation:
        """How a feed-forward layer is activated."""
        name, value = self._first(names, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ValueError(f"{name} is {_short(value)}, expected one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def heads(self, width: int) -> tuple[int, int]:
        """How many heads, and what each has of the width."""
        heads = self.size("num_attention_heads")
        if width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}")
        return heads, width // heads

    def rotary_base(self, *, default: float, kind: str = "", older: str = "rope_theta") -> float:
        """The base of rotary positions, in any of the spellings that were published.

        Args:
            default: The family's own.
            kind: The kind of layer, where each has a base of its own.
            older: The key before transformers 5.
        """
        values: dict[str, object] = {}
        # As transformers has it, what the older key says goes over what the newer one says.
        for name in ("rope_parameters", "rope_scaling"):
            given: Any = self.values.get(name) or {}
            if not isinstance(given, dict):
                raise ValueError(f"{name} is {_short(given)}, expected an object")
            nested = given.get(kind)
            values |= nested if isinstance(nested, dict) else given
        types = {values.get("rope_type", "default"), values.get("type", "default")}
        part = values.get("partial_rotary_factor", self.values.get("partial_rotary_factor")) or 1.0
        if types != {"default"} or part != 1.0:
            raise ValueError(
                f"rotary positions are {_short(sorted(map(str, types)))} over {_short(part)} of a "
                "head, expected 'default' over all of it: no published checkpoint stretches them"
            )
        base = values.get("rope_theta") or self.values.get(older)
        return Fields({"rope_theta": base}).number("rope_theta", default=default)

    def _first(self, names: tuple[str, ...], default: object) -> tuple[str, object]:
        found = ((name, self.values.get(name)) for name in names)
        return next(
            ((name, value) for name, value in found if value is not None), (names[0], default)
        )


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"a number of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
