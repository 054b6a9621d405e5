"""TokenEmbeddings: ragged rows, cut by offsets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from colbert_rag import TokenEmbeddings

TEXTS = [
    torch.tensor([[1.0, 2.0]]),
    torch.zeros(0, 2),
    torch.tensor([[3.0, 4.0], [5.0, 6.0]]),
    torch.tensor([[7.0, 8.0]]),
]


@pytest.fixture
def embeddings() -> TokenEmbeddings:
    return TokenEmbeddings.from_list(TEXTS)


def test_texts_come_back_as_they_went_in(embeddings: TokenEmbeddings) -> None:
    assert embeddings.offsets.tolist() == [0, 1, 1, 3, 4]
    assert [text.tolist() for text in embeddings] == [text.tolist() for text in TEXTS]
    assert [text.tolist() for text in embeddings.to_list()] == [text.tolist() for text in TEXTS]
    assert (len(embeddings), embeddings.dim, embeddings.lengths.tolist()) == (4, 2, [1, 0, 2, 1])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(slice(1, 3), [1, 2], id="contiguous slice"),
        pytest.param(slice(None, None, -1), [3, 2, 1, 0], id="reversed"),
        pytest.param(slice(3, 1), [], id="empty slice"),
        pytest.param([2, 0, 2], [2, 0, 2], id="list with repeats"),
        pytest.param([], [], id="empty list"),
        pytest.param(torch.tensor([3, -2]), [3, 2], id="tensor of positions"),
        pytest.param(torch.tensor([True, False, True, False]), [0, 2], id="mask"),
    ],
)
def test_a_selection_holds_the_selected_texts(
    embeddings: TokenEmbeddings, key: object, expected: list[int]
) -> None:
    selected = embeddings[key]  # type: ignore[index]

    assert [text.tolist() for text in selected] == [TEXTS[index].tolist() for index in expected]


@pytest.mark.parametrize(
    "lengths", [[1, 0, 2, 1], torch.tensor([1, 0, 2, 1])], ids=["list", "tensor"]
)
def test_rows_are_cut_by_lengths(lengths: list[int] | torch.Tensor) -> None:
    found = TokenEmbeddings.from_lengths(torch.cat(TEXTS), lengths)

    assert [text.tolist() for text in found] == [text.tolist() for text in TEXTS]


def test_one_text_is_a_view(embeddings: TokenEmbeddings) -> None:
    assert embeddings[-2].tolist() == TEXTS[2].tolist()
    assert embeddings[2].data_ptr() == embeddings.values[1:].data_ptr()


@pytest.mark.parametrize("key", [4, -5, [0, 4]])
def test_a_position_outside_is_named(embeddings: TokenEmbeddings, key: object) -> None:
    with pytest.raises(IndexError, match="outside the 4 texts"):
        embeddings[key]  # type: ignore[index]


def test_parts_are_appended_in_order(embeddings: TokenEmbeddings) -> None:
    joined = TokenEmbeddings.cat([embeddings, embeddings[2:]])

    assert [text.tolist() for text in joined] == [text.tolist() for text in [*TEXTS, *TEXTS[2:]]]


def test_they_survive_a_file_in_another_dtype(embeddings: TokenEmbeddings, tmp_path: Path) -> None:
    embeddings.to(dtype=torch.bfloat16).save(tmp_path / "tokens.safetensors")

    loaded = TokenEmbeddings.load(tmp_path / "tokens.safetensors")

    assert loaded.dtype == torch.bfloat16
    assert [text.tolist() for text in loaded] == [text.tolist() for text in TEXTS]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens.safetensors").write_bytes(b"no tensors in here")

    with pytest.raises(ValueError, match="does not hold token embeddings"):
        TokenEmbeddings.load(tmp_path / "tokens.safetensors")


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        pytest.param(torch.zeros(3), [0, 3], r"expected \(rows, dim\)", id="flat values"),
        pytest.param(torch.zeros(3, 2), [0, 2], "rise from 0 to 3", id="rows left over"),
        pytest.param(torch.zeros(3, 2), [1, 3], "rise from 0 to 3", id="rows before the first"),
        pytest.param(torch.zeros(3, 2), [0, 2, 1, 3], "rise from 0 to 3", id="falling"),
        pytest.param(torch.zeros(3, 2), [], "expected .texts", id="no offsets"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(
    values: torch.Tensor, offsets: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenEmbeddings(values, torch.tensor(offsets, dtype=torch.int64))


def test_offsets_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        TokenEmbeddings(torch.zeros(3, 2), torch.tensor([0, 3], dtype=torch.int32))


def test_printing_shows_sizes_not_numbers(embeddings: TokenEmbeddings) -> None:
    assert repr(embeddings) == "TokenEmbeddings(4 texts, 4 rows x 2, float32 on cpu)"


def test_an_empty_list_keeps_its_width() -> None:
    empty = TokenEmbeddings.from_list([], dim=8)

    assert (len(empty), empty.dim) == (0, 8)
