"""What only Qdrant can get wrong: its engine's scores and filters, the wire, and its limits."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from qdrant_client import QdrantClient, models
from qdrant_client.common import client_exceptions
from qdrant_client.http import exceptions

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import (
    IndexCorruptError,
    IndexStorageError,
    InvalidFilterError,
    MissingExtraError,
)
from colbert_rag.index import Changes, Document, LocalIndex, QdrantIndex, copy_index
from colbert_rag.index.qdrant import collection
from colbert_rag.index.qdrant.translation import TRANSLATED, translated
from tests.helpers import qdrant_http
from tests.helpers.edge import EdgeOracle
from tests.helpers.filter_cases import FILTERS, METADATA
from tests.helpers.index_fakes import WordEncoder, sentences
from tests.helpers.qdrant_http import API_KEY, Server, serve

# qdrant-edge-py 0.9 hands a boolean on to its engine as 0 or 1, so it cannot judge those filters.
WITHOUT_BOOLEANS = {
    name: (filter, expected)
    for name, (filter, expected) in FILTERS.items()
    if not {"true", "false"} & set(re.findall(r"\w+", json.dumps(filter)))
}

# The engine rounds queries to float16 as it does documents; both sides get them rounded.
TOLERANCE = 1e-5


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture(scope="module")
def library() -> LocalIndex:
    index = LocalIndex(":memory:", WordEncoder(96))
    index.add(
        [Document(f"d{at}", t, {"n": at, "odd": at % 2}) for at, t in enumerate(sentences(300))]
    )
    return index


@pytest.fixture(scope="module")
def engine(library: LocalIndex, tmp_path_factory: pytest.TempPathFactory) -> EdgeOracle:
    return EdgeOracle(tmp_path_factory.mktemp("edge") / "shard", library)


@pytest.mark.parametrize("filter", [None, {"odd": 1}, {"n": {"$gte": 100, "$lt": 150}}])
def test_both_indexes_find_what_qdrants_engine_finds(
    library: LocalIndex, engine: EdgeOracle, client: QdrantClient, filter: dict | None
):
    hosted = QdrantIndex(client, "t", like=library.info)
    copy_index(library, hosted)
    queries = WordEncoder(96).encode_queries(sentences(8, seed=8)).to(dtype=torch.float16)

    expected = engine.search(queries, 10, filter)

    for index in (library, hosted):
        found = index.search_embeddings(queries, 10, filter)
        assert [[hit.id for hit in hits] for hits in found] == [
            [name for name, _ in hits] for hits in expected
        ]
        assert [[hit.score for hit in hits] for hits in found] == [
            pytest.approx([score for _, score in hits], abs=TOLERANCE) for hits in expected
        ]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> EdgeOracle:
    index = LocalIndex(":memory:", WordEncoder())
    index.add([Document(name, f"mars {name}", value) for name, value in METADATA.items()])
    return EdgeOracle(tmp_path_factory.mktemp("catalogue") / "shard", index)


@pytest.mark.parametrize(("filter", "expected"), WITHOUT_BOOLEANS.values(), ids=WITHOUT_BOOLEANS)
def test_qdrants_engine_agrees_on_what_a_filter_lets_through(
    catalogue: EdgeOracle, filter: dict, expected: set[str]
):
    assert catalogue.passing(filter) == expected


def test_a_key_that_qdrant_cannot_express_is_refused(client: QdrantClient):
    index = QdrantIndex(client, "t", WordEncoder())
    index.add(["mars"])

    with pytest.raises(InvalidFilterError, match="double quote"):
        index.search("mars", filter={'a"b': 1})


def test_the_collection_is_made_for_exact_search_in_float16(client: QdrantClient):
    QdrantIndex(client, "t", WordEncoder(), prefetch=10)

    vectors = client.get_collection("t").config.params.vectors

    assert vectors["colbert"] == models.VectorParams(
        size=16,
        distance=models.Distance.DOT,
        datatype=models.Datatype.FLOAT16,
        multivector_config=models.MultiVectorConfig(
            comparator=models.MultiVectorComparator.MAX_SIM
        ),
        hnsw_config=models.HnswConfigDiff(m=0),
    )
    assert vectors["mean"].multivector_config is None
    held = QdrantIndex(client, "t", WordEncoder(), prefetch=10).stats()
    assert (held.vectors, held.vector_bytes) == ("float16", 32)


def test_vectors_can_be_smaller(client: QdrantClient):
    QdrantIndex(client, "t", WordEncoder(), datatype="turbo8")

    assert client.get_collection("t").config.params.vectors["colbert"].datatype == "turbo8"
    held = QdrantIndex(client, "t", WordEncoder()).stats()
    assert (held.vectors, held.vector_bytes) == ("turbo8", None)
    with pytest.raises(ValueError, match=r"datatype is 'int8', expected one of float16, turbo8"):
        QdrantIndex(client, "u", WordEncoder(), datatype="int8")


def test_points_are_named_by_uuid_and_keep_the_id_in_the_payload(client: QdrantClient):
    index = QdrantIndex(client, "t", WordEncoder())
    index.add([Document("a/b:1", "mars", {"n": 1})])

    [point], _ = client.scroll("t", with_payload=True)

    assert uuid.UUID(point.id).version == 5
    assert point.payload["id"] == "a/b:1"
    assert point.payload["metadata"] == {"n": 1}


def test_the_collection_of_somebody_else_is_refused_and_left_alone(client: QdrantClient):
    client.create_collection(
        "t", vectors_config=models.VectorParams(size=16, distance=models.Distance.COSINE)
    )

    with pytest.raises(IndexCorruptError, match=r"not made by colbert_rag.*left untouched"):
        QdrantIndex(client, "t", WordEncoder())

    assert client.get_collection("t").config.params.vectors.size == 16


def test_a_new_collection_needs_a_model_or_an_index_like_it(client: QdrantClient):
    with pytest.raises(ValueError, match=r"like=other_index\.info"):
        QdrantIndex(client, "t")

    assert not client.collection_exists("t")


def test_a_server_that_forgets_the_model_is_too_old(client: QdrantClient):
    class OldClient(QdrantClient):
        def create_collection(self, *arguments: object, **options: object) -> bool:
            return super().create_collection(*arguments, **(options | {"metadata": None}))

    old = OldClient(":memory:")

    with pytest.raises(IndexStorageError, match=r"upgrade Qdrant to 1\.16"):
        QdrantIndex(old, "t", WordEncoder())

    assert not old.collection_exists("t")
    old.close()


def test_two_writers_may_write_at_the_same_time(client: QdrantClient):
    first, second = (QdrantIndex(client, "t", WordEncoder()) for _ in range(2))

    def meanwhile() -> Iterator[str]:
        yield "mars"
        second.add(["venus"])
        yield "saturn"

    first.add(meanwhile(), batch_size=1)

    assert [document.text for document in second] == ["mars", "venus", "saturn"]


def test_prefetch_scores_only_the_nearest_by_mean_and_scores_those_exactly(client: QdrantClient):
    narrow = QdrantIndex(client, "t", WordEncoder(), prefetch=20)
    narrow.add([Document(t, t, {"odd": at % 2}) for at, t in enumerate(sentences(100))])
    exact, wide = (
        QdrantIndex(client, "t", WordEncoder()),
        QdrantIndex(client, "t", WordEncoder(), prefetch=100),
    )
    scores = {hit.id: hit.score for hit in exact.search("storm on mars", 100)}

    hits = narrow.search("storm on mars", 100, {"odd": 1})

    assert len(hits) == 50  # k above prefetch widens it, and the filter is applied before
    assert len(narrow.search("storm on mars", 15)) == 15
    assert all(hit.score == pytest.approx(scores[hit.id]) for hit in hits)
    assert wide.search("storm on mars", 15) == exact.search("storm on mars", 15)
    few = QdrantIndex(client, "t", WordEncoder(), prefetch=1)
    assert few.search("storm on mars", 15, exact=True) == exact.search("storm on mars", 15)


def test_a_writer_without_prefetch_keeps_the_mean_vectors_up(client: QdrantClient):
    QdrantIndex(client, "t", WordEncoder(), prefetch=5)
    QdrantIndex(client, "t", WordEncoder()).add(["mars", "venus"])

    hits = QdrantIndex(client, "t", WordEncoder(), prefetch=5).search("mars")

    assert [hit.text for hit in hits] == ["mars", "venus"]


def test_prefetch_needs_a_collection_made_with_it(client: QdrantClient):
    QdrantIndex(client, "t", WordEncoder())

    with pytest.raises(ValueError, match="made without prefetch"):
        QdrantIndex(client, "t", WordEncoder(), prefetch=5)
    for wrong in (0, True, "mean"):
        with pytest.raises(ValueError, match=f"prefetch is {wrong!r}, expected 'auto', None, or"):
            QdrantIndex(client, "u", WordEncoder(), prefetch=wrong)


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def remote(server: Server) -> Iterator[QdrantClient]:
    client = QdrantClient(url=server.url, api_key=API_KEY, check_compatibility=False)
    yield client
    client.close()


# The server of these tests speaks plain HTTP, over which a client had better not send keys.
over_the_wire = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")


@over_the_wire
def test_everything_works_over_the_wire(remote: QdrantClient, library: LocalIndex):
    model = WordEncoder()
    index = QdrantIndex(remote, "t", model, payload_indexes={"a.größe cm": "float"})

    documents = [Document(f"d{at}", t, {"n": at}) for at, t in enumerate(sentences(20))]
    assert index.add(documents) == Changes(added=20)
    assert index.update([Document("d3", documents[3].text, {"n": -1})]) == Changes(updated=1)
    assert index.delete(["d0", "d1"]) == 2
    hits = index.search("mars", 5, {"$or": [{"n": {"$lt": 8}}, {"n": None}]})

    local = LocalIndex(":memory:", model)
    local.add(
        [Document(d.id, d.text, {"n": -1} if d.id == "d3" else d.metadata) for d in documents[2:]]
    )
    expected = local.search("mars", 5, {"n": {"$lt": 8}})
    assert [hit.id for hit in hits] == [hit.id for hit in expected]
    assert list(index) == list(local)
    assert torch.equal(index.embeddings(["d7"]).values, local.embeddings(["d7"]).values)
    assert list(index.embeddings_for([documents[5].text, "?"])) == [documents[5].text]
    assert index.count() == 18


@over_the_wire
def test_payload_indexes_are_made_for_our_own_key_and_those_asked_for(
    server: Server, remote: QdrantClient
):
    QdrantIndex(remote, "t", WordEncoder(), payload_indexes={"year": "integer", "a.b c": "keyword"})

    assert [request.body for request in server.sent("PUT", "index")] == [
        {"field_name": "text_digest", "field_schema": "keyword"},
        {"field_name": "metadata.year", "field_schema": "integer"},
        {"field_name": 'metadata.a."b c"', "field_schema": "keyword"},
    ]


@over_the_wire
def test_cluster_settings_reach_the_server(server: Server, remote: QdrantClient):
    QdrantIndex(remote, "t", WordEncoder(), shard_number=3, replication_factor=2)

    [request] = server.sent("PUT", "")
    assert (request.body["shard_number"], request.body["replication_factor"]) == (3, 2)


@over_the_wire
def test_requests_stay_below_the_limit_even_with_the_longest_numbers(
    server: Server, remote: QdrantClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collection, "_REQUEST_BYTES", 40_000)
    index = QdrantIndex(remote, "t", WordEncoder())
    longest = max(
        torch.arange(-0x8000, 0x7C00, dtype=torch.int16).view(torch.float16).tolist(),
        key=lambda value: len(json.dumps(value)),
    )
    vectors = TokenEmbeddings.from_list([torch.full((20, 16), longest)] * 30)

    index.add_encoded([Document(f"d{at}", f"é {at}", {"n": at}) for at in range(30)], vectors)

    sizes = [request.size for request in server.sent("PUT", "points")]
    assert index.count() == 30
    assert max(sizes) <= 40_000
    assert len(sizes) <= 10


def test_a_document_above_the_limit_says_what_to_do(client: QdrantClient):
    index = QdrantIndex(client, "t", WordEncoder())
    vectors = TokenEmbeddings.from_list([torch.ones(100_000, 16)])

    with pytest.raises(ValueError, match=r"'big' with 100000 token vectors.*token_pooling"):
        index.add_encoded([Document("big", "x")], vectors)


@over_the_wire
def test_a_search_over_the_wire_does_not_fetch_vectors(server: Server, remote: QdrantClient):
    index = QdrantIndex(remote, "t", WordEncoder())
    index.add(sentences(5))
    index.search("mars", 2)

    [request] = server.sent("POST", "points/query/batch")
    [search] = request.body["searches"]
    assert search["using"] == "colbert"
    assert search["with_payload"] == ["id", "text", "metadata", "order"]
    assert "with_vector" not in search


def test_every_exception_of_the_client_has_a_meaning():
    defined = {
        kind
        for module in (exceptions, client_exceptions)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Exception)
    }

    assert len(defined) >= 5
    assert defined <= set(TRANSLATED)


@over_the_wire
@pytest.mark.parametrize(
    ("key", "said"), [(None, "it asks for an API key"), ("wrong", "the API key was refused")]
)
def test_a_server_that_wants_another_key_says_so(server: Server, key: str | None, said: str):
    client = QdrantClient(url=server.url, api_key=key, check_compatibility=False)

    with pytest.raises(IndexStorageError, match=rf"^{server.url}: {said}\. Pass api_key to Qdrant"):
        QdrantIndex(client, "t", WordEncoder())

    client.close()


@over_the_wire
def test_a_key_that_is_revoked_later_is_said_by_every_method(
    server: Server, remote: QdrantClient, monkeypatch: pytest.MonkeyPatch
):
    index = QdrantIndex(remote, "t", WordEncoder())
    index.add([Document("a", "mars")])
    monkeypatch.setattr(qdrant_http, "API_KEY", "another")

    for use in (
        lambda: index.add(["venus"]),
        lambda: index.update([Document("a", "venus")]),
        lambda: index.delete(["a"]),
        lambda: index.search("mars"),
        lambda: index.get(["a"]),
        lambda: index.embeddings(["a"]),
        lambda: index.embeddings_for(["mars"]),
        lambda: list(index.encoded()),
        lambda: list(index),
        index.count,
    ):
        with pytest.raises(IndexStorageError, match="the API key was refused"):
            use()


@pytest.mark.parametrize("grpc", [False, True])
def test_where_no_server_answers_the_error_names_the_place(grpc: bool):
    # Nothing listens on port 1.
    client = QdrantClient(
        url="http://127.0.0.1:1", grpc_port=1, prefer_grpc=grpc, check_compatibility=False
    )

    with pytest.raises(IndexStorageError, match=r"^http://127\.0\.0\.1:1[: ].*") as caught:
        QdrantIndex(client, "t", WordEncoder())

    assert "\n" not in str(caught.value)
    client.close()


def test_a_server_that_is_busy_says_for_how_long(client: QdrantClient):
    class Busy(QdrantClient):
        def collection_exists(self, *arguments: object, **options: object) -> bool:
            raise client_exceptions.ResourceExhaustedResponse("rate limit", 7)

    busy = Busy(":memory:")

    with pytest.raises(IndexStorageError, match=r"\(rate limit\): try again in 7 seconds"):
        QdrantIndex(busy, "t", WordEncoder())

    busy.close()


def test_what_is_no_error_of_the_server_passes_as_it_is(client: QdrantClient):
    ours = translated(client)

    with pytest.raises(ValueError, match="not found"):  # by the form in memory itself
        ours.get_collection("nowhere")
    assert ours.init_options == client.init_options
    assert copy.copy(ours).collection_exists("nowhere") is False
    assert translated(ours) is ours


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    monkeypatch.delitem(sys.modules, "colbert_rag.index.qdrant")

    with pytest.raises(MissingExtraError, match=r"pip install 'colbert-rag-components\[qdrant\]'"):
        importlib.import_module("colbert_rag.index.qdrant")


def test_an_index_on_a_path_is_there_after_reopening(tmp_path: Path):
    first = QdrantClient(path=str(tmp_path / "q"))
    QdrantIndex(first, "t", WordEncoder()).add(["mars"])
    first.close()

    second = QdrantClient(path=str(tmp_path / "q"))

    assert [hit.text for hit in QdrantIndex(second, "t", WordEncoder()).search("mars")] == ["mars"]
    second.close()
