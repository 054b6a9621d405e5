"""Attention of one text to all of itself on a CPU, in fewer passes than a softmax takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHORTEST, LONGEST = 48, 512
"""Tokens of a text for which this was measured, and is faster: by a quarter to a third from 64 to
200, by a tenth of longer ones. Each text takes four calls of its own, which short ones feel."""

TOGETHER = 2**18
"""Similarities at a time, all of several heads: 1 MiB, which the second-level cache holds."""

LEAST, MOST = 1e-25, 1e25
"""Sums of powers between which nothing overflowed, with values below 1e13, and what became 0 would
not show in a result."""


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Whether these states are of a kind for which it pays: products of float32 in MKL, one core.

    Several cores would wait for each other after each of the four calls. torch's own kernel gives
    each of them some heads, and waits once.
    """
    cpu = query.device.type == "cpu" and query.dtype == torch.float32
    alone = cpu and torch.get_num_threads() == 1
    return alone and query.shape == key.shape and torch.backends.mkl.is_available()


def attend_directly(out: Tensor, query: Tensor, key: Tensor, value: Tensor, length: int) -> bool:
    """Attention of texts of one length, side by side, written to `out`.

    A softmax looks for the largest similarity of each row first, and takes powers of how far the
    others are below it, which keeps them within the range of any float. Here the sums of powers
    tell afterwards whether that was needed. It is for similarities beyond some 50, which trained
    models do not give; what comes out is as exact, since the error of a power is that of its
    exponent either way.

    Args:
        out: `(texts * length, heads, head_width)`, like all of them.
        query: What asks.
        key: What is asked.
        value: What is mixed.
        length: Tokens of a text.

    Returns:
        Whether it could be done so; else `out` is to be computed in another way.
    """
    heads, width = query.shape[1:]
    scale = 1 / math.sqrt(width)
    calls = math.ceil(heads * length**2 / TOGETHER)
    step = math.ceil(heads / calls)
    similar = query.new_empty(step, length, length)
    mixed = query.new_empty(step, length, width)
    sums = query.new_empty(len(query) // length, heads, length, 1)
    for text, total in enumerate(sums):
        rows = slice(text * length, (text + 1) * length)
        for start in range(0, heads, step):
            some = slice(start, min(start + step, heads))
            part = slice(some.stop - start)
            powers, weighted = similar[part], mixed[part]
            asking = query[rows, some].transpose(0, 1)
            asked = key[rows, some].permute(1, 2, 0)
            # With `beta=0` what `powers` held before counts for nothing, were it NaN.
            torch.baddbmm(powers, asking, asked, beta=0, alpha=scale, out=powers).exp_()
            torch.sum(powers, -1, keepdim=True, out=total[some])
            torch.bmm(powers, value[rows, some].transpose(0, 1), out=weighted)
            torch.div(weighted, total[some], out=out[rows, some].transpose(0, 1))
    least, most = torch.aminmax(sums)
    return bool(least > LEAST) and bool(most < MOST)
