"""Linear layers, with what follows a product computed inside it where the CPU's library can."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from colbert_rag.backbone.shape import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}

# Operator and algorithm, as oneDNN is asked for them (aten/src/ATen/native/mkldnn/Linear.cpp).
_INSIDE: dict[Activation | None, tuple[str, str]] = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}

TOKENS = 2048
"""Rows for which weights are laid out; a product of any other number is computed as well."""


class Linear:
    """`x @ weight.T + bias`, and what comes after it.

    On a CPU, weights are laid out once as the products read them, and activation, addition and
    multiplication happen while a product is still in the processor's cache. The operators are
    torch's own, but private: where one is missing, or gives something else than the plain way, the
    plain way is taken.
    """

    __slots__ = ("_bias", "_fused", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take weights that stay as they are: `(out, in)` and `(out,)`, of one dtype and device."""
        self._fused = weight.device.type == "cpu" and fuses(weight.dtype)
        self._weight = _laid_out(weight) if self._fused else weight
        self._bias = bias

    def __call__(
        self,
        rows: Tensor,
        *,
        activation: Activation | None = None,
        plus: Tensor | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Map `(rows, in)` to `(rows, out)`.

        Args:
            rows: What goes in.
            activation: Applied to the result, or
            plus: added to it, or
            times: multiplied with it: one of the three at most, of the result's shape.
        """
        if self._fused:
            return _fused(rows, self._weight, self._bias, activation, plus, times)
        out = functional.linear(rows, self._weight, self._bias)
        if activation is not None:
            return ACTIVATIONS[activation](out)
        if plus is not None:
            return out.add_(plus)
        return out if times is None else out.mul_(times)


def _fused(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation | None,
    plus: Tensor | None,
    times: Tensor | None,
) -> Tensor:
    operator = torch.ops.mkldnn._linear_pointwise
    if plus is not None:
        out: Tensor = operator.binary(rows, plus, weight, bias, "add")
    elif times is not None:
        out = operator.binary(rows, times, weight, bias, "mul")
    else:
        kind, algorithm = _INSIDE[activation]
        out = operator(rows, weight, bias, kind, [], algorithm)
    return out


def _laid_out(weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TOKENS)
    return out


@cache
def fuses(dtype: torch.dtype) -> bool:
    """Whether products of this type can hold what follows them, and agree with the plain way."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    random = torch.Generator().manual_seed(0)
    rows, weight, other = (torch.randn(8, 8, generator=random).to(dtype) for _ in range(3))
    bias = other[0].clone()
    plain = functional.linear(rows, weight, bias).float()
    expected = [function(plain) for function in ACTIVATIONS.values()]
    expected += [plain + other.float(), plain * other.float()]
    try:
        with torch.inference_mode():
            laid_out = _laid_out(weight)
            found = [_fused(rows, laid_out, bias, name, None, None) for name in ACTIVATIONS]
            found += [
                _fused(rows, laid_out, bias, None, other, None),
                _fused(rows, laid_out, bias, None, None, other),
            ]
    except (AttributeError, RuntimeError):  # another build of torch, or another processor
        return False
    close = 1e-5 if dtype == torch.float32 else 0.1
    return all(
        torch.allclose(one.float(), other, rtol=close, atol=close)
        for one, other in zip(found, expected, strict=True)
    )
