"""A checkpoint that cannot give the trained scores is refused, by its own error class.

Most of these open without complaint elsewhere and then rank at random; each test spoils one thing
of a checkpoint that opens, and the error names it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colbert_rag.errors import (
    CheckpointError,
    HubUnreachableError,
    MissingProjectionError,
    NotACheckpointError,
    ProjectionError,
    TensorMismatchError,
    UnsupportedBackboneError,
    UnsupportedModuleError,
)
from tests.helpers.answers import open_exactly
from tests.helpers.tiny import (
    DROP,
    Head,
    Spec,
    build,
    edit_json,
    edit_tensors,
    plus,
    read_json,
    without,
    write_json,
)
from tests.helpers.variants import VARIANTS

Copy = Callable[[str], Path]
WEIGHTS = "model.safetensors"


# Not a checkpoint


def test_an_empty_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match=r"no config\.json.* Found: an empty folder$"):
        open_exactly(tmp_path)


def test_a_folder_of_other_files_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("sand")
    (tmp_path / "weather.txt").write_text("sun")

    with pytest.raises(NotACheckpointError, match=r"Found: holiday\.txt, weather\.txt$"):
        open_exactly(tmp_path)


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(b"")

    with pytest.raises(NotACheckpointError, match="folder"):
        open_exactly(path)


def test_a_name_that_is_neither_folder_nor_hub_id_is_not_a_checkpoint() -> None:
    with pytest.raises(NotACheckpointError, match="no such folder!"):
        open_exactly("no such folder!")


def test_a_config_without_weights_is_not_a_checkpoint(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / WEIGHTS).unlink()

    with pytest.raises(NotACheckpointError, match=r"model\.safetensors"):
        open_exactly(folder)


def test_an_unreachable_hub_names_the_offline_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)

    with pytest.raises(HubUnreachableError) as caught:
        open_exactly("answerdotai/answerai-colbert-small-v1", cache_folder=tmp_path)

    assert isinstance(caught.value, ConnectionError)
    message = str(caught.value)
    assert "answerdotai/answerai-colbert-small-v1" in message
    assert "offline-minilm" in message
    assert "folder" in message
    # What stood in the way, and not only that nothing is kept here.
    assert "no network in this test" in message
    assert "outgoing traffic has been disabled" not in message


# Projection


def test_a_plain_encoder_is_refused_instead_of_given_a_random_projection(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(MissingProjectionError, match=r"tensors seen: [\w.]+, [^\[]*raw_tok"):
        open_exactly(checkpoint("raw-bert"))


def test_an_inline_checkpoint_that_lost_its_projection_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_tensors(folder / WEIGHTS, without("linear.weight"))

    with pytest.raises(MissingProjectionError, match=r"linear\.weight"):
        open_exactly(folder)


def test_a_dense_sentence_model_is_refused(copy_of: Copy) -> None:
    """Transformer, Pooling, Dense: the Dense projects one pooled vector, not tokens."""
    folder = copy_of("pylate-bert-pooling")
    modules = read_json(folder / "modules.json")
    modules.insert(1, modules.pop(2))
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", {"prompts": {}})

    with pytest.raises(MissingProjectionError, match="projection"):
        open_exactly(folder)


def test_a_projection_of_a_higher_rank_is_no_projection(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_tensors(folder / WEIGHTS, plus(linear__weight=torch.ones(16, 32, 1)))

    with pytest.raises(CheckpointError, match=r"linear\.weight"):
        open_exactly(folder)


def test_raw_token_embeddings_of_a_trained_model_are_refused(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(CheckpointError, match="raw_token_embeddings"):
        open_exactly(checkpoint("stanford-bert"), raw_token_embeddings=True)


def test_an_inline_projection_of_another_width_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_tensors(folder / WEIGHTS, plus(linear__weight=torch.ones(16, 24)))

    with pytest.raises(ProjectionError, match=r"24.*32"):
        open_exactly(folder)


def test_a_broken_chain_of_dense_layers_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-modernbert-two-layers")
    edit_tensors(folder / "2_Dense" / WEIGHTS, plus(linear__weight=torch.ones(12, 48)))
    edit_json(folder / "2_Dense" / "config.json", in_features=48)

    with pytest.raises(ProjectionError, match=r"48.*64"):
        open_exactly(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("in_features", 48), ("out_features", 128)], ids=["in", "out"]
)
def test_a_dense_config_that_contradicts_its_tensor_is_refused(
    key: str, value: int, copy_of: Copy
) -> None:
    folder = copy_of("pylate-bert")
    edit_json(folder / "1_Dense" / "config.json", **{key: value})

    with pytest.raises(ProjectionError, match=f"{key}.*{value}"):
        open_exactly(folder)


def test_a_missing_residual_tensor_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-bert-residual")
    edit_tensors(folder / "1_Dense" / WEIGHTS, without("residual.weight"))

    with pytest.raises(ProjectionError, match=r"residual\.weight"):
        open_exactly(folder)


def test_a_missing_bias_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-bert-gelu-bias")
    edit_tensors(folder / "1_Dense" / WEIGHTS, without("linear.bias"))

    with pytest.raises(ProjectionError, match=r"linear\.bias"):
        open_exactly(folder)


def test_a_bias_of_the_wrong_length_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-bert-gelu-bias")
    edit_tensors(folder / "1_Dense" / WEIGHTS, plus(linear__bias=torch.ones(7)))

    with pytest.raises(ProjectionError, match="bias"):
        open_exactly(folder)


def test_an_unknown_tensor_in_a_dense_layer_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-bert")
    edit_tensors(folder / "1_Dense" / WEIGHTS, plus(gate__weight=torch.ones(16, 32)))

    with pytest.raises(CheckpointError, match=r"known Dense layer: gate\.weight$"):
        open_exactly(folder)


def test_two_projections_that_differ_are_refused(tmp_path: Path) -> None:
    build(Spec("pylate", tokens=("[unused0]", "[unused1]")), tmp_path)
    build(VARIANTS["stanford-bert"], tmp_path)
    edit_tensors(tmp_path / "1_Dense" / WEIGHTS, plus(linear__weight=torch.ones(16, 32)))

    with pytest.raises(ProjectionError, match="1_Dense"):
        open_exactly(tmp_path)


def test_two_chains_that_differ_are_refused(tmp_path: Path) -> None:
    """Two Dense layers beside one inline projection cannot be the same function."""
    heads = (Head(64), Head(16))
    build(Spec("pylate", tokens=("[unused0]", "[unused1]"), heads=heads), tmp_path)
    build(VARIANTS["stanford-bert"], tmp_path)

    with pytest.raises(ProjectionError, match="Dense"):
        open_exactly(tmp_path)


@pytest.mark.parametrize(
    "activation",
    ["torch.nn.modules.activation.Sigmoid", "os.system", "GELU", "my.torch.nn.modules.linear.GELU"],
)
def test_an_activation_outside_the_allowlist_is_refused(activation: str, copy_of: Copy) -> None:
    folder = copy_of("pylate-bert")
    edit_json(folder / "1_Dense" / "config.json", activation_function=activation)

    with pytest.raises(UnsupportedModuleError, match=activation.replace(".", r"\.")):
        open_exactly(folder)


@pytest.mark.parametrize("module", ["os.system", "pylate.models.LSTM", "my_package.Dense2"])
def test_a_module_outside_the_allowlist_is_refused(module: str, copy_of: Copy) -> None:
    folder = copy_of("pylate-bert")
    modules = read_json(folder / "modules.json")
    modules[1]["type"] = module
    write_json(folder / "modules.json", modules)

    with pytest.raises(UnsupportedModuleError, match=module.replace(".", r"\.")):
        open_exactly(folder)


def test_documents_masked_to_image_tokens_are_refused(copy_of: Copy) -> None:
    folder = copy_of("native-bert")
    edit_json(folder / "2_MultiVectorMask" / "config.json", keep_only_token_ids=[7])

    with pytest.raises(CheckpointError, match="keep_only_token_ids"):
        open_exactly(folder)


# Tensors of the backbone


def test_a_missing_tensor_is_refused(copy_of: Copy) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    folder = copy_of("stanford-bert")
    edit_tensors(folder / WEIGHTS, without(name))

    with pytest.raises(TensorMismatchError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        open_exactly(folder)


def test_an_unexpected_tensor_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_tensors(folder / WEIGHTS, plus(bert__encoder__extra__weight=torch.ones(2)))

    with pytest.raises(TensorMismatchError, match=r"encoder\.extra\.weight"):
        open_exactly(folder)


def test_a_tensor_of_another_shape_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    name = "bert.encoder.layer.0.output.dense.bias"
    edit_tensors(folder / WEIGHTS, lambda tensors: {**tensors, name: torch.ones(33)})

    with pytest.raises(TensorMismatchError, match=r"encoder\.layer\.0\.output\.dense\.bias"):
        open_exactly(folder)


def test_a_config_with_more_layers_than_the_weights_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-modernbert")
    edit_json(folder / "config.json", num_hidden_layers=4)

    with pytest.raises(TensorMismatchError, match=r"layers\.3"):
        open_exactly(folder)


def test_a_config_with_fewer_layers_than_the_weights_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", num_hidden_layers=1)

    with pytest.raises(TensorMismatchError, match=r"encoder\.layer\.1"):
        open_exactly(folder)


def test_tensors_of_another_backbone_are_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-roberta")
    edit_json(folder / "config.json", model_type="distilbert")

    with pytest.raises(TensorMismatchError, match="DistilBERT"):
        open_exactly(folder)


# Backbones


def test_an_unknown_backbone_lists_the_known_ones(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", model_type="hyena")

    with pytest.raises(UnsupportedBackboneError, match=r"hyena.*ModernBERT"):
        open_exactly(folder)


def test_a_config_without_model_type_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", model_type=DROP)

    with pytest.raises(CheckpointError, match="model_type"):
        open_exactly(folder)


def test_an_unknown_xmod_language_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match=r"nl_XX.*en_XX"):
        open_exactly(checkpoint("stanford-xmod"), language="nl_XX")
