"""How vectors are stored: against a decoder in plain Python, and what may be relied on."""

from __future__ import annotations

import math
import re
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_rag.codings import CODINGS, FLOAT16, INT4, INT8, CodedEmbeddings, coding_named
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.maxsim import int8_kernel as kernel
from colbert_rag.maxsim import maxsim_many, maxsim_stored
from colbert_rag.maxsim.int8_kernel import bounds
from tests.helpers.index_fakes import naive_maxsim

SMALLER = ["int8", "int4"]
finite = st.integers(-0x8000, 0x7FFF).map(
    lambda bits: struct.unpack("<e", struct.pack("<h", bits))[0]
)
halves = finite.filter(math.isfinite)


def scale(byte: int) -> Fraction:
    """A float of three bits of fraction and five of exponent, read by its definition."""
    exponent, fraction = divmod(byte, 8)
    if exponent == 0:
        return Fraction(fraction, 2**21)
    return Fraction(8 + fraction) * Fraction(2) ** (exponent - 22)


def decoded_by_hand(name: str, row: bytes, dim: int) -> list[Fraction]:
    if name == "float16":
        return [Fraction(value) for value in struct.unpack(f"<{dim}e", row)]
    if name == "int8":
        *numbers, last = struct.unpack(f"<{dim}bB", row)
        return [number * scale(last) for number in numbers]
    half = (dim + 1) // 2
    packed, scales = row[:half], row[half:]
    nibbles = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
    return [(2 * nibbles[at] - 15) * scale(scales[at // 32]) for at in range(dim)]


def coded(name: str, values: torch.Tensor) -> CodedEmbeddings:
    return coding_named(name).encoded(TokenEmbeddings.from_lengths(values, [len(values)]))


def unit(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


@pytest.mark.parametrize("dim", [1, 2, 31, 32, 33, 96, 384])
@pytest.mark.parametrize("name", list(CODINGS))
def test_bytes_mean_what_the_format_says(name: str, dim: int) -> None:
    vectors = coded(name, unit(5, dim).half())

    content = vectors.coding.to_disk(vectors.values)

    size = {"float16": 2 * dim, "int8": dim + 1, "int4": (dim + 1) // 2 + math.ceil(dim / 32)}
    assert len(content) == 5 * size[name]
    assert torch.equal(vectors.coding.from_disk(bytearray(content), dim), vectors.values)
    rows = [content[at : at + size[name]] for at in range(0, len(content), size[name])]
    expected = [decoded_by_hand(name, row, dim) for row in rows]
    assert [[Fraction(x) for x in row] for row in vectors.decoded().values.tolist()] == expected


@pytest.mark.parametrize("name", list(CODINGS))
@given(rows=st.lists(st.lists(halves, min_size=40, max_size=40), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_decoding_is_exact_in_float16_and_encoding_it_again_changes_nothing(
    name: str, rows: list[list[float]]
) -> None:
    vectors = coded(name, torch.tensor(rows).half())

    decoded = vectors.decoded().values

    exact = torch.empty(len(rows), 40)
    vectors.coding.decode(vectors.values, exact)
    assert torch.equal(decoded.float(), exact)
    assert bool(torch.isfinite(decoded).all())
    assert torch.equal(coded(name, decoded).decoded().values, decoded)


@pytest.mark.parametrize(("name", "least"), [("int8", 127), ("int4", 15)])
@given(row=st.lists(halves, min_size=32, max_size=32))
@settings(max_examples=150, deadline=None)
def test_no_number_is_further_off_than_half_a_step(name: str, least: int, row: list[float]) -> None:
    values = torch.tensor([row]).half()

    decoded = coded(name, values).decoded().values

    # A scale has four significant bits, so it is at most an eighth above the one that would do, and
    # none is finer than 2^-21; odd numbers lie two apart. int4 may cut the largest number off, but
    # only where that makes the sum of squares smaller.
    largest = float(values.float().abs().max())
    step = max(largest / least * 9 / 8, largest / least + 2.0**-21)
    off = (decoded.float() - values.float()).square().sum()
    bound = (step / 2 if name == "int8" else step) + (largest / 127 if largest > 6e4 else 0)
    assert float(off) <= 32 * bound**2 * (1 + 1e-6)


@pytest.mark.parametrize("name", list(CODINGS))
def test_zero_stays_zero(name: str) -> None:
    assert coded(name, torch.zeros(3, 40).half()).decoded().values.abs().max() == 0


@pytest.mark.parametrize("dim", [1, 32, 40])
@pytest.mark.parametrize("name", list(CODINGS))
def test_no_vectors_are_no_bytes(name: str, dim: int) -> None:
    nothing = coded(name, torch.zeros(0, dim).half())

    assert nothing.values.shape == (0, CODINGS[name].row_bytes(dim))
    assert nothing.coding.to_disk(nothing.values) == b""
    assert nothing.decoded().values.shape == (0, dim)
    assert nothing.longest() == 0


def test_float16_is_the_bytes_it_always_was() -> None:
    values = unit(7, 24).half()

    assert coded("float16", values).coding.to_disk(coded("float16", values).values) == (
        values.numpy().astype("<f2").tobytes()
    )


def test_a_coding_that_does_not_exist_is_refused_with_those_that_do() -> None:
    for name in ("int2", ["int8"], 8, None):
        words = f"vectors is {re.escape(repr(name))}, .*'float16', 'int8', 'int4'"
        with pytest.raises(ValueError, match=words):
            coding_named(name)


@pytest.mark.parametrize("name", list(CODINGS))
@pytest.mark.parametrize("lengths", [[3, 1, 0, 40, 7], [1], [0, 2]])
def test_scores_are_the_definition_of_maxsim_over_the_decoded_vectors(
    name: str, lengths: list[int]
) -> None:
    dim = 48
    documents = TokenEmbeddings.from_lengths(unit(sum(lengths), dim).half(), lengths)
    stored = coding_named(name).encoded(documents)
    queries = TokenEmbeddings.from_lengths(unit(9, dim, seed=1), [4, 5])

    scores = maxsim_stored(queries, stored)

    for query, row in zip(queries, scores, strict=True):
        for document, score in zip(stored.decoded(), row.tolist(), strict=True):
            expected = naive_maxsim(query, document) if len(document) else -len(query)
            assert score == pytest.approx(expected, abs=1e-5)


def test_a_document_longer_than_a_block_is_decoded_in_pieces() -> None:
    documents = INT4.encoded(TokenEmbeddings.from_lengths(unit(40_000, 8).half(), [39_990, 10]))
    query = TokenEmbeddings.from_lengths(unit(3, 8, seed=1), [3])

    scores = maxsim_stored(query, documents)

    expected = maxsim_many(query, documents.decoded())
    assert torch.allclose(scores, expected, atol=1e-6)


# Ragged documents, long and short queries, and scales that differ by a lot.
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stretch", [0.0, 3.0])
def test_rough_scores_are_off_by_no_more_than_they_say(
    seed: int, stretch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "multiplies_quickly", lambda: True)
    monkeypatch.setattr(kernel, "_ROWS_PER_THREAD", 64)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 30, (60,), generator=generator)
    values = unit(int(lengths.sum()), 40, seed)
    values = values * torch.exp(stretch * torch.randn(len(values), 1, generator=generator))
    documents = INT8.encoded(TokenEmbeddings.from_lengths(values.half(), lengths))
    queries = TokenEmbeddings.from_lengths(unit(60, 40, seed + 9), [1, 0, 20, 39])

    found = bounds(queries, documents)

    assert found is not None
    scores, off = found
    for query, row, most in zip(queries, scores, off.tolist(), strict=True):
        for document, score in zip(documents.decoded(), row.tolist(), strict=True):
            if len(document):
                assert abs(score - naive_maxsim(query, document)) <= most


def test_the_bound_holds_where_it_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that points where rounding left the query."""
    monkeypatch.setattr(kernel, "multiplies_quickly", lambda: True)
    query = unit(1, 64, seed=3)
    step = query.abs().max() / 127
    left = query - (query / step).round() * step
    direction = torch.nn.functional.normalize(left, dim=1)
    documents = INT8.encoded(TokenEmbeddings.from_lengths(direction.half(), [1]))
    queries = TokenEmbeddings.from_lengths(query, [1])

    scores, off = bounds(queries, documents) or (torch.zeros(1, 1), torch.zeros(1))

    true = naive_maxsim(query, documents.decoded().values)
    assert 0.9 * float(off) < abs(float(scores) - true) <= float(off)


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e35])
def test_queries_at_the_end_of_float32_are_bounded_or_left_alone(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "multiplies_quickly", lambda: True)
    documents = INT8.encoded(TokenEmbeddings.from_lengths(unit(4, 16).half(), [2, 2]))

    found = bounds(TokenEmbeddings.from_lengths(torch.full((2, 16), value), [2]), documents)

    if value > 1:
        assert found is None
    else:
        assert found is not None
        assert bool((found[0].abs() <= found[1][:, None]).all())


@pytest.mark.parametrize("name", ["float16", "int4"])
def test_only_int8_has_rough_scores(name: str) -> None:
    queries = TokenEmbeddings.from_lengths(unit(2, 16), [2])

    assert bounds(queries, coded(name, unit(4, 16).half())) is None


def test_a_torch_without_the_operator_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.multiplies_quickly.cache_clear()
    monkeypatch.delattr(torch, "_int_mm")
    try:
        assert not kernel.multiplies_quickly()
        queries = TokenEmbeddings.from_lengths(unit(2, 16), [2])
        assert bounds(queries, coded("int8", unit(4, 16).half())) is None
    finally:
        kernel.multiplies_quickly.cache_clear()


def test_an_operator_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.multiplies_quickly.cache_clear()
    right = torch._int_mm

    def wrong(rows: torch.Tensor, other: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        return right(rows, other, out=out).clamp_(-32768, 32767)  # as in 16 bits

    monkeypatch.setattr(torch, "_int_mm", wrong)
    try:
        assert not kernel.multiplies_quickly()
    finally:
        kernel.multiplies_quickly.cache_clear()


def test_the_longest_vector_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = INT8.encoded(TokenEmbeddings.from_lengths(unit(9, 16).half(), [3, 3, 3]))
    norms = vectors.decoded().values.double().norm(dim=1)

    assert vectors.longest() >= float(norms.max())
    assert vectors.longest() == pytest.approx(float(norms.max()), rel=1e-4)
    assert FLOAT16.encoded(vectors.decoded()).longest() == pytest.approx(vectors.longest())
    assert vectors[1:].longest() == vectors.longest()
