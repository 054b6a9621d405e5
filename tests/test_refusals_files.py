"""Files that lead out of the checkpoint, could run code, are damaged or say impossible things."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colbert_rag import ColBERT
from colbert_rag.errors import (
    CheckpointError,
    CorruptWeightsError,
    MetadataError,
    PickleWeightsError,
    UnsafePathError,
)
from tests.helpers.answers import open_exactly
from tests.helpers.tiny import (
    edit_json,
    read_json,
    without,
    write_json,
)

Copy = Callable[[str], Path]
WEIGHTS = "model.safetensors"


# Paths


@pytest.mark.parametrize(
    "path",
    ["/etc", "..", "../other", "1_Dense/../../other", "..\\other", "1_Dense\x00", "C:\\weights"],
    ids=["absolute", "parent", "sibling", "climbs inside", "backslash", "nul", "drive"],
)
def test_a_module_path_that_leaves_the_checkpoint_is_refused(path: str, copy_of: Copy) -> None:
    folder = copy_of("pylate-bert")
    modules = read_json(folder / "modules.json")
    modules[1]["path"] = path
    write_json(folder / "modules.json", modules)

    with pytest.raises(UnsafePathError, match=r"modules\.json"):
        open_exactly(folder)


def test_a_module_folder_that_links_out_of_the_checkpoint_is_refused(
    copy_of: Copy, tmp_path: Path
) -> None:
    folder = copy_of("pylate-bert")
    outside = tmp_path / "outside"
    (folder / "1_Dense").rename(outside)
    (folder / "1_Dense").symlink_to(outside, target_is_directory=True)

    with pytest.raises(UnsafePathError, match="1_Dense"):
        open_exactly(folder)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a\\b.safetensors"])
def test_a_shard_name_that_leaves_the_checkpoint_is_refused(shard: str, copy_of: Copy) -> None:
    folder = copy_of("stanford-bert-sharded")
    index = read_json(folder / "model.safetensors.index.json")
    index["weight_map"]["linear.weight"] = shard
    write_json(folder / "model.safetensors.index.json", index)

    with pytest.raises(UnsafePathError, match=r"index\.json"):
        open_exactly(folder)


def test_files_that_link_into_a_blob_store_open(copy_of: Copy, tmp_path: Path) -> None:
    """The hub's cache is made of such links; refusing them would refuse every download."""
    folder = copy_of("stanford-bert")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    names = [path.name for path in folder.iterdir()]
    for name in names:
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(os.path.relpath(blobs / name, folder))

    assert len(open_exactly(folder).score("mars", ["venus"])) == 1


# Weight files


def test_pickled_weights_are_refused_with_the_way_to_convert_them(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(PickleWeightsError, match=r"(?s)pytorch_model\.bin.*save_file") as caught:
        open_exactly(checkpoint("stanford-bert-pickled"))

    assert "allow_pickle=True" in str(caught.value)


def test_a_pickle_that_runs_code_is_never_run(copy_of: Copy, tmp_path: Path) -> None:
    class Intruder:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "was here"),))

    folder = copy_of("stanford-bert-pickled")
    (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps({"linear.weight": Intruder()}, protocol=2)
    )

    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_exactly(folder, allow_pickle=True)

    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"\x80\x02(.", b"\x80\x02h\x05.", b"junk"])
def test_a_damaged_pickle_is_refused_as_one(copy_of: Copy, content: bytes) -> None:
    folder = copy_of("stanford-bert")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)

    with pytest.raises(CorruptWeightsError, match=r"pytorch_model\.bin cannot be read with"):
        open_exactly(folder, allow_pickle=True)


def test_a_pickled_dense_layer_is_read_on_request(
    copy_of: Copy, colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of("pylate-bert")
    dense = folder / "1_Dense"
    torch.save(load_file(dense / WEIGHTS), dense / "pytorch_model.bin")
    (dense / WEIGHTS).unlink()

    with pytest.raises(PickleWeightsError, match="1_Dense"):
        open_exactly(folder)

    texts = ["mars", "venus is a planet"]
    expected = colbert("pylate-bert").score("mars", texts)
    assert open_exactly(folder, allow_pickle=True).score("mars", texts) == expected


def test_the_pickled_head_of_bge_m3_is_refused(copy_of: Copy) -> None:
    folder = copy_of("raw-roberta")
    torch.save({"weight": torch.ones(32, 32), "bias": torch.ones(32)}, folder / "colbert_linear.pt")

    with pytest.raises(PickleWeightsError, match=r"colbert_linear\.pt"):
        open_exactly(folder)


def test_safetensors_are_preferred_to_a_pickle_beside_them(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")

    assert open_exactly(folder, allow_pickle=True).dim == 16


def test_a_truncated_weight_file_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])

    with pytest.raises(CorruptWeightsError, match=r"model\.safetensors.*truncated"):
        open_exactly(folder)


def test_a_truncated_dense_file_is_refused(copy_of: Copy) -> None:
    folder = copy_of("pylate-bert")
    data = (folder / "1_Dense" / WEIGHTS).read_bytes()
    (folder / "1_Dense" / WEIGHTS).write_bytes(data[:-8])

    with pytest.raises(CorruptWeightsError, match="1_Dense"):
        open_exactly(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01",
        struct.pack("<Q", 10**15) + b"{}",
        struct.pack("<Q", 9) + b"not json!",
        struct.pack("<Q", 12) + b'{"a":"text"}',
        struct.pack("<Q", 2) + b"[]",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 133\n",
    ],
    ids=["empty", "two bytes", "vast header", "no json", "no tensor", "a list", "lfs pointer"],
)
def test_a_corrupt_safetensors_header_is_refused(data: bytes, copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / WEIGHTS).write_bytes(data)

    with pytest.raises(CorruptWeightsError, match=r"model\.safetensors"):
        open_exactly(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F77", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "data_offsets": [0, 8]},
    ],
    ids=["too short", "negative", "backwards", "unknown dtype", "shape a string", "no shape"],
)
def test_an_impossible_tensor_entry_is_refused(entry: dict[str, Any], copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    header = json.dumps({"linear.weight": entry}).encode()
    body = struct.pack("<Q", len(header)) + header + bytes(8)
    (folder / WEIGHTS).write_bytes(body)

    with pytest.raises(CheckpointError, match=r"model\.safetensors|linear\.weight"):
        open_exactly(folder)


def test_a_missing_shard_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert-sharded")
    (folder / "model-00002-of-00003.safetensors").unlink()

    with pytest.raises(CorruptWeightsError, match="model-00002-of-00003"):
        open_exactly(folder)


def test_a_tensor_the_index_promises_in_vain_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert-sharded")
    index = read_json(folder / "model.safetensors.index.json")
    shard = folder / index["weight_map"]["linear.weight"]
    save_file(without("linear.weight")(load_file(shard)), shard)

    with pytest.raises(CorruptWeightsError, match=r"no shard holds: linear\.weight$"):
        open_exactly(folder)


# Metadata


@pytest.mark.parametrize(
    ("key", "value"),
    [
        # liuqi6777/bge-m3-colbert publishes this; other libraries raise a bare TypeError.
        ("query_token_id", {"content": "[unused0]", "lstrip": False}),
        ("doc_token_id", 2),
        ("query_maxlen", "32"),
        ("doc_maxlen", True),
        ("attend_to_mask_tokens", "yes"),
        ("mask_punctuation", 1),
        ("interaction", 5),
    ],
)
def test_metadata_of_the_wrong_type_is_refused(key: str, value: object, copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "artifact.metadata", **{key: value})

    with pytest.raises(MetadataError, match=rf"artifact\.metadata.*{key}"):
        open_exactly(folder)


def test_a_broken_marker_entry_is_overridden_by_the_caller(
    copy_of: Copy, colbert: Callable[..., ColBERT]
) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "artifact.metadata", query_token_id={"content": "[unused0]"})

    model = open_exactly(folder, query_marker="[unused0]")

    texts = ["mars", "venus is a planet"]
    assert model.score("mars", texts) == colbert("stanford-bert").score("mars", texts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("query_prefix", 5),
        ("query_length", 31.5),
        ("skiplist_words", "!?"),
        ("skiplist_words", [1, 2]),
        ("do_query_expansion", "false"),
        ("prompts", ["query"]),
        ("attend_to_expansion_tokens", 0),
    ],
)
def test_pylate_settings_of_the_wrong_type_are_refused(
    key: str, value: object, copy_of: Copy
) -> None:
    folder = copy_of("pylate-bert")
    edit_json(folder / "config_sentence_transformers.json", **{key: value})

    with pytest.raises(MetadataError, match=rf"config_sentence_transformers\.json.*{key}"):
        open_exactly(folder)


@pytest.mark.parametrize(
    "expansion",
    [
        {"strategy": "longest", "length": 16},
        {"strategy": "fixed"},
        {"strategy": "fixed", "length": "16"},
        {"strategy": "fixed", "length": 0},
        {"strategy": "fixed", "length": 16, "attend": "no"},
        "fixed",
    ],
    ids=["unknown strategy", "no length", "length a string", "length 0", "attend a string", "text"],
)
def test_an_impossible_query_expansion_is_refused(expansion: object, copy_of: Copy) -> None:
    folder = copy_of("native-bert")
    edit_json(folder / "sentence_bert_config.json", query_expansion=expansion)

    with pytest.raises(MetadataError, match=r"query_expansion|query_length"):
        open_exactly(folder)


def test_another_interaction_than_maxsim_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "artifact.metadata", interaction="flipr")

    with pytest.raises(MetadataError, match=r"interaction.*flipr"):
        open_exactly(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "bert"'),
        ("artifact.metadata", "query_maxlen: 32"),
        ("artifact.metadata", "[" * 100_000),
        ("artifact.metadata", "\ufeff\x00"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_refused(file: str, text: str, copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / file).write_text(text, encoding="utf-8")

    with pytest.raises(MetadataError, match=file.replace(".", r"\.")):
        open_exactly(folder)


def test_metadata_in_another_encoding_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / "artifact.metadata").write_bytes('{"root": "Zürich"}'.encode("latin-1"))

    with pytest.raises(MetadataError, match=r"artifact\.metadata"):
        open_exactly(folder)


def test_a_json_file_of_absurd_size_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "artifact.metadata", root="x" * (9 * 2**20))

    with pytest.raises(MetadataError, match=r"artifact\.metadata.*bytes"):
        open_exactly(folder)


@pytest.mark.parametrize(
    "modules",
    ["{}", '["Transformer"]', '[{"idx": 0, "path": ""}]', '[{"type": "a.Transformer"}]'],
    ids=["object", "strings", "no type", "no path"],
)
def test_a_module_list_that_lists_no_modules_is_refused(modules: str, copy_of: Copy) -> None:
    folder = copy_of("pylate-bert")
    (folder / "modules.json").write_text(modules)

    with pytest.raises(MetadataError, match=r"modules\.json"):
        open_exactly(folder)


def test_a_config_the_backbone_does_not_accept_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", num_attention_heads=5)

    with pytest.raises(MetadataError, match=r"config\.json"):
        open_exactly(folder)


def test_an_unknown_hidden_activation_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", hidden_act="my_own_gelu")

    with pytest.raises(CheckpointError, match="my_own_gelu"):
        open_exactly(folder)


@pytest.mark.parametrize("value", ["thirty-two", None, [32], -1, 0])
def test_an_impossible_hidden_size_is_refused(value: object, copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", hidden_size=value)

    with pytest.raises(CheckpointError):
        open_exactly(folder)


@pytest.mark.parametrize("key", ["query_maxlen", "doc_maxlen"])
@pytest.mark.parametrize("value", [0, -5])
def test_a_length_below_one_is_refused_instead_of_replaced(
    key: str, value: int, copy_of: Copy
) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "artifact.metadata", **{key: value})

    with pytest.raises(MetadataError, match=f"{key} is {value}, expected at least 1"):
        open_exactly(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("vocab_size", "many", id="a word for a number"),
        pytest.param("vocab_size", 0, id="no rows"),
        pytest.param("num_attention_heads", 0, id="division by zero"),
        pytest.param("intermediate_size", -1, id="a negative size"),
        pytest.param("pad_token_id", 10**12, id="a padding row that is not there"),
        pytest.param("max_position_embeddings", 10**12, id="more positions than memory"),
        pytest.param("num_hidden_layers", 10**12, id="more layers than anyone can build"),
        pytest.param("hidden_act", [], id="a list for a name"),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_refused(
    key: str, value: object, copy_of: Copy
) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", **{key: value})

    with pytest.raises(CheckpointError, match=folder.name):
        open_exactly(folder)
