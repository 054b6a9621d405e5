"""Attention over texts that share one row, each seeing itself alone.

Registered with transformers' attention interface under one name, so that its own modules compute
packed (unpadded) input without modelling code of ours. A packed call passes a `Packing` through
the model's keyword arguments; every other call is ordinary scaled dot-product attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

try:
    from torch.nn.attention import varlen
except ImportError:  # builds of torch without CUDA support may lack it
    varlen_attention = None
else:
    # Left to itself, the kernel may split a text's keys by the longest text of the batch, and with
    # the split the bits of every other text's result change. torch 2.11 offers no choice.
    varlen_attention = (
        partial(varlen.varlen_attn, num_splits=1)
        if "num_splits" in signature(varlen.varlen_attn).parameters
        else varlen.varlen_attn
    )

ATTENTION = "colbert_rag"
"""The name under which transformers knows the function; goes into `attn_implementation`."""

VARLEN_DTYPES = (torch.float16, torch.bfloat16)
"""What the CUDA kernel computes; float32 goes text by text through the exact path."""

WINDOW_BLOCK = 256
"""Queries per block where a text is much longer than the attention window."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How one row is cut into texts.

    Attributes:
        groups: `(first row, number of texts, length)` of runs of equally long texts.
        boundaries: `(texts + 1,)`, int32, on the model's device.
        longest: Tokens of the longest text: a host integer, because reading it from a device
            would wait for the device in every layer.
    """

    groups: tuple[tuple[int, int, int], ...]
    boundaries: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: torch.device) -> Packing:
        """Describe texts of the given lengths, in order; neighbours of one length form a group."""
        boundaries = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=boundaries[1:])
        starts = np.flatnonzero(np.diff(lengths, prepend=-1))
        counts = np.diff(starts, append=len(lengths))
        groups = tuple(
            (int(boundaries[start]), int(count), int(lengths[start]))
            for start, count in zip(starts, counts, strict=True)
        )
        return cls(
            groups,
            torch.from_numpy(boundaries).to(device, non_blocking=True),
            int(lengths.max(initial=0)),
        )


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention as transformers' modules call it.

    Args:
        module: The attention module.
        query: `(batch, heads, tokens, head_dim)`; batch is 1 where `packing` is given.
        key: `(batch, key_heads, tokens, head_dim)`.
        value: Like `key`.
        attention_mask: Mask of a padded batch; None where `packing` is given.
        packing: How the row is cut into texts, or None for a padded batch.
        scaling: Factor on the similarities; None for `head_dim ** -0.5`.
        dropout: Always 0 here: models are never trained.
        sliding_window: A token sees others at a distance below this; None for all.
        kwargs: What else a module passes; only the padded path reads it.

    Returns:
        `(batch, tokens, heads, head_dim)`, and None for the weights, which are not kept.
    """
    if packing is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **kwargs,  # type: ignore[arg-type]  # passed on as the module gave them
        )
    shared = query.shape[1] != key.shape[1]
    if query.is_cuda and query.dtype in VARLEN_DTYPES and varlen_attention is not None:
        reach = -1 if sliding_window is None else sliding_window - 1
        out = varlen_attention(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            packing.boundaries,
            packing.boundaries,
            packing.longest,
            packing.longest,
            scale=scaling,
            window_size=(reach, reach),
            enable_gqa=shared,
        )
        return cast(Tensor, out).unsqueeze(0), None
    result = torch.empty_like(query)
    for first, count, length in packing.groups:
        part = slice(first, first + count * length)
        out = _attend_group(
            *(_as_texts(states, part, count, length) for states in (query, key, value)),
            scaling=scaling,
            shared=shared,
            window=sliding_window,
        )
        result[0, :, part] = out.transpose(0, 1).reshape(query.shape[1], count * length, -1)
    return result.transpose(1, 2), None


def _as_texts(states: Tensor, part: slice, count: int, length: int) -> Tensor:
    """Cut one group out of a row: `(1, heads, tokens, d)` -> `(count, heads, length, d)`."""
    heads, width = states.shape[1], states.shape[3]
    return states[0, :, part].reshape(heads, count, length, width).transpose(0, 1)


def _attend_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    shared: bool,
    window: int | None,
) -> Tensor:
    """Attention within each of several equally long texts, all `(texts, heads, length, d)`."""
    length = query.shape[2]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=shared)
    # A full mask would cost length**2; each block of queries needs only the keys within reach.
    blocks = []
    for start in range(0, length, WINDOW_BLOCK):
        stop = min(start + WINDOW_BLOCK, length)
        low, high = max(start - window + 1, 0), min(stop + window - 1, length)
        queries, keys = (torch.arange(*ends, device="cpu") for ends in ((start, stop), (low, high)))
        distance = queries[:, None] - keys
        blocks.append(
            scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, low:high],
                value[:, :, low:high],
                attn_mask=(distance.abs() < window).to(query.device),
                scale=scaling,
                enable_gqa=shared,
            )
        )
    return torch.cat(blocks, dim=2)


def _mask(*, attention_mask: Tensor | None = None, **kwargs: object) -> Tensor | None:
    """The mask of a padded batch; packed calls pass none, and must not get a quadratic one."""
    if attention_mask is None:
        return None
    return sdpa_mask(attention_mask=attention_mask, **kwargs)  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _mask)
