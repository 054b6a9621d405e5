"""Which way a decoder's weights look is said by `config.json` alone, and never guessed.

LFM2.5 has LFM2's tensors and model type, pplx's Qwen3 those of Qwen3: opened the wrong way, each
gives scores without any sign that they are wrong. As `architectures`, LFM2-ColBERT publishes
`["Lfm2Model"]`, LFM2.5-ColBERT `["Lfm2BidirectionalModel"]` and an `auto_map` to the same class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colbert_rag import ColBERT
from colbert_rag.errors import CheckpointError, TensorMismatchError, UnsupportedBackboneError
from tests.helpers.answers import open_exactly
from tests.helpers.texts import DOCUMENTS
from tests.helpers.tiny import DROP, edit_json, edit_tensors

Copy = Callable[[str], Path]
BOTH_WAYS = {"AutoModel": "modeling_lfm2_bidirectional.Lfm2BidirectionalModel"}
ELSEWHERE = {"AutoModel": "modeling_of_somebody.Model"}


# LFM2


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"architectures": DROP}, id="nothing is said"),
        pytest.param({"architectures": []}, id="an empty list"),
        pytest.param({"architectures": ["HF_ColBERT"]}, id="another word"),
        pytest.param({"auto_map": BOTH_WAYS}, id="both are said"),
        pytest.param({"auto_map": ELSEWHERE}, id="code of somebody's own"),
        pytest.param({"architectures": DROP, "auto_map": ELSEWHERE}, id="that code alone"),
    ],
)
def test_lfm2_that_does_not_say_which_way_it_looks_is_refused(
    changes: dict[str, Any], copy_of: Copy
) -> None:
    folder = copy_of("pylate-lfm2")
    edit_json(folder / "config.json", **changes)

    with pytest.raises(UnsupportedBackboneError, match="LFM2"):
        open_exactly(folder)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"architectures": DROP, "auto_map": DROP}, id="nothing is said"),
        pytest.param({"architectures": ["Lfm2Model"]}, id="both are said"),
        pytest.param({"auto_map": ELSEWHERE}, id="code of somebody's own"),
    ],
)
def test_lfm2_5_that_lost_what_tells_it_apart_is_refused(
    changes: dict[str, Any], copy_of: Copy
) -> None:
    folder = copy_of("pylate-lfm2-bidirectional")
    edit_json(folder / "config.json", **changes)

    with pytest.raises(UnsupportedBackboneError, match="LFM2"):
        open_exactly(folder)


def test_lfm2_under_the_name_of_its_language_model_is_the_same(
    copy_of: Copy, colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of("pylate-lfm2")
    edit_json(folder / "config.json", architectures=["Lfm2ForCausalLM"])
    texts = [DOCUMENTS["another planet"], DOCUMENTS["one word"]]

    assert open_exactly(folder).score("mars", texts) == colbert("pylate-lfm2").score("mars", texts)


def test_lfm2_5_whose_convolutions_do_not_read_padding_is_refused(copy_of: Copy) -> None:
    """LFM2.5-Embedding's way, which transformers writes as `conv_zero_padding`."""
    folder = copy_of("pylate-lfm2-bidirectional")
    changes = {"model_type": "lfm2_bidirectional", "auto_map": DROP, "conv_zero_padding": True}
    edit_json(folder / "config.json", **changes)

    with pytest.raises(CheckpointError, match="conv_zero_padding"):
        open_exactly(folder)


# Qwen3


def test_qwen3_by_the_name_of_its_code_alone_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-qwen3-bidirectional-by-key")
    remote = {"AutoModel": "modeling.PPLXQwen3Model"}
    edit_json(folder / "config.json", auto_map=remote, use_bidirectional_attention=DROP)

    with pytest.raises(UnsupportedBackboneError, match="Qwen3"):
        open_exactly(folder)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"architectures": ["Qwen3ForCausalLM"]}, id="a language model"),
        pytest.param({"architectures": ["Qwen3Model"]}, id="its body"),
        pytest.param({"architectures": DROP}, id="nothing is said"),
        pytest.param({"use_bidirectional_attention": False}, id="said not to"),
        pytest.param({"architectures": DROP, "auto_map": ELSEWHERE}, id="code of somebody's own"),
    ],
)
def test_causal_qwen3_is_refused(changes: dict[str, Any], copy_of: Copy) -> None:
    folder = copy_of("pylate-qwen3-bidirectional-by-key")
    edit_json(folder / "config.json", **{"use_bidirectional_attention": DROP, **changes})

    with pytest.raises(UnsupportedBackboneError, match="Qwen3"):
        open_exactly(folder)


def test_qwen3_that_says_both_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-qwen3-bidirectional")
    edit_json(folder / "config.json", use_bidirectional_attention=False)

    with pytest.raises(UnsupportedBackboneError, match="Qwen3"):
        open_exactly(folder)


def test_layers_of_a_kind_that_modernbert_does_not_have_are_named(copy_of: Copy) -> None:
    folder = copy_of("pylate-modernbert")
    layers = ["sliding_attention", "full_attention"]
    edit_json(folder / "config.json", layer_types=[*layers, "mamba"])

    with pytest.raises(
        CheckpointError, match=r"as full_attention, mamba, .* of full_attention, sliding_attention$"
    ):
        open_exactly(folder)


def test_qwen3_with_layers_that_see_a_window_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-qwen3-bidirectional")
    layers = ["full_attention", "sliding_attention"]
    edit_json(folder / "config.json", layer_types=layers, sliding_window=8)

    with pytest.raises(CheckpointError, match="layer_types"):
        open_exactly(folder)


# JinaBERT v1, which is BERT by model type


def test_jinabert_with_a_table_of_positions_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-jinabert")
    name = "bert.embeddings.position_embeddings.weight"
    edit_tensors(
        folder / "model.safetensors", lambda tensors: {**tensors, name: torch.ones(320, 48)}
    )

    with pytest.raises(TensorMismatchError, match="position_embeddings"):
        open_exactly(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("position_embedding_type", "absolute"), ("feed_forward_type", "original")],
)
def test_jinabert_that_says_it_is_another_one_is_refused(
    key: str, value: str, copy_of: Copy
) -> None:
    folder = copy_of("stanford-jinabert")
    edit_json(folder / "config.json", **{key: value})

    with pytest.raises(CheckpointError, match=key):
        open_exactly(folder)


def test_bert_without_its_table_of_positions_is_not_jinabert(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    name = "bert.embeddings.position_embeddings.weight"
    edit_json(folder / "config.json", position_embedding_type="alibi")
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: {key: value for key, value in tensors.items() if key != name},
    )

    with pytest.raises(TensorMismatchError, match="position_embeddings"):
        open_exactly(folder)
