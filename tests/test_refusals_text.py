"""Markers, lengths and tokenizers that cannot give the trained tokens are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from colbert_rag.errors import (
    CheckpointError,
    MarkerError,
    MetadataError,
    TokenizerError,
)
from tests.helpers.answers import open_exactly
from tests.helpers.tiny import (
    edit_json,
    edit_tensors,
    read_json,
    write_json,
)

Copy = Callable[[str], Path]
WEIGHTS = "model.safetensors"


# Markers, lengths, tokenizer


@pytest.mark.parametrize(("role", "marker"), [("query", "[Q]"), ("document", "[D]")])
@pytest.mark.parametrize("name", ["pylate-bert", "pylate-modernbert"])
def test_a_marker_outside_the_vocabulary_names_the_entry_with_its_space(
    name: str, role: str, marker: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(MarkerError, match=rf"'\{marker}'.* entries: '\{marker} '.*{role}_marker"):
        open_exactly(checkpoint(name), **{f"{role}_marker": marker})


def test_a_native_marker_outside_the_vocabulary_is_refused(copy_of: Copy) -> None:
    folder = copy_of("native-bert-no-expansion")
    prompts = {"query": "[Z] ", "document": "[D] "}
    edit_json(folder / "config_sentence_transformers.json", prompts=prompts)

    with pytest.raises(MarkerError, match=r"\[Z\]"):
        open_exactly(folder)


@pytest.mark.parametrize(
    "name", ["stanford-bert", "pylate-bert", "pylate-modernbert", "native-bert-no-expansion"]
)
@pytest.mark.parametrize("option", ["query_length", "document_length"])
def test_a_length_without_room_for_one_token_of_text_is_refused(
    option: str, name: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(ValueError, match=rf"{option}.*3"):
        open_exactly(checkpoint(name), **{option: 3})


def test_a_published_length_without_room_for_text_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    edit_json(folder / "artifact.metadata", doc_maxlen=3)

    with pytest.raises(MetadataError, match=r"(doc_maxlen|document_length).*3"):
        open_exactly(folder)


def test_a_length_beyond_the_positions_of_the_backbone_is_refused(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(ValueError, match=r"document_length.*321.*320"):
        open_exactly(checkpoint("stanford-bert"), document_length=321)


def test_a_tokenizer_larger_than_the_embedding_table_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    tokenizer = read_json(folder / "tokenizer.json")
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"]["one too many"] = size
    write_json(folder / "tokenizer.json", tokenizer)

    with pytest.raises(TokenizerError, match=rf"{size + 1}.*{size}"):
        open_exactly(folder)


def test_a_marker_whose_row_is_not_in_the_embedding_table_is_refused(copy_of: Copy) -> None:
    """PyLate resizes the table and scores with a random row."""
    folder = copy_of("pylate-bert")
    edit_tensors(
        folder / WEIGHTS,
        lambda tensors: {
            name: tensor[:-2] if "word_embeddings" in name else tensor
            for name, tensor in tensors.items()
        },
    )
    rows = load_file(folder / WEIGHTS)["embeddings.word_embeddings.weight"].shape[0]
    edit_json(folder / "config.json", vocab_size=rows)

    with pytest.raises(TokenizerError, match=rf"{rows + 2}.*{rows}"):
        open_exactly(folder)


def test_a_checkpoint_without_a_tokenizer_is_refused(copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / "tokenizer.json").unlink()

    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        open_exactly(folder)


@pytest.mark.parametrize("text", ["", "{}", '{"model": 1}'])
def test_a_damaged_tokenizer_is_refused(text: str, copy_of: Copy) -> None:
    folder = copy_of("stanford-bert")
    (folder / "tokenizer.json").write_text(text)

    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        open_exactly(folder)


def test_an_expansion_token_outside_the_vocabulary_is_refused(copy_of: Copy) -> None:
    folder = copy_of("native-bert")
    config = read_json(folder / "sentence_bert_config.json")["query_expansion"]
    edit_json(folder / "sentence_bert_config.json", query_expansion={**config, "token": "<none>"})

    with pytest.raises(CheckpointError, match="<none>"):
        open_exactly(folder)


def test_attending_to_an_expansion_that_is_off_is_refused(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(ValueError, match="query_expansion"):
        open_exactly(checkpoint("pylate-bert-no-expansion"), attend_to_expansion=True)


@pytest.mark.parametrize("name", ["auto_map", "custom_pipelines"])
def test_references_to_code_in_a_known_layout_are_ignored(name: str, copy_of: Copy) -> None:
    """Many repositories keep `auto_map` beside weights that a class of transformers hosts."""
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", **{name: {"AutoModel": "evil--modeling.Model"}})

    assert open_exactly(folder).dim == 16
