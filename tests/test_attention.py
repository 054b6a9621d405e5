"""Attention over texts in one row, against loops over its definition in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from colbert_rag.backbone import attention, direct
from colbert_rag.backbone.attention import QUERY_BLOCK, alibi_slopes, attend
from colbert_rag.backbone.direct import SHORTEST, attend_directly, is_faster
from colbert_rag.backbone.packing import Packing
from colbert_rag.backbone.shape import Attention

FULL = Attention(heads=3, key_heads=3, head_width=8, bias=False, output_bias=False)
CPU = torch.device("cpu")
# Neighbours of one length are one call; the last ends with the row; one is longer than a block.
LENGTHS = (1, 7, 7, 7, 16, 60, 33, QUERY_BLOCK + 20, 5)


def naive(query: Tensor, key: Tensor, value: Tensor, how: Attention, visible: list[bool]) -> Tensor:
    """One text: `(tokens, heads, width)`, every pair by itself."""
    length, heads, width = query.shape
    slopes = [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]
    out = torch.zeros(length, heads, width, dtype=torch.float64)
    for head in range(heads):
        shared = head * key.shape[1] // heads
        for here in range(length):
            seen = [
                there
                for there in range(length)
                if visible[there]
                and (how.window is None or abs(here - there) < how.window)
                and not (how.causal and there > here)
            ]
            if not seen:
                continue
            logits = torch.stack([query[here, head] @ key[there, shared] for there in seen])
            logits = logits / math.sqrt(width)
            if how.alibi:
                distances = torch.tensor([abs(here - there) for there in seen])
                logits = logits - slopes[head] * distances
            out[here, head] = logits.softmax(0) @ value[seen, shared]
    return out


def states(how: Attention, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    heads = (how.heads, how.key_heads, how.key_heads)
    query, key, value = (
        torch.randn(rows, number, how.head_width, generator=random) for number in heads
    )
    return query, key, value


def expected(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: Attention,
    lengths: tuple[int, ...],
    seen: Tensor,
) -> Tensor:
    parts = [part.double().split(list(lengths)) for part in (query, key, value)]
    texts = zip(*parts, seen.split(list(lengths)), strict=True)
    return torch.cat([naive(q, k, v, how, visible.tolist()) for q, k, v, visible in texts])


HOWS = {
    "full": FULL,
    "window": replace(FULL, window=5),
    "window longer than a block": replace(FULL, window=QUERY_BLOCK + 3),
    "causal": replace(FULL, causal=True),
    "causal window": replace(FULL, causal=True, window=9),
    "alibi": replace(FULL, heads=4, key_heads=4, alibi=True),
    "shared keys": replace(FULL, heads=6, key_heads=2),
}


@pytest.mark.parametrize("spare", [0, 15, 40])
@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_attention_is_that_of_each_text_by_itself(how: Attention, spare: int) -> None:
    total = sum(LENGTHS)
    query, key, value = states(how, total + spare)

    found = attend(query, key, value, how, Packing.of(np.array(LENGTHS), CPU))

    rows = expected(
        query[:total], key[:total], value[:total], how, LENGTHS, torch.ones(total, dtype=torch.bool)
    )
    torch.testing.assert_close(found[:total].double(), rows, rtol=0, atol=2e-6)
    assert not found[total:].any()


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_unattended_tokens_see_and_are_not_seen(how: Attention) -> None:
    lengths, real = (12, 12, 40), (5, 12, 36)
    seen = torch.cat(
        [torch.arange(length) < least for length, least in zip(lengths, real, strict=True)]
    )
    query, key, value = states(how, sum(lengths))

    found = attend(query, key, value, how, Packing.of(np.array(lengths), CPU, seen.numpy()))

    rows = expected(query, key, value, how, lengths, seen)
    torch.testing.assert_close(found.double(), rows, rtol=0, atol=2e-6)


def test_a_token_that_sees_nothing_gets_nothing() -> None:
    how = replace(FULL, window=2)
    seen = np.array([True] * 3 + [False] * 5)
    query, key, value = states(how, 8)

    found = attend(query, key, value, how, Packing.of(np.array([8]), CPU, seen))

    assert found[:4].any(dim=(1, 2)).all()
    assert not found[4:].any()


@pytest.fixture
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("together", [1, 9000, 2**18], ids="heads one by one,two,all".split(","))
def test_powers_without_a_largest_similarity_are_the_softmax(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (SHORTEST, 60, 60, 71)
    query, key, value = states(FULL, sum(lengths))
    out = torch.full_like(query, math.nan)
    monkeypatch.setattr(direct, "TOGETHER", together)

    done, start = [], 0
    for length, count in ((SHORTEST, 1), (60, 2), (71, 1)):
        rows = slice(start, start + length * count)
        done.append(attend_directly(out[rows], query[rows], key[rows], value[rows], length))
        start = rows.stop

    seen = torch.ones(sum(lengths), dtype=torch.bool)
    rows = expected(query, key, value, FULL, lengths, seen)
    assert all(done)
    torch.testing.assert_close(out.double(), rows, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("times", [1.0, 6.0, 60.0, 1000.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_similarities_of_any_size_give_the_softmax(times: float, sign: float) -> None:
    """Beyond about 50 powers overflow, or all become 0: the usual way is taken then."""
    query, key, value = states(FULL, 60)
    query, key = query.abs() * times, key.abs() * sign
    assert is_faster(query, key) == torch.backends.mkl.is_available()

    found = attend(query, key, value, FULL, Packing.of(np.array([60]), CPU))

    rows = expected(query, key, value, FULL, (60,), torch.ones(60, dtype=torch.bool))
    torch.testing.assert_close(found.double(), rows, rtol=1e-5, atol=1e-5 * max(times, 1))
    largest = float((query.transpose(0, 1) @ key.permute(1, 2, 0)).abs().max() / math.sqrt(8))
    direct_ = attend_directly(torch.empty_like(query), query, key, value, 60)
    assert direct_ == (largest < 50)


@pytest.mark.usefixtures("one_core")
def test_states_that_are_no_numbers_are_not_hidden() -> None:
    query, key, value = states(FULL, 120)
    query[3], key[70] = math.nan, math.inf

    found = attend(query, key, value, FULL, Packing.of(np.array([60, 60]), CPU))

    usual = scaled_dot_product_attention(
        *(part.unflatten(0, (2, 60)).transpose(1, 2) for part in (query, key, value))
    )
    torch.testing.assert_close(
        found, usual.transpose(1, 2).flatten(0, 1), rtol=0, atol=2e-6, equal_nan=True
    )
    assert not attend_directly(torch.empty_like(query), query, key, value, 60)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", ["full", "window", "causal", "causal window", "shared keys"])
def test_the_kernel_is_told_the_same(name: str, hidden: bool) -> None:
    """By a stand-in with the arguments of torch.nn.attention.varlen.varlen_attn."""
    how, lengths = HOWS[name], (12, 12, 7)
    seen = np.ones(sum(lengths), bool)
    if hidden and name in ("full", "shared keys"):  # elsewhere, it is not asked
        seen[[10, 11, 20, 30]] = False
    query, key, value = states(how, sum(lengths))

    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> Tensor:
        assert enable_gqa == (how.heads != how.key_heads)
        left, right = window_size
        out = []
        for number in range(len(cu_seq_q) - 1):
            rows = slice(*cu_seq_q[number : number + 2].tolist())
            keys = slice(*cu_seq_k[number : number + 2].tolist())
            assert rows.stop - rows.start <= max_q
            assert keys.stop - keys.start <= max_k
            text = [query[rows].double(), *(part[keys].double() for part in (key, value))]
            repeats = how.heads // how.key_heads
            logits = torch.einsum("qhw,khw->hqk", text[0], text[1].repeat_interleave(repeats, 1))
            logits /= math.sqrt(how.head_width)
            far = torch.arange(text[1].shape[0]) - torch.arange(text[0].shape[0])[:, None]
            far = far - (text[1].shape[0] - text[0].shape[0])  # counted from the end
            outside = ((far < -left) & (left >= 0)) | ((far > right) & (right >= 0))
            weights = logits.masked_fill(outside, -math.inf).softmax(-1)
            value_of = text[2].repeat_interleave(repeats, 1)
            out.append(torch.einsum("hqk,khw->qhw", weights, value_of))
        return torch.cat(out)

    packing = Packing.of(np.array(lengths), CPU, seen)
    found = attention._by_kernel(kernel, query, key, value, how, packing)

    rows = expected(query, key, value, how, lengths, torch.from_numpy(seen))
    torch.testing.assert_close(found, rows, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        # Press et al., 2022: 2 ** (-8 i / n) for powers of two; for others, what
        # ofirpress/attention_with_linear_biases gives for 12 heads, to five digits.
        (8, [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]),
        (
            12,
            [
                0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625,
                0.70711, 0.35355, 0.17678, 0.088388,
            ],
        ),
        (1, [2.0**-8]),
    ],
)  # fmt: skip
def test_slopes_are_those_of_the_paper(heads: int, slopes: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx(slopes, rel=1e-4)


def test_no_mask_is_kept_that_grows_with_the_square_of_a_length() -> None:
    how = replace(HOWS["alibi"], window=None)
    packing = Packing.of(np.array([40]), CPU)

    attend(*states(how, 40), how, packing)

    assert packing.masks == {}
