"""BGE-M3's separate head gives FlagEmbedding's vectors and scores, and is refused when it is odd.

The reference is `tests/helpers/m3_oracle.py`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from colbert_rag import ColBERT
from colbert_rag.checkpoint import open_checkpoint
from colbert_rag.checkpoint.hub import needed_files
from colbert_rag.cli import main
from colbert_rag.errors import (
    CheckpointError,
    CorruptWeightsError,
    MissingProjectionError,
    PickleWeightsError,
    ProjectionError,
    TokenizerError,
)
from colbert_rag.settings import Settings
from tests.helpers.answers import ask_colbert, ask_oracle, open_exactly, unlike, unlike_scores
from tests.helpers.m3_oracle import M3Oracle
from tests.helpers.texts import DOCUMENTS, LITERALS, OUTER_SPACES, QUERIES
from tests.helpers.tiny import edit_json, read_json, write_json

Copy = Callable[[str], Path]
CONVERTED, PUBLISHED = "colbert_linear.safetensors", "colbert_linear.pt"
ALL_QUERIES = {**QUERIES, **OUTER_SPACES, **LITERALS}
ALL_DOCUMENTS = {**DOCUMENTS, **OUTER_SPACES, **LITERALS}


@pytest.mark.parametrize(
    "name", ["flagembedding", "flagembedding-published", "flagembedding-short"]
)
def test_tokens_and_vectors_are_those_of_flagembedding(
    name: str, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name, allow_pickle=name == "flagembedding-published")

    found = ask_colbert(model, ALL_QUERIES, ALL_DOCUMENTS)

    expected = ask_oracle(M3Oracle(checkpoint(name)), ALL_QUERIES, ALL_DOCUMENTS)
    assert found.query_tokens == expected.query_tokens
    assert found.document_tokens == expected.document_tokens
    assert unlike(found.query_vectors, expected.query_vectors) == {}
    assert unlike(found.document_vectors, expected.document_vectors) == {}
    assert unlike_scores(found.scores, expected.scores) == {}


def test_the_mean_of_a_ranking_is_the_published_score(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    oracle = M3Oracle(checkpoint("flagembedding"))
    texts = [DOCUMENTS["another planet"], DOCUMENTS["one word"], QUERIES["accents"]]

    for query in QUERIES.values():
        ranking = colbert("flagembedding").rank(query, texts)

        expected = [oracle.score(query, place.text) for place in ranking]
        assert [place.mean for place in ranking] == pytest.approx(expected, abs=1e-5)


def test_the_first_token_is_seen_but_not_scored(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    for batch in (
        colbert("flagembedding").tokenizer.queries(["mars", "", "red planet"]),
        colbert("flagembedding").tokenizer.documents(["mars", "", "red planet"]),
    ):
        first = batch.offsets[:-1]
        assert batch.attention.all()
        assert not batch.scoring[first].any()
        assert batch.scoring.sum() == len(batch.ids) - 3


def test_a_query_that_the_caller_expands_still_loses_its_first_token_alone(
    colbert: Callable[..., ColBERT],
) -> None:
    model = colbert("flagembedding", query_length=8, query_expansion=True)

    assert model.tokenizer.queries(["mars"]).scoring.tolist() == [False] + [True] * 7


def test_lengths_are_those_of_tokenizer_and_positions(checkpoint: Callable[[str], Path]) -> None:
    for name, length in (("flagembedding", 320), ("flagembedding-short", 20)):
        recipe = open_checkpoint(Settings.normalised(str(checkpoint(name)))).recipe
        assert (recipe.query.length, recipe.document.length) == (length, length)
        assert (recipe.expansion, recipe.skiplist, recipe.query.marker) == (None, (), "")


def test_the_lengths_of_bge_m3_are_8192(copy_of: Copy) -> None:
    folder = copy_of("flagembedding")
    edit_json(folder / "config.json", max_position_embeddings=8194)
    edit_json(folder / "tokenizer_config.json", model_max_length=8192)

    recipe = open_checkpoint(Settings.normalised(str(folder))).recipe

    assert (recipe.query.length, recipe.document.length) == (8192, 8192)


def test_the_fingerprint_says_that_first_tokens_do_not_count(copy_of: Copy) -> None:
    folder = copy_of("flagembedding")
    checkpoint = open_checkpoint(Settings.normalised(str(folder)))
    before = checkpoint.fingerprint()

    other = replace(checkpoint, recipe=replace(checkpoint.recipe, skips_first=False))

    assert other.fingerprint() != before


def test_a_converted_head_gives_what_the_pickle_gives(copy_of: Copy) -> None:
    folder = copy_of("flagembedding")
    texts = list(DOCUMENTS.values())
    expected = open_exactly(folder).score("mars", texts)
    torch.save(load_file(folder / CONVERTED), folder / PUBLISHED)

    # With both there, the one that can run nothing is read.
    assert open_exactly(folder).score("mars", texts) == expected
    (folder / CONVERTED).unlink()
    assert open_exactly(folder, allow_pickle=True).score("mars", texts) == expected


def test_the_conversion_that_the_message_names_works(
    copy_of: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors

    folder = copy_of("flagembedding")
    expected = open_exactly(folder).score("mars", ["venus"])
    torch.save(load_file(folder / CONVERTED), folder / PUBLISHED)
    (folder / CONVERTED).unlink()
    with pytest.raises(PickleWeightsError, match=r"colbert_linear\.pt.*allow_pickle") as caught:
        open_exactly(folder)

    command = str(caught.value).split("Convert it once with ")[1].split(", or pass")[0]
    monkeypatch.chdir(folder)
    exec(command, {"safetensors": safetensors, "torch": torch})

    assert open_exactly(folder).score("mars", ["venus"]) == expected


# What is refused


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({"weight": torch.ones(32, 32)}, id="no bias"),
        pytest.param({"bias": torch.ones(32)}, id="no weight"),
        pytest.param({}, id="nothing"),
        pytest.param(
            {"weight": torch.ones(32, 32), "bias": torch.ones(32), "scale": torch.ones(1)},
            id="a third name",
        ),
        pytest.param({"weight": torch.ones(32), "bias": torch.ones(32)}, id="a flat weight"),
        pytest.param({"weight": torch.ones(32, 32), "bias": torch.ones(31)}, id="a short bias"),
        pytest.param({"weight": torch.ones(32, 33), "bias": torch.ones(32)}, id="a wide weight"),
    ],
)
def test_another_head_than_a_weight_and_its_bias_is_refused(
    tensors: dict[str, Tensor], copy_of: Copy
) -> None:
    folder = copy_of("flagembedding")
    save_file(tensors, folder / CONVERTED)
    with pytest.raises(ProjectionError, match=r"colbert_linear\.safetensors"):
        open_exactly(folder)
    (folder / CONVERTED).unlink()
    torch.save(tensors, folder / PUBLISHED)
    with pytest.raises(ProjectionError, match=r"colbert_linear\.pt"):
        open_exactly(folder, allow_pickle=True)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(7, id="a number"),
        pytest.param(torch.ones(32, 32).to_sparse(), id="sparse"),
        pytest.param(torch.ones(1).expand(10**6, 32), id="more than the file holds"),
    ],
)
def test_a_head_that_is_no_plain_tensor_is_refused(value: object, copy_of: Copy) -> None:
    folder = copy_of("flagembedding-published")
    torch.save({"weight": value, "bias": torch.ones(32)}, folder / PUBLISHED)

    with pytest.raises(CorruptWeightsError, match=r"colbert_linear\.pt"):
        open_exactly(folder, allow_pickle=True)


@pytest.mark.parametrize("file", [PUBLISHED, "sparse_linear.pt"])
def test_a_pickle_beside_the_backbone_never_runs_code(
    file: str, copy_of: Copy, tmp_path: Path
) -> None:
    folder = copy_of("flagembedding-published")
    intruder = {"weight": Intruder(tmp_path / "was here"), "bias": torch.ones(32)}
    (folder / file).write_bytes(pickle.dumps(intruder, protocol=2))

    if file == PUBLISHED:
        with pytest.raises(CheckpointError, match=r"colbert_linear\.pt.*Nothing in it was run"):
            open_exactly(folder, allow_pickle=True)
    else:  # never read
        assert open_exactly(folder, allow_pickle=True).dim == 32

    assert not (tmp_path / "was here").exists()


def test_a_pickled_backbone_needs_the_option_even_with_a_converted_head(copy_of: Copy) -> None:
    folder = copy_of("flagembedding-published")
    save_file(torch.load(folder / PUBLISHED, weights_only=True), folder / CONVERTED)

    with pytest.raises(PickleWeightsError, match=r"pytorch_model\.bin"):
        open_exactly(folder)


def test_without_its_head_it_is_a_dense_model(copy_of: Copy) -> None:
    folder = copy_of("flagembedding")
    (folder / CONVERTED).unlink()

    with pytest.raises(MissingProjectionError, match=r"Dense layers.*colbert_linear"):
        open_exactly(folder)


def test_raw_token_embeddings_would_ignore_its_head(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(MissingProjectionError, match="flagembedding checkpoint"):
        open_exactly(checkpoint("flagembedding"), raw_token_embeddings=True)


def test_a_tokenizer_that_would_leave_an_empty_text_without_vectors_is_refused(
    copy_of: Copy,
) -> None:
    folder = copy_of("flagembedding")
    rules = read_json(folder / "tokenizer.json")
    rules["post_processor"]["single"].pop()  # the closing </s>
    write_json(folder / "tokenizer.json", rules)

    with pytest.raises(TokenizerError, match="adds 1 to an empty text, expected 2"):
        open_exactly(folder)


# Around it

LISTING = [
    *("1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json"),
    *("sentencepiece.bpe.model", "sparse_linear.pt", "onnx/model.onnx", "imgs/mkqa.jpg"),
]


def test_the_hub_sends_the_pickled_head_only_on_request() -> None:
    files = [*LISTING, "pytorch_model.bin", PUBLISHED]

    with pytest.raises(PickleWeightsError, match=r"pytorch_model\.bin.*allow_pickle=True"):
        needed_files(files, allow_pickle=False, name="BAAI/bge-m3")
    found = needed_files(files, allow_pickle=True, name="BAAI/bge-m3")

    assert {PUBLISHED, "pytorch_model.bin"} < set(found)
    assert {"sparse_linear.pt", "onnx/model.onnx"}.isdisjoint(found)


def test_a_pickled_head_is_refused_before_anything_is_downloaded() -> None:
    files = [*LISTING, "model.safetensors", PUBLISHED]

    with pytest.raises(PickleWeightsError, match=r"only as a pickle \(colbert_linear\.pt\)"):
        needed_files(files, allow_pickle=False, name="BAAI/bge-m3")

    assert PUBLISHED in needed_files(files, allow_pickle=True, name="BAAI/bge-m3")


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("told_by", [CONVERTED, "artifact.metadata", "1_Dense/model.safetensors"])
def test_a_pickled_head_that_is_not_needed_is_not_downloaded(
    told_by: str, allow_pickle: bool
) -> None:
    files = [*LISTING, "model.safetensors", PUBLISHED, told_by]

    found = needed_files(files, allow_pickle=allow_pickle, name="a")

    assert told_by in found
    assert (PUBLISHED in found) is (allow_pickle and told_by != CONVERTED)


def test_inspect_says_that_the_first_token_is_not_scored(
    checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(checkpoint("flagembedding"))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    main(["inspect", str(checkpoint("stanford-bert"))])
    other = capsys.readouterr().out

    assert "Format flagembedding" in shown
    assert "Projection 32 -> 32 (bias)" in shown
    assert "Queries no marker, 320 tokens at most" in shown
    assert "Not scored the first token of every query and document" in shown
    assert "Not scored" not in other
