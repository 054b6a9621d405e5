"""The parts of a level: centroids, inverted lists, the file, and what is found by way of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from colbert_rag.index.how import DEFAULT_EFFORT, MOST_EFFORT
from colbert_rag.index.kmeans import Centroids, centroids_for, train
from colbert_rag.index.local.level import candidates, postings
from colbert_rag.index.local.level.candidates import Candidates
from colbert_rag.index.local.level.effort import EFFORTS, Effort, usual
from colbert_rag.index.local.level.file import LevelFile, Opened, Writer
from colbert_rag.index.local.level.layout import Block, Head
from colbert_rag.index.local.level.pages import PAGE, DamagedPageError, Pages, page_sums
from tests.helpers.index_sharers import INFO

TOKEN = bytes(range(8))
LENGTHS = (3, 0, 5, 1, 7, 2, 4)


def unit(rows: int, dim: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def clouds(count: int, each: int, dim: int) -> tuple[Tensor, Tensor]:
    """Vectors close around well separated directions, and which direction each belongs to."""
    middle = torch.eye(dim)[:count]
    cloud = torch.arange(count).repeat(each)
    near = torch.nn.functional.normalize(middle[cloud] + 0.05 * unit(count * each, dim), dim=1)
    return near, cloud


# --- centroids


def test_centroids_are_the_directions_that_vectors_gather_around() -> None:
    vectors, cloud = clouds(16, 40, 32)

    centroids = train(vectors, 64, seed=0)
    codes, similarities = centroids.nearest(vectors)

    # No centroid is shared by two of the clouds, and each vector is near to its own.
    for code in codes.unique():
        assert len(cloud[codes == code].unique()) == 1
    assert float(similarities.min()) > 0.99
    assert torch.allclose(similarities, (vectors * centroids.values[codes]).sum(1), atol=1e-6)


def test_training_is_the_same_for_the_same_seed() -> None:
    vectors = unit(2000, 16)

    first, again, other = (train(vectors, 50, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(first.values, again.values)
    assert torch.equal(first.bounds, again.bounds)
    assert not torch.equal(first.values[:10], other.values[:10])


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_few_vectors_have_few_centroids(rows: int) -> None:
    vectors = unit(rows, 8).half()

    centroids = train(vectors, 1000, seed=0)

    assert 1 <= len(centroids) <= max(1, rows // 8) + 3
    assert bool(torch.isfinite(centroids.values).all())
    assert len(centroids.nearest(vectors)[0]) == rows


def test_the_nearest_centroid_is_that_of_a_naive_loop_where_all_groups_are_looked_at() -> None:
    vectors = unit(300, 16)
    centroids = train(unit(800, 16, seed=5), 12, seed=0)  # three groups, and four are looked at

    codes, similarities = centroids.nearest(vectors)

    for row, code, similarity in zip(vectors, codes.tolist(), similarities.tolist(), strict=True):
        best = max(range(len(centroids)), key=lambda at: float(row @ centroids.values[at]))
        assert code == best
        assert similarity == pytest.approx(float(row @ centroids.values[best]), abs=1e-6)


def test_no_vectors_have_no_codes() -> None:
    codes, similarities = train(unit(50, 8), 4, seed=0).nearest(torch.zeros(0, 8))

    assert (codes.dtype, len(codes), len(similarities)) == (torch.int64, 0, 0)


# --- inverted lists


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=12))
def test_lists_are_those_of_a_naive_loop(documents: list[list[int]]) -> None:
    codes = np.array([code for document in documents for code in document], np.int64)
    lengths = np.array([len(document) for document in documents], np.int64)

    starts, listed = postings.inverted(codes, lengths, 10)

    for centroid in range(10):
        naive = [at for at, document in enumerate(documents) if centroid in document]
        assert listed[starts[centroid] : starts[centroid + 1]].tolist() == naive


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_ranges_are_spread_one_after_another(ranges: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(ranges, np.int64).reshape(-1, 2).T

    found = postings.spread(starts, lengths).tolist()

    assert found == [at for start, length in ranges for at in range(start, start + length)]


# --- pages


@given(st.integers(0, 3 * PAGE - 1), st.integers(0, 7))
def test_every_flipped_bit_is_found(byte: int, bit: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, 3 * PAGE, np.uint8)
    sums = page_sums(data)
    data[byte] ^= 1 << bit
    pages = Pages(data, sums)

    for page in range(3):
        at = np.array([page * PAGE])
        if page == byte // PAGE:
            with pytest.raises(DamagedPageError):
                pages.check(at, at + 1)
        else:
            pages.check(at, at + PAGE)


def test_a_page_is_looked_at_once_and_only_if_it_is_touched() -> None:
    data = np.zeros(8 * PAGE, np.uint8)
    pages = Pages(data, page_sums(data))
    begin, end = np.array([PAGE, 10]), np.array([PAGE + 1, 10])
    pages.check(begin, end)  # the second range is empty
    data[PAGE] = data[0] = 1

    pages.check(begin, end)  # seen already
    with pytest.raises(DamagedPageError):
        pages.check(np.array([0]), np.array([8 * PAGE]))


# --- the file


@pytest.fixture
def file(tmp_path: Path) -> LevelFile:
    path = tmp_path / "index.sqlite"
    path.touch()
    return LevelFile(str(path), INFO)


def head_of(file: LevelFile, centroids: Centroids) -> Head:
    return Head(
        dim=INFO.dim,
        centroids=len(centroids),
        groups=len(centroids.groups),
        token=TOKEN,
        model=file.model,
        last=70,
        trained_tokens=5,
        trained_distance=0.25,
    )


def blocks(codes: NDArray[np.int64], count: int) -> Iterator[Block]:
    """Documents of `LENGTHS` at positions 10, 20, ..., four in a block."""
    lengths = np.array(LENGTHS, np.int64)
    ends = np.cumsum(lengths)
    for first in range(0, len(lengths), 4):
        some = lengths[first : first + 4]
        rows = codes[ends[first] - lengths[first] : ends[first] - lengths[first] + some.sum()]
        starts, listed = postings.inverted(rows, some, count)
        yield Block(
            10 * np.arange(first + 1, first + 1 + len(some)),
            some.astype(np.int32),
            rows.astype(np.uint16),
            starts,
            listed,
        )


def write(file: LevelFile, centroids: Centroids, codes: NDArray[np.int64]) -> None:
    def fill(writer: Writer) -> None:
        for block in blocks(codes, len(centroids)):
            if block.positions[-1] > writer.after:
                writer.append(block.packed(0.5), int(block.positions[-1]))

    file.make(TOKEN, lambda: (head_of(file, centroids), centroids), fill)


def opened(file: LevelFile) -> Opened:
    found = file.open()
    assert found is not None
    return found


@pytest.mark.parametrize("count", [40, 2**16])
def test_a_file_holds_what_was_written(
    file: LevelFile, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postings, "BLOCK", 4)
    values = unit(count, INFO.dim)
    centroids = Centroids(values, unit(3, INFO.dim), torch.tensor([0, 7, 9, count]))
    codes = np.random.default_rng(0).integers(0, count, sum(LENGTHS))

    write(file, centroids, codes)

    level = opened(file)
    assert level.head == head_of(file, centroids)
    assert torch.equal(level.centroids.values, values)
    assert torch.equal(level.centroids.groups, centroids.groups)
    assert level.centroids.bounds.tolist() == [0, 7, 9, count]
    assert level.positions.tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert level.lengths.tolist() == list(LENGTHS)
    assert np.concatenate([part.block.codes for part in level.parts]).tolist() == codes.tolist()
    assert (level.tokens, level.distance) == (sum(LENGTHS), 1.0)
    file.verify()


def test_a_file_of_more_centroids_than_two_bytes_tell_apart_is_not_opened(file: LevelFile) -> None:
    count = 2**16 + 1
    centroids = Centroids(unit(count, INFO.dim), unit(1, INFO.dim), torch.tensor([0, count]))

    write(file, centroids, np.zeros(sum(LENGTHS), np.int64))

    assert file.open() is None


def test_a_file_that_is_cut_or_changed_is_not_opened_or_found_out(file: LevelFile) -> None:
    centroids = train(unit(200, INFO.dim), 20, seed=0)
    write(file, centroids, np.zeros(sum(LENGTHS), np.int64))
    whole = file.path.read_bytes()
    random = np.random.default_rng(0)
    file.path.chmod(0o644)

    for size in [0, 1, 100, 2000, len(whole) - 1, *random.integers(0, len(whole), 40).tolist()]:
        file.path.write_bytes(whole[:size])
        assert file.open() is None
    padding = 0
    for place in random.integers(0, len(whole), 400).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        file.path.write_bytes(changed)
        level = file.open()
        if level is None:
            continue
        try:
            level.pages.check(np.array([0]), np.array([len(level.data)]))
            padding += 1  # between the arrays before the blocks, where nothing is read
        except DamagedPageError:
            pass
    before = opened_begin(whole)
    assert padding <= 400 * 3 * 1024 / len(whole) + 10
    assert before < len(whole)


def opened_begin(data: bytes) -> int:
    head = Head.unpacked(data)
    assert head is not None
    return head.begin


def test_a_file_of_another_model_is_not_opened(file: LevelFile) -> None:
    write(file, train(unit(200, INFO.dim), 20, seed=0), np.zeros(sum(LENGTHS), np.int64))

    other = LevelFile(str(file.path).removesuffix("-level"), replace(INFO, fingerprint="c" * 64))

    assert other.open() is None


def test_a_maker_goes_on_behind_the_last_whole_block(
    file: LevelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postings, "BLOCK", 4)
    centroids = train(unit(200, INFO.dim), 20, seed=0)
    codes = np.random.default_rng(0).integers(0, len(centroids), sum(LENGTHS))
    write(file, centroids, codes)
    whole = file.path.read_bytes()
    file.path.unlink()
    aside = file.aside(TOKEN.hex())
    level_begin = opened_begin(whole)

    def kill(writer: Writer) -> None:
        block = next(blocks(codes, len(centroids)))
        writer.append(block.packed(0.5), int(block.positions[-1]))
        writer._file.write(b"half of a block")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file.make(TOKEN, lambda: (head_of(file, centroids), centroids), kill)
    assert aside.stat().st_size > level_begin

    def again() -> tuple[Head, Centroids]:
        raise AssertionError("the centroids are there")

    def go_on(writer: Writer) -> None:
        assert writer.after == 40
        _, last = blocks(codes, len(centroids))
        writer.append(last.packed(0.5), int(last.positions[-1]))

    file.make(TOKEN, again, go_on)
    assert file.path.read_bytes() == whole
    assert not aside.exists()


def test_a_disk_that_is_full_leaves_nothing(file: LevelFile) -> None:
    centroids = train(unit(200, INFO.dim), 20, seed=0)

    def fail(writer: Writer) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        file.make(TOKEN, lambda: (head_of(file, centroids), centroids), fail)

    assert [path.name for path in file.path.parent.iterdir()] == ["index.sqlite"]


# --- candidates


@pytest.fixture
def level(file: LevelFile, monkeypatch: pytest.MonkeyPatch) -> Opened:
    monkeypatch.setattr(postings, "BLOCK", 4)
    monkeypatch.setattr(candidates, "_ALL", 0)
    centroids = train(unit(400, INFO.dim), 20, seed=0)
    write(file, centroids, np.random.default_rng(3).integers(0, len(centroids), sum(LENGTHS)))
    return opened(file)


def codes_of(level: Opened) -> list[list[int]]:
    flat = np.concatenate([part.block.codes for part in level.parts]).tolist()
    ends = np.cumsum(LENGTHS).tolist()
    return [flat[end - length : end] for end, length in zip(ends, LENGTHS, strict=True)]


def naive_gains(level: Opened, query: Tensor, probes: int) -> dict[int, float]:
    """What each document gains, one number at a time."""
    gains: dict[int, float] = {}
    for row in (query @ level.centroids.values.T).tolist():
        order = sorted(range(len(row)), key=lambda at: -row[at])
        probed, floor = set(order[:probes]), row[order[probes]]
        for number, codes in enumerate(codes_of(level)):
            if seen := [row[code] - floor for code in codes if code in probed]:
                gains[number] = gains.get(number, 0.0) + max(seen)
    return gains


def naive_scores(level: Opened, query: Tensor) -> list[float]:
    """MaxSim of each document that has tokens, with its centroid in place of each."""
    similarities = (query @ level.centroids.values.T).tolist()
    return [
        sum(max(row[code] for code in codes) for row in similarities) if codes else -math.inf
        for codes in codes_of(level)
    ]


@pytest.mark.parametrize("probes", [1, 2, 5, 19])
def test_gains_are_those_of_a_naive_loop(level: Opened, probes: int) -> None:
    finder = Candidates(level)
    for seed in range(20):
        query = unit(4, INFO.dim, seed=100 + seed)
        similarities = query @ level.centroids.values.T

        documents, gains = finder._gains(candidates._probes(similarities, probes))

        expected = naive_gains(level, query, probes)
        assert documents.tolist() == sorted(expected)
        assert gains.tolist() == pytest.approx([expected[at] for at in sorted(expected)], abs=1e-5)


def test_a_long_query_gains_as_much_and_keeps_no_more_memory(level: Opened) -> None:
    finder, query = Candidates(level), unit(200, INFO.dim, seed=7)

    documents, gains = finder._gains(candidates._probes(query @ level.centroids.values.T, 3))

    expected = naive_gains(level, query, 3)
    assert documents.tolist() == sorted(expected)
    assert gains.tolist() == pytest.approx([expected[at] for at in sorted(expected)], abs=1e-4)
    assert finder._latest.nbytes <= 4 * postings.BLOCK


@pytest.mark.parametrize("all_at_once", [0, 100])
def test_the_best_by_their_codes_are_found(
    level: Opened, all_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_ALL", all_at_once)
    finder, allowed = Candidates(level), np.array(LENGTHS) > 0
    allowed[4] = False
    for seed in range(20):
        query = unit(3, INFO.dim, seed=100 + seed)
        scores = naive_scores(level, query)
        best = sorted((scores[at] for at in np.flatnonzero(allowed)), reverse=True)[:2]

        found = finder.find(query, Effort(19, 6, 2), allowed).tolist()

        assert allowed[found].all()
        assert sorted((scores[at] for at in found), reverse=True) == pytest.approx(best, abs=1e-5)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 40))
def test_of_equal_scores_the_first_are_the_best(scores: list[int], count: int) -> None:
    count = min(count, len(scores))

    found = candidates._best(np.array(scores, np.float32), count).tolist()

    assert sorted(found) == sorted(sorted(range(len(scores)), key=lambda at: -scores[at])[:count])


def test_a_score_that_is_no_number_is_the_worst() -> None:
    found = candidates._best(np.array([math.nan, 1, -math.inf, 2, math.nan]), 3)

    assert sorted(found.tolist()) == [0, 1, 3]


def test_more_centroids_are_looked_at_where_too_few_documents_were_found(level: Opened) -> None:
    query, allowed = unit(1, INFO.dim), np.array(LENGTHS) > 0
    assert len(naive_gains(level, query, 1)) < 5

    found = Candidates(level).find(query, Effort(1, 5, 5), allowed)

    assert len(found) == 5


def test_all_that_may_be_found_are_scored_where_they_are_few(level: Opened) -> None:
    allowed = np.zeros(len(LENGTHS), np.bool_)
    allowed[[2, 6]] = True

    found = Candidates(level).find(unit(2, INFO.dim), EFFORTS[1], allowed)

    assert found.tolist() == [2, 6]


def test_a_changed_table_is_found_when_the_file_is_opened(level: Opened, file: LevelFile) -> None:
    part = level.parts[0]
    for place in (part.block.shape.places[2], part.block.shape.places[3]):
        data = bytearray(file.path.read_bytes())
        at = level.head.begin + part.begin + place
        data[at] ^= 1
        file.path.unlink()
        file.path.write_bytes(data)
        # So small a block is one page, which is looked at when the file is opened.
        assert file.open() is None
        data[at] ^= 1
        file.path.unlink()
        file.path.write_bytes(data)


def test_efforts_rise_in_all_they_do() -> None:
    assert list(EFFORTS) == list(range(1, MOST_EFFORT + 1))
    table = [(way.probes, way.by_codes, way.by_vectors) for way in EFFORTS.values()]
    for first, second in itertools.pairwise(table):
        assert all(less <= more for less, more in zip(first, second, strict=True))
    for way in EFFORTS.values():
        wide = way.for_results(1000)
        assert wide.by_codes >= wide.by_vectors >= 1000
        assert math.isclose(way.for_results(1).by_vectors, way.by_vectors)


def test_more_is_done_by_default_from_33_million_vectors_on() -> None:
    # At 10.5 million, effort 3 finds .998 of the exact best ten and .974 of the best hundred; at
    # 105 million .950 and less, and effort 4 .980 (benchmarks/results/).
    assert (usual(10_500_000), usual(2**25 - 1)) == (DEFAULT_EFFORT, DEFAULT_EFFORT)
    assert (usual(2**25), usual(105_000_000)) == (DEFAULT_EFFORT + 1, DEFAULT_EFFORT + 1)


@pytest.mark.parametrize("vectors", [2**24, 2**25, 10**9, 10**12])
def test_two_bytes_tell_the_centroids_of_any_index_apart(vectors: int) -> None:
    count = centroids_for(vectors)

    # `train` has the square root as many groups, and rounds once for each.
    assert count + round(count**0.5) <= 2**16
