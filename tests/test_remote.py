"""A model behind a server: the same answers as the model itself, and none of its weights.

What is right is what the local model says, which knows of no server.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from colbert_rag import (
    ColBERT,
    InvalidQueryError,
    LocalIndex,
    RemoteColBERT,
    Settings,
)
from colbert_rag.errors import IndexMismatchError
from colbert_rag.model import AsyncRanker, ManyRanker, Model, Ranker
from colbert_rag.ranking import Rankings
from colbert_rag.remote import parts, scoring
from tests.helpers.serving import Running, serving

QUERY = "which planet is red?"
TEXTS = [
    "Saturn has rings of ice and rock.",
    "Mars is red, and has two moons.",
    "",
    "A planet is not a star; the red one is Mars.",
    "Mars is red, and has two moons.",
    "half a \ud800 character, ümläuts and 火星",
    "rock and wind " * 40,
]
QUERIES = [QUERY, "what has rings?", "rock"]
EXACT = 1e-4


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("server"), "-m", tiny_checkpoint) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def remote(server: Running) -> RemoteColBERT:
    return RemoteColBERT(server.url)


def places(ranking: object) -> list[tuple[int, str]]:
    return [(place.index, place.text) for place in ranking]


def check_same(found: object, expected: object) -> None:
    """Two rankings of the same texts: places, order and scores."""
    assert places(found) == places(expected)
    assert [place.score for place in found] == pytest.approx(
        [place.score for place in expected], abs=EXACT
    )
    assert found.query_rows == expected.query_rows
    assert [place.mean for place in found] == pytest.approx(
        [place.mean for place in expected], abs=EXACT
    )


@pytest.mark.parametrize("top_k", [0, -1])
def test_it_refuses_the_top_k_that_the_local_model_refuses(
    remote: RemoteColBERT, top_k: int
) -> None:
    message = f"top_k is {top_k}, expected at least 1; leave it out to get all"
    with pytest.raises(ValueError, match=message):
        remote.rank(QUERY, TEXTS, top_k=top_k)
    with pytest.raises(ValueError, match=message):
        remote.rank_many([QUERY], TEXTS, top_k=top_k)
    with pytest.raises(ValueError, match=message):
        remote.rank(QUERY, TEXTS, top_k=top_k, known=lambda texts: {})
    assert len(remote.rank(QUERY, [], top_k=0)) == 0


@pytest.mark.parametrize("top_k", [None, 1, 3, 99])
def test_it_ranks_as_the_local_model(
    remote: RemoteColBERT, tiny_colbert: ColBERT, top_k: int | None
) -> None:
    check_same(remote.rank(QUERY, TEXTS, top_k=top_k), tiny_colbert.rank(QUERY, TEXTS, top_k=top_k))


async def test_it_ranks_the_same_when_it_is_awaited(
    remote: RemoteColBERT, tiny_colbert: ColBERT
) -> None:
    check_same(await remote.arank(QUERY, TEXTS), tiny_colbert.rank(QUERY, TEXTS))


def test_it_scores_in_the_order_of_the_input(remote: RemoteColBERT, tiny_colbert: ColBERT) -> None:
    expected = tiny_colbert.score(QUERY, TEXTS)

    assert remote.score(QUERY, TEXTS) == pytest.approx(expected, abs=EXACT)
    assert asyncio.run(remote.ascore(QUERY, TEXTS)) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(
    "lists",
    [TEXTS, [TEXTS[:3], [], TEXTS[2:]], [TEXTS, TEXTS, TEXTS[:1]]],
    ids=["one list", "a list each", "some the same"],
)
def test_it_ranks_for_many_queries_as_the_local_model(
    remote: RemoteColBERT, tiny_colbert: ColBERT, lists: list
) -> None:
    found = remote.rank_many(QUERIES, lists, top_k=4)
    awaited = asyncio.run(remote.arank_many(QUERIES, lists, top_k=4))

    assert {type(many) for many in (found, awaited)} == {Rankings}  # which prints as tables
    for ranking, again, expected in zip(
        found, awaited, tiny_colbert.rank_many(QUERIES, lists, top_k=4), strict=True
    ):
        check_same(ranking, expected)
        check_same(again, expected)


def test_what_is_told_of_each_query_comes_in_order(remote: RemoteColBERT) -> None:
    told: list[int] = []

    remote.rank_many(QUERIES, TEXTS, ready=lambda place, ranking: told.append(place))

    assert told == [0, 1, 2]


def test_items_come_back_as_they_were_given(remote: RemoteColBERT) -> None:
    items = [{"text": text, "page": page} for page, text in enumerate(TEXTS)]

    ranking = remote.rank(QUERY, items)

    assert all(place.item is items[place.index] for place in ranking)


def test_vectors_are_those_of_the_local_model(remote: RemoteColBERT, tiny_colbert: ColBERT) -> None:
    for found, expected in [
        (remote.encode_queries(QUERIES), tiny_colbert.encode_queries(QUERIES)),
        (remote.encode_documents(TEXTS), tiny_colbert.encode_documents(TEXTS)),
    ]:
        assert found.lengths.tolist() == expected.lengths.tolist()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=0)


def test_no_texts_have_no_vectors_of_the_right_width(
    remote: RemoteColBERT, tiny_colbert: ColBERT
) -> None:
    assert remote.encode_documents([]).values.shape == (0, tiny_colbert.dim)


def test_it_says_what_an_index_asks_of_a_model(
    remote: RemoteColBERT, tiny_colbert: ColBERT
) -> None:
    assert remote.dim == tiny_colbert.dim
    assert remote.fingerprint == tiny_colbert.fingerprint
    assert remote.device == "cpu"
    assert isinstance(remote.settings, Settings)
    assert remote.settings.checkpoint == tiny_colbert.settings.checkpoint


@pytest.mark.parametrize("protocol", [Ranker, ManyRanker, AsyncRanker])
def test_it_is_a_model(remote: RemoteColBERT, protocol: type) -> None:
    assert isinstance(remote, protocol)


def test_it_fits_the_type_of_a_model(remote: RemoteColBERT) -> None:
    model: Model = remote

    assert model is remote


def test_it_explains_as_the_local_model(remote: RemoteColBERT, tiny_colbert: ColBERT) -> None:
    local = tiny_colbert.rank(QUERY, TEXTS)
    expected = local.explain(0).to_dict()
    for found in (
        remote.rank(QUERY, TEXTS).explain(0),
        remote.rank(QUERY, TEXTS, explain=True, top_k=1).explain(0),
        remote.rank_many([QUERY], TEXTS)[0].explain(0),
        remote.explain(QUERY, local[0].text),
    ):
        said = found.to_dict()
        assert said["score"] == pytest.approx(expected["score"], abs=EXACT)
        assert [match["document"] for match in said["matches"]] == [
            match["document"] for match in expected["matches"]
        ]
        assert f"{found.score:.4f}" in repr(found)


def test_explanations_of_many_places_come_in_parts(
    remote: RemoteColBERT, tiny_colbert: ColBERT
) -> None:
    texts = [f"{number} moons of a planet" for number in range(130)]

    ranking = remote.rank(QUERY, texts, explain=True)

    check_same(ranking, tiny_colbert.rank(QUERY, texts))
    assert ranking.explain(129).score == pytest.approx(ranking[129].score, abs=EXACT)
    best = remote.rank(QUERY, texts, explain=True, top_k=2)
    check_same(best, tiny_colbert.rank(QUERY, texts, top_k=2))
    assert best.explain(1).score == pytest.approx(best[1].score, abs=EXACT)


@pytest.mark.parametrize("texts", [[], ["a"]], ids=["without texts", "with texts"])
def test_errors_are_those_of_the_local_model(
    remote: RemoteColBERT, tiny_colbert: ColBERT, texts: list[str]
) -> None:
    for arguments in [(" ", texts), (3, texts), (QUERY, "text"), (QUERY, [3]), (texts, QUERY)]:
        with pytest.raises((InvalidQueryError, TypeError)) as expected:
            tiny_colbert.rank(*arguments)
        with pytest.raises(type(expected.value)) as found:
            remote.rank(*arguments)
        assert str(found.value) == str(expected.value)


def test_a_misspelt_argument_is_named(remote: RemoteColBERT) -> None:
    with pytest.raises(TypeError, match="did you mean top_k"):
        remote.rank(QUERY, TEXTS, top_n=3)
    with pytest.raises(TypeError, match="did you mean top_k"):
        remote.rank_many(QUERIES, TEXTS, k=3)
    with pytest.raises(ValueError, match="top_k is -1"):
        remote.rank(QUERY, TEXTS, top_k=-1)


# Large requests


def test_a_long_list_is_ranked_as_one(
    remote: RemoteColBERT, tiny_colbert: ColBERT, server: Running
) -> None:
    texts = [f"{number} stones of {number % 7} moons" for number in range(1300)]

    check_same(remote.rank(QUERY, texts, top_k=20), tiny_colbert.rank(QUERY, texts, top_k=20))
    for found, expected in zip(
        remote.rank_many(QUERIES, texts), tiny_colbert.rank_many(QUERIES, texts), strict=True
    ):
        check_same(found, expected)


def test_requests_are_cut_to_what_a_small_server_takes(
    tiny_checkpoint: Path, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    small = ("--max-documents", 5, "--max-queries", 2)
    texts = [f"{number} stones" for number in range(23)]
    lists = [texts[:3], texts[3:12], texts[12:]]
    with serving(tmp_path, "-m", tiny_checkpoint, *small) as running:
        remote = RemoteColBERT(running.url)

        check_same(remote.rank(QUERY, texts), tiny_colbert.rank(QUERY, texts))
        for given in (texts, lists):
            for found, expected in zip(
                remote.rank_many(QUERIES, given),
                tiny_colbert.rank_many(QUERIES, given),
                strict=True,
            ):
                check_same(found, expected)
        found = remote.encode_documents(texts)
    torch.testing.assert_close(
        found.values, tiny_colbert.encode_documents(texts).values, atol=1e-5, rtol=0
    )


def test_a_single_text_that_is_too_long_is_said_so(remote: RemoteColBERT) -> None:
    with pytest.raises(RuntimeError, match="has 200,001 characters, expected 200,000 at most"):
        remote.rank(QUERY, ["short", "x" * 200_001])


@pytest.mark.parametrize("sizes", [[], [1], [1] * 7, [9, 9, 9], [2, 3, 99, 4]])
def test_parts_cover_everything_once_and_in_order(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_BYTES", 10)

    cut = list(parts.in_parts(sizes, 3))

    assert [place for first, last in cut for place in range(first, last)] == list(range(len(sizes)))
    assert all(last - first <= 3 for first, last in cut)
    assert all(sum(sizes[first:last]) <= 10 or last - first == 1 for first, last in cut)


@pytest.mark.parametrize(
    ("lists", "groups"),
    [
        ([["a"]], [(0, 1)]),
        ([["a", "b"], ["a", "b"], ["a", "b"]], [(0, 3)]),
        ([["a"], ["b"], ["c"], ["d"], ["e"]], [(0, 4), (4, 5)]),
        ([["a"], ["a"], ["b"]], [(0, 2), (2, 3)]),
        ([["a", "b", "c"], ["d", "e"]], [(0, 1), (1, 2)]),
        ([["a"]] * 9, [(0, 8), (8, 9)]),
    ],
)
def test_queries_are_grouped_within_the_bounds(
    lists: list, groups: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MOST_TEXTS", 4)
    monkeypatch.setattr(scoring, "MOST_QUERIES", 8)

    assert scoring._groups(lists) == groups


# With an index of this process


def test_windows_are_those_of_the_server(
    tiny_checkpoint: Path, colbert: Callable[..., ColBERT], tmp_path: Path
) -> None:
    local = colbert("stanford-bert", long_documents="windows", document_cache=None)
    texts = ["rock and wind " * 200 + "mars is red", "mars is red", "bread"]
    windows = ("-m", tiny_checkpoint, "--long-documents", "windows")
    with (
        serving(tmp_path, *windows) as running,
        LocalIndex(tmp_path / "index.sqlite", local) as index,
    ):
        index.add(texts)
        remote = RemoteColBERT(running.url)
        check_same(remote.rank(QUERY, texts), local.rank(QUERY, texts))
        known = remote.rank(QUERY, texts, known=index.embeddings_for)

    check_same(known, local.rank(QUERY, texts))  # not the stored vectors of a text that was cut


def test_vectors_of_nothing_are_no_hindrance(
    remote: RemoteColBERT, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    with LocalIndex(tmp_path / "index.sqlite", tiny_colbert) as index:
        check_same(
            remote.rank(QUERY, TEXTS, known=index.embeddings_for), tiny_colbert.rank(QUERY, TEXTS)
        )
        assert list(remote.rank(QUERY, [], known=index.embeddings_for)) == []
        (one,) = remote.rank_many([QUERY], TEXTS, known=index.embeddings_for)
    check_same(one, tiny_colbert.rank(QUERY, TEXTS))


def test_a_local_index_is_made_and_searched_with_it(
    remote: RemoteColBERT, tiny_colbert: ColBERT, colbert: Callable[..., ColBERT], tmp_path: Path
) -> None:
    path = tmp_path / "index.sqlite"
    uncached = colbert("stanford-bert", document_cache=None)  # so that it takes stored vectors, too
    texts = [text for text in TEXTS if "\ud800" not in text]
    with LocalIndex(path, remote) as index:
        index.add(texts)
        found = index.search(QUERY)
        known = index.embeddings_for

        ranked = remote.rank(QUERY, [*texts, "a new one"], known=known)
        expected = uncached.rank(QUERY, [*texts, "a new one"], known=known)
        with pytest.raises(ValueError, match="top_k is -1"):
            remote.rank(QUERY, texts, known=known, top_k=-1)
    with LocalIndex(path, tiny_colbert) as index:
        again = index.search(QUERY)

    assert [hit.id for hit in found] == [hit.id for hit in again]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in again], abs=EXACT)
    check_same(ranked, expected)


def test_an_index_of_another_model_is_refused(
    remote: RemoteColBERT, colbert: Callable[..., ColBERT], tmp_path: Path
) -> None:
    path = tmp_path / "index.sqlite"
    with LocalIndex(path, colbert("pylate-modernbert")) as index:
        index.add(["mars"])
        with pytest.raises(IndexMismatchError, match="was made by"):
            remote.rank(QUERY, ["mars"], known=index.embeddings_for)
    with pytest.raises(IndexMismatchError, match="was made by"):
        LocalIndex(path, remote)


# What it is to its holders


def test_it_pickles_without_its_key_and_copies_as_itself(server: Running) -> None:
    remote = RemoteColBERT(server.url, api_key="open sesame", timeout=7, retries=1)

    pickled = pickle.dumps(remote)
    restored = pickle.loads(pickled)

    assert b"sesame" not in pickled
    assert (restored.address, restored.timeout) == (server.url, 7)
    assert restored.rank(QUERY, ["mars"])[0].index == 0
    assert copy.copy(remote) is copy.deepcopy(remote) is remote
    assert "sesame" not in repr(remote) + repr(remote._server)


def test_many_threads_and_loops_get_their_own_answers(
    remote: RemoteColBERT, tiny_colbert: ColBERT
) -> None:
    queries = [f"{number} moons" for number in range(12)]
    expected = [tiny_colbert.score(query, TEXTS) for query in queries]
    found: dict[int, list[float]] = {}

    def work(place: int) -> None:
        if place % 2:
            found[place] = remote.score(queries[place], TEXTS)
        else:
            found[place] = asyncio.run(remote.ascore(queries[place], TEXTS))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [found[place] for place in range(12)] == [
        pytest.approx(scores, abs=EXACT) for scores in expected
    ]


async def test_a_full_server_answers_all_who_come_again(
    tiny_checkpoint: Path, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    queries = [f"{number} moons" for number in range(24)]
    narrow = ("--max-running", 1, "--max-waiting", 2)
    with serving(tmp_path, "-m", tiny_checkpoint, *narrow) as running:
        remote = RemoteColBERT(running.url, retries=50)

        found = await asyncio.gather(*(remote.ascore(query, TEXTS) for query in queries))

        with running.client() as client:
            assert 'status="429"' in client.get("/metrics").text
    assert found == [
        pytest.approx(tiny_colbert.score(query, TEXTS), abs=EXACT) for query in queries
    ]


def test_a_server_that_is_started_again_is_found_again(
    tiny_checkpoint: Path, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    with serving(tmp_path / "first", "-m", tiny_checkpoint) as running:
        port = running.url.rpartition(":")[2]
        remote = RemoteColBERT(running.url, retries=50)
        before = remote.score(QUERY, TEXTS)
        running.process.kill()
        running.process.wait()
        answers: list[list[float]] = []
        asking = threading.Thread(target=lambda: answers.append(remote.score(QUERY, TEXTS)))
        asking.start()
        # The last option counts, and `serving` itself says that any port will do.
        with serving(tmp_path / "second", "-m", tiny_checkpoint, "--port", port):
            asking.join(60)

    assert answers == [pytest.approx(tiny_colbert.score(QUERY, TEXTS), abs=EXACT)]
    assert answers == [pytest.approx(before, abs=1e-6)]
