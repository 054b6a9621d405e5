"""Linear layers: fused products give what the plain way gives, which is taken where they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from colbert_rag import ColBERT, backbone
from colbert_rag.backbone import linear
from colbert_rag.backbone.linear import Linear, fuses
from tests.helpers.answers import open_exactly
from tests.helpers.texts import DOCUMENTS

AFTER: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "nothing": lambda out, other: out,
    "gelu": lambda out, other: functional.gelu(out),
    "gelu_tanh": lambda out, other: functional.gelu(out, approximate="tanh"),
    "relu": lambda out, other: out.relu(),
    "silu": lambda out, other: functional.silu(out),
    "plus": lambda out, other: out + other,
    "times": lambda out, other: out * other,
}


@pytest.fixture(params=["fused", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(linear, "fuses", lambda dtype: False)
    elif not fuses(torch.float32):
        pytest.skip("this build of torch or this processor has no fused products")
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("after", AFTER)
def test_what_follows_a_product_is_the_same_within_it(
    after: str, bias: bool, dtype: torch.dtype, way: str
) -> None:
    random = torch.Generator().manual_seed(2)
    rows, weight, other = (
        torch.randn(*size, generator=random).to(dtype) for size in ((50, 24), (40, 24), (50, 40))
    )
    added = torch.randn(40, generator=random).to(dtype) if bias else None
    layer = Linear(weight.clone(), added)
    options = {"plus": {"plus": other}, "times": {"times": other}, "nothing": {}}

    with torch.inference_mode():
        found = layer(rows, **options.get(after, {"activation": after}))

    out = rows.double() @ weight.double().T + (0 if added is None else added.double())
    expected = AFTER[after](out, other.double())
    exact = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.005}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=exact, atol=exact * 4)


def test_an_operator_that_is_missing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")

    monkeypatch.setattr(linear, "_laid_out", gone)

    assert not fuses.__wrapped__(torch.float32)


def test_an_operator_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fused = linear._fused
    monkeypatch.setattr(linear, "_fused", lambda *arguments: fused(*arguments) + 0.1)

    assert not fuses.__wrapped__(torch.float32)


@pytest.mark.parametrize(
    "name", ["stanford-bert", "pylate-modernbert", "pylate-eurobert", "pylate-lfm2", "jina"]
)
def test_a_model_computes_the_same_both_ways(
    name: str,
    checkpoint: Callable[..., object],
    colbert: Callable[..., ColBERT],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = list(DOCUMENTS.values())
    expected = colbert(name).encode_documents(texts)
    monkeypatch.setattr(linear, "fuses", lambda dtype: False)
    monkeypatch.setattr(backbone.transformer, "fuses", lambda dtype: False)

    found = open_exactly(checkpoint(name)).encode_documents(texts)

    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)
