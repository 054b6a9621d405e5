"""Attention over texts that share one row, each seeing itself alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from colbert_rag.backbone.direct import LONGEST, SHORTEST, attend_directly, is_faster
from colbert_rag.backbone.packing import Packing
from colbert_rag.backbone.shape import Attention

VARLEN_DTYPES = (torch.float16, torch.bfloat16)
"""What the CUDA kernel computes; float32 goes group by group through the exact path."""

QUERY_BLOCK = 256
"""Queries at a time where similarities are masked or biased: a mask for a whole text would take the
square of its length."""

KEY_STEP = 16
"""Numbers that a CPU handles at once. Attention to 60 keys takes 1.6 times as long as to 64."""


@cache
def _kernel() -> Callable[..., Tensor] | None:
    """The variable-length kernel, where this build of torch has one.

    Imported when a CUDA device first asks: it brings torch's compiler along, which takes a second
    and 100 MiB, and which a CPU never needs.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # builds of torch without CUDA support may lack it
        return None
    # Left to itself, the kernel may split a text's keys by the longest text of the batch, and with
    # the split the bits of every other text's result change. torch 2.11 offers no choice.
    chosen = {"num_splits": 1} if "num_splits" in signature(varlen_attn).parameters else {}
    return partial(cast(Callable[..., Tensor], varlen_attn), **chosen)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: Attention,
    packing: Packing,
    *,
    overflows: bool = False,
) -> Tensor:
    """Attention of every text to itself.

    Args:
        query: `(tokens, heads, head_width)`.
        key: `(tokens, key_heads, head_width)`.
        value: Like `key`.
        how: Which tokens see which.
        packing: How the row is cut into texts.
        overflows: Whether states may be infinite or NaN, as those of float16 are where a model was
            not made for it: even masked, they would spoil the text before them.

    Returns:
        `(tokens, heads, head_width)`, of the queries' dtype. Rows beyond the last text are 0.
    """
    window = how.window is not None and packing.longest > how.window
    if (
        query.is_cuda
        and query.dtype in VARLEN_DTYPES
        and not how.alibi
        # With fewer keys than queries, the kernel would count distances from the end of a text.
        and (packing.seen is None or not (window or how.causal))
        and (kernel := _kernel()) is not None
    ):
        return _by_kernel(kernel, query, key, value, how, packing)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    out[packing.tokens :] = 0  # what is there could be NaN
    # Whether keys may go on into the next text, which is masked: see KEY_STEP.
    goes_on = query.device.type == "cpu" and packing.seen is None and not overflows
    quick = is_faster(query, key)
    for first, count, length in packing.groups:
        if quick and SHORTEST <= length <= LONGEST and _sees_all(how, length, packing):
            rows = slice(first, first + count * length)
            if attend_directly(out[rows], query[rows], key[rows], value[rows], length):
                continue
        group = out[first : first + count * length].unflatten(0, (count, length))
        room = len(query) - first - (count - 1) * length if goes_on else 0
        for block in _blocks(how, length, packing, room):
            texts = partial(_texts, first=first, count=count, length=length)
            keys = slice(block.low, block.high)
            mixed = scaled_dot_product_attention(
                texts(query, rows=slice(block.start, block.stop)),
                texts(key, rows=keys),
                texts(value, rows=keys),
                attn_mask=_mask(block, how, query, packing, first, count),
                enable_gqa=how.heads != how.key_heads,
            )
            group[:, block.start : block.stop].copy_(mixed.transpose(1, 2))
    return out


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries from `start` to `stop` of a text, and its keys from `low` to `high` in their reach.

    The last keys may lie beyond the end of the text, where they are masked.
    """

    start: int
    stop: int
    low: int
    high: int
    length: int


def _blocks(how: Attention, length: int, packing: Packing, room: int) -> Iterator[_Block]:
    """Cut a text of some length into blocks, with `room` rows from its beginning."""
    reach = length if how.window is None else how.window
    step = length if _sees_all(how, length, packing) else QUERY_BLOCK
    for start in range(0, length, step):
        stop = min(start + step, length)
        low = max(start - reach + 1, 0)
        high = stop if how.causal else min(stop + reach - 1, length)
        more = -(high - low) % KEY_STEP
        yield _Block(start, stop, low, high + more if high + more <= room else high, length)


def _sees_all(how: Attention, length: int, packing: Packing) -> bool:
    """Whether every token of a text of some length sees all the others alike."""
    within = how.window is None or how.window >= length
    return within and not (how.causal or how.alibi) and packing.seen is None


def _texts(states: Tensor, *, first: int, count: int, length: int, rows: slice) -> Tensor:
    """Some rows of each of several equally long texts, `(texts, heads, rows, width)`, not copied.

    Rows beyond the end of a text are those of the next one.
    """
    part = states[first + rows.start :]
    row, head, number = part.stride()
    size = (count, states.shape[1], rows.stop - rows.start, states.shape[2])
    return part.as_strided(size, (length * row, head, row, number))


def _by_kernel(
    kernel: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: Attention,
    packing: Packing,
) -> Tensor:
    """All texts in one launch, whatever their lengths."""
    boundaries, longest = packing.boundaries, packing.longest
    if packing.seen is not None:
        key, value = key[packing.seen.places], value[packing.seen.places]
        boundaries, longest = packing.seen.boundaries, packing.seen.longest
    reach = -1 if how.window is None else how.window - 1
    return kernel(
        query,
        key,
        value,
        packing.boundaries,
        boundaries,
        packing.longest,
        longest,
        window_size=(reach, 0 if how.causal else reach),
        enable_gqa=how.heads != how.key_heads,
    )


def _mask(
    block: _Block, how: Attention, query: Tensor, packing: Packing, first: int, count: int
) -> Tensor | None:
    """What is added to similarities, or what is seen, as booleans; None where all is seen."""
    key = (block, how.window, how.causal)
    if how.alibi:  # the square of a length for each head, so that it is not kept
        bias = _bias(block, how, query)
    elif key in packing.masks:
        bias = packing.masks[key]
    else:
        bias = packing.masks[key] = _bias(block, how, query)
    if packing.seen is None:
        return bias
    marked = packing.seen.mask[first : first + count * block.length].view(count, 1, 1, -1)
    marked = marked[..., block.low : block.high]
    return marked if bias is None else bias.where(marked, -math.inf)


def _bias(block: _Block, how: Attention, query: Tensor) -> Tensor | None:
    """What places alone decide: `(queries or 1, keys)`, or with slopes `(heads, queries, keys)`."""
    device = query.device
    window = how.window if how.window is not None and how.window < block.length else None
    if block.high <= block.length and window is None and not (how.causal or how.alibi):
        return None
    keys = torch.arange(block.low, block.high, device=device)
    distance = torch.arange(block.start, block.stop, device=device)[:, None] - keys
    seen = (keys < block.length)[None]
    if how.causal:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance.abs() < window)
    bias = torch.zeros(1, dtype=torch.float32, device=device)
    if how.alibi:
        slopes = torch.tensor(alibi_slopes(how.heads), dtype=torch.float32, device=device)
        bias = -slopes[:, None, None] * distance.abs()
    return torch.where(seen, bias, -math.inf).to(query.dtype)


def alibi_slopes(heads: int) -> list[float]:
    """How much each head loses by distance (Press et al., 2022).

    A geometric series for a power of two; others get that of the power below, and then every
    second one of the power above (ofirpress/attention_with_linear_biases).
    """
    below = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / below) for head in range(below)]
    if below < heads:
        slopes += alibi_slopes(2 * below)[0::2][: heads - below]
    return slopes
