"""What unusual configurations mean: the same as to transformers, or an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colbert_rag import ColBERT
from colbert_rag.backbone import linear
from colbert_rag.backbone.attention import attend
from colbert_rag.backbone.packing import Packing
from colbert_rag.errors import CheckpointError
from tests.helpers.answers import distance, open_exactly
from tests.helpers.oracle import plain_oracle
from tests.helpers.texts import DOCUMENTS
from tests.helpers.tiny import DROP, edit_json
from tests.helpers.variants import VARIANTS

Copy = Callable[[str], Path]
TEXT = DOCUMENTS["one hundred and twenty words"]
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("stanford-modernbert", {"sliding_window": 4}),
        ("stanford-modernbert", {"local_attention": 4}),
        ("pylate-eurobert", {"rope_parameters": DEFAULT, "rope_scaling": {"rope_theta": 500.0}}),
        ("pylate-eurobert", {"head_dim": None}),
        ("stanford-distilbert", {"hidden_act": "relu"}),
        ("stanford-distilbert", {"n_heads": DROP, "num_attention_heads": 2}),
        ("stanford-roberta", {"pad_token_id": 0}),
        ("stanford-roberta", {"pad_token_id": DROP}),
    ],
)
def test_a_key_means_what_it_means_to_transformers(
    name: str, changes: dict[str, object], copy_of: Copy
) -> None:
    folder = copy_of(name)
    edit_json(folder / "config.json", **changes)

    (found,) = open_exactly(folder).encode_documents([TEXT])

    expected = plain_oracle(VARIANTS[name], folder).document(TEXT).rows
    assert distance(found, expected) <= 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "pylate-eurobert",
            {"rope_parameters": DEFAULT, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            "expected 'default' over all of it",
        ),
        (
            "stanford-modernbert",
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "expected 'default' over all of it",
        ),
        ("stanford-roberta", {"pad_token_id": -1}, "pad_token_id is no token"),
        ("stanford-roberta", {"pad_token_id": None}, "pad_token_id is no token"),
        ("stanford-distilbert", {"num_attention_heads": 2}, "which mean the same"),
    ],
)
def test_a_key_that_we_do_not_follow_is_refused(
    name: str, changes: dict[str, object], words: str, copy_of: Copy
) -> None:
    folder = copy_of(name)
    edit_json(folder / "config.json", **changes)

    with pytest.raises(CheckpointError, match=words):
        open_exactly(folder)


def test_a_text_that_overflows_spoils_no_other(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("pylate-eurobert", dtype="float16")._loaded().text_encoder.encoder._model
    how = model.shape.layers[0].mixer
    states = torch.ones(42, how.heads, how.head_width)
    keys = states[:, : how.key_heads].clone()
    keys[21:] = torch.nan

    found = attend(states, keys, keys, how, Packing.of(_lengths(21, 21), "cpu"), overflows=True)

    assert found[:21].isfinite().all()
    assert found[21:].isnan().all()


def _lengths(*lengths: int) -> object:
    return torch.tensor(lengths).numpy()


@pytest.mark.parametrize(
    "state", [lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_what_the_first_caller_has_set_in_torch_decides_nothing(
    state: Callable[[], torch.device],
) -> None:
    expected = linear.fuses.__wrapped__(torch.float32)

    with state():
        assert linear.fuses.__wrapped__(torch.float32) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_callers_default_dtype_changes_no_slope(
    dtype: torch.dtype, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert("stanford-jinabert")
    expected = model.encode_documents([TEXT]).values
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = model.encode_documents([TEXT]).values
    finally:
        torch.set_default_dtype(before)

    torch.testing.assert_close(found, expected, rtol=0, atol=0)
