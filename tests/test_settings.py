"""Settings: one value for every spelling of the same choice; impossible choices are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colbert_rag.index.info import RECIPE_OPTIONS
from colbert_rag.settings import ModelOptions, Settings


def test_spellings_of_one_choice_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)

    spellings = {
        Settings.normalised("model"),
        Settings.normalised(Path("model")),
        Settings.normalised(str(tmp_path / "model")),
        Settings.normalised(f".{os.sep}model", device=None),
    }

    assert len(spellings) == 1


def test_a_hub_id_stays_as_it_is() -> None:
    assert Settings.normalised("owner/name").checkpoint == "owner/name"


def test_a_list_of_skipped_words_can_be_compared() -> None:
    assert Settings.normalised("a", skiplist=["!", "?"]) == Settings.normalised(
        "a", skiplist=("!", "?")
    )


def test_the_access_token_is_not_printed() -> None:
    assert "secret" not in repr(Settings.normalised("a", token="secret"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"dtype": "int8"}, ValueError, "dtype is 'int8'", id="dtype"),
        pytest.param({"query_length": 3}, ValueError, "query_length is 3", id="short query"),
        pytest.param({"query_length": True}, TypeError, "query_length is True", id="bool length"),
        pytest.param({"document_length": 1.5}, TypeError, "document_length is 1.5", id="float"),
        pytest.param({"batch_tokens": 0}, ValueError, "batch_tokens is 0", id="no tokens"),
        pytest.param({"document_cache": -1}, ValueError, "document_cache is -1", id="cache"),
        pytest.param({"skiplist": "!?"}, TypeError, "skiplist is one string", id="skip-list"),
        pytest.param({"top_k": 3}, TypeError, "top_k", id="unknown option"),
    ],
)
def test_an_impossible_choice_is_refused_by_name(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Settings.normalised("a", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("checkpoint", ["", "  ", None, 3])
def test_a_checkpoint_without_a_name_is_refused(checkpoint: object) -> None:
    with pytest.raises(TypeError, match="expected a hub id such as"):
        Settings.normalised(checkpoint)  # type: ignore[arg-type]


def test_every_option_either_changes_a_vector_or_does_not() -> None:
    """An index records those that do: a new option must be given its side."""
    same_vectors = (
        "cache_folder token local_files_only device dtype allow_pickle batch_tokens document_cache "
        "long_documents"
    ).split()

    assert sorted([*RECIPE_OPTIONS, *same_vectors]) == sorted(ModelOptions.__annotations__)
