"""Codes in Qdrant: what they find, who has them, and that without them nothing is lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import qdrant_edge as edge
import torch
from qdrant_client import QdrantClient, models

from colbert_rag.index import Document, Hit, LocalIndex, QdrantIndex, copy_index
from colbert_rag.index.kmeans import Centroids
from colbert_rag.index.qdrant import coding, stages
from colbert_rag.index.qdrant.codebook import Codebook
from colbert_rag.index.qdrant.effort import EFFORTS
from colbert_rag.index.qdrant.shelf import BESIDE, Shelf
from tests.helpers.index_fakes import WordEncoder, sentences
from tests.helpers.qdrant_http import API_KEY, Server, serve

TEXTS = sentences(240)
QUERIES = sentences(12, seed=8)


class Watched(QdrantClient):
    """In memory, and remembers which searches had a first stage."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.staged: list[bool] = []

    def query_batch_points(
        self, name: str, requests: Sequence[models.QueryRequest], **options: object
    ) -> list[models.QueryResponse]:
        self.staged += [bool(request.prefetch) for request in requests]
        return super().query_batch_points(name, requests, **options)


@pytest.fixture
def client() -> Iterator[Watched]:
    client = Watched()
    yield client
    client.close()


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LEAST", 100)


def documents(texts: Sequence[str], first: int = 0) -> list[Document]:
    return [Document(f"d{at}", t, {"odd": at % 2, "n": at}) for at, t in enumerate(texts, first)]


def filled(client: QdrantClient, name: str = "t", texts: Sequence[str] = TEXTS) -> QdrantIndex:
    index = QdrantIndex(client, name, WordEncoder())
    index.add(documents(texts))
    index.optimize()
    return index


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def points(client: QdrantClient, name: str = "t") -> dict[str, tuple[list[int], list[int]]]:
    """Codebooks and codes of each document."""
    found, _ = client.scroll(name, limit=10_000, with_vectors=["codes"])
    return {
        at.payload["id"]: (
            at.payload.get("codes", []),
            at.vector["codes"].indices if "codes" in at.vector else [],
        )
        for at in found
    }


def test_a_search_by_codes_finds_what_an_exact_one_finds_with_the_same_scores(client: Watched):
    index = filled(client)
    exact = index.search_many(QUERIES, 10, exact=True)
    client.staged.clear()

    found = index.search_many(QUERIES, 10, effort=1)

    assert all(client.staged)
    parts = [len({*ids(a)} & {*ids(b)}) / 10 for a, b in zip(exact, found, strict=True)]
    assert sum(parts) / len(parts) >= 0.97
    for best, hits in zip(exact, found, strict=True):
        scores = {hit.id: hit.score for hit in best}
        assert [hit.score for hit in hits if hit.id in scores] == [
            pytest.approx(scores[hit.id], abs=1e-6) for hit in hits if hit.id in scores
        ]


@pytest.mark.parametrize(
    ("options", "staged"),
    [
        ({}, True),
        ({"exact": False}, True),
        ({"exact": True}, False),
        ({"effort": 2}, True),
        ({"filter": {"n": {"$lt": 100}}, "effort": 1}, False),  # so few are scored all
        ({"filter": {"n": {"$lt": 200}}, "effort": 1}, True),
    ],
)
def test_who_asks_decides_what_is_read(client: Watched, options: dict, staged: bool):
    index = filled(client)
    client.staged.clear()

    index.search(QUERIES[0], 3, **options)

    assert client.staged == [staged]


def test_filters_hold_in_a_search_by_codes(client: Watched):
    index = filled(client)
    loose = {"n": {"$lt": 200}}

    for query in QUERIES:
        assert ids(index.search(query, 5, loose, effort=1)) == ids(
            index.search(query, 5, loose, exact=True)
        )


def test_without_prefetch_a_collection_is_searched_exactly_until_told_otherwise(client: Watched):
    filled(client)
    index = QdrantIndex(client, "t", WordEncoder(), prefetch=None)
    client.staged.clear()

    index.search("mars")
    index.search("mars", exact=False)

    assert client.staged == [False, True]


def test_few_documents_are_searched_exactly_until_told_otherwise(client: Watched):
    index = filled(client, texts=TEXTS[:50])
    client.staged.clear()

    index.search("mars")
    index.search("mars", exact=False)

    assert client.staged == [False, True]


def test_where_most_documents_are_wanted_all_are_read(client: Watched):
    index = filled(client)
    client.staged.clear()

    index.search("mars", 100)
    index.search("mars", 100, exact=False)

    assert client.staged == [False, True]


def test_an_empty_collection_gets_no_codebook(client: Watched):
    QdrantIndex(client, "t", WordEncoder()).optimize()

    assert not client.collection_exists("t" + BESIDE)


def test_documents_get_codes_as_they_are_added_by_any_client(client: Watched):
    filled(client)
    other = QdrantIndex(client, "t", WordEncoder(), prefetch=None)

    other.add(documents(TEXTS[:1], first=900))
    other.update([Document("d1", TEXTS[7])])

    held = points(client)
    assert held["d900"] == held["d0"]  # the same text, coded by another client
    assert held["d1"] == held["d7"]
    assert len(held["d0"][0]) == 1


def test_the_same_documents_get_the_same_codes(client: Watched):
    def relative(name: str) -> dict[str, list[int]]:
        return {key: [code - base for code in codes] for key, ([base], codes) in held(name).items()}

    def held(name: str) -> dict[str, tuple[list[int], list[int]]]:
        return points(client, name)

    filled(client, "t")
    filled(client, "u")

    assert relative("t") == relative("u")


def test_what_has_no_codes_is_scored_exactly(client: Watched):
    index = filled(client)
    found, _ = client.scroll("t", limit=10_000)
    names = {at.payload["id"]: at.id for at in found}
    without = ids(index.search(TEXTS[5], 3, exact=True))
    chosen = [names[name] for name in without]
    # As an earlier version of ours, or somebody else, would have written them.
    client.delete_payload("t", ["codes"], chosen)
    client.delete_vectors("t", ["codes"], chosen)
    client.staged.clear()

    assert ids(index.search(TEXTS[5], 3, effort=1)) == without
    assert client.staged == [True]

    index.optimize()

    assert all(len(bases) == 1 and codes for bases, codes in points(client).values())


def test_what_is_written_in_a_codebook_that_is_gone_is_scored_exactly(client: Watched):
    index = filled(client)
    [old] = points(client)["d5"][0]
    index.add(documents(sentences(480, seed=3), first=240))
    index.optimize()
    expected = ids(index.search(TEXTS[5], 3, exact=True))
    found, _ = client.scroll("t", limit=10_000)
    late = [at.id for at in found if at.payload["id"] in expected]
    # As a writer would have left them that looked for the codebook just before another came.
    client.set_payload("t", {"codes": [old]}, late)
    client.update_vectors(
        "t",
        [
            models.PointVectors(
                id=at, vector={"codes": models.SparseVector(indices=[old], values=[1.0])}
            )
            for at in late
        ],
    )
    client.staged.clear()

    assert ids(index.search(TEXTS[5], 3, effort=1)) == expected
    assert client.staged == [True]

    index.optimize()

    assert len({tuple(bases) for bases, _ in points(client).values()}) == 1


def test_counting_and_reading_see_no_codebook(client: Watched):
    index = filled(client)

    assert index.count() == len(TEXTS)
    assert {document.text for document in index} == set(TEXTS)
    assert sum(len(batch) for batch, _ in index.encoded()) == len(TEXTS)


def test_a_collection_that_has_doubled_gets_another_codebook(client: Watched):
    index = filled(client)
    first = {base for bases, _ in points(client).values() for base in bases}
    index.add(documents(sentences(480, seed=3), first=240))

    index.optimize()

    held = points(client)
    second = {base for bases, _ in held.values() for base in bases}
    assert len(first) == len(second) == 1
    assert first != second
    [base] = second
    assert all(base <= code < base + 10_000 for _, codes in held.values() for code in codes)
    stored, _ = client.scroll("t" + BESIDE, limit=100)
    assert {at.payload["base"] for at in stored} == second


def test_others_search_and_write_while_a_codebook_is_exchanged(
    client: Watched, monkeypatch: pytest.MonkeyPatch
):
    index = filled(client)
    other = QdrantIndex(client, "t", WordEncoder())
    index.add(documents(sentences(480, seed=3), first=240))
    publish = Shelf.publish
    seen = []

    def meanwhile(shelf: Shelf, codebook: object, record: object) -> None:
        client.staged.clear()
        seen.append(ids(other.search(TEXTS[5], 5)) == ids(other.search(TEXTS[5], 5, exact=True)))
        seen.append(client.staged == [True, False])  # the old codes are still there
        other.add([Document("new", "an entirely new text")])
        publish(shelf, codebook, record)
        seen.append(other.search("an entirely new text", 1)[0].id == "new")

    monkeypatch.setattr(Shelf, "publish", meanwhile)

    index.optimize()

    assert seen == [True, True, True]
    assert {len(bases) for bases, _ in points(client).values()} == {1}
    assert len({bases[0] for bases, _ in points(client).values()}) == 1


def test_two_who_optimize_at_the_same_time_lose_nothing(
    client: Watched, monkeypatch: pytest.MonkeyPatch
):
    first, second = (QdrantIndex(client, "t", WordEncoder()) for _ in range(2))
    first.add(documents(TEXTS))
    publish, inside = Shelf.publish, []

    def meanwhile(shelf: Shelf, codebook: object, record: object) -> None:
        if not inside:
            inside.append(True)
            second.optimize()  # and throws away all codebooks but its own
        publish(shelf, codebook, record)

    monkeypatch.setattr(Shelf, "publish", meanwhile)
    first.optimize()
    client.staged.clear()

    for query in QUERIES:
        assert ids(second.search(query, 5, effort=5)) == ids(first.search(query, 5, exact=True))
    assert client.staged == [True, False] * len(QUERIES)


def test_an_effort_that_somebody_else_recorded_is_not_followed(client: Watched):
    index = filled(client)
    client.update_collection("t", metadata={"colbert_rag_effort": {"effort": 9}})
    assert len(index.search("mars", 3, exact=False)) == 3
    strange = {"effort": 9, "recall": 1.0, "k": 1, "queries": 1}
    client.update_collection("t", metadata={"colbert_rag_effort": strange})
    assert len(index.search("mars", 3, exact=False)) == 3


@pytest.mark.parametrize("coded_before", [False, True])
def test_one_who_optimizes_and_is_stopped_harms_nobody(
    client: Watched, monkeypatch: pytest.MonkeyPatch, coded_before: bool
):
    index = filled(client) if coded_before else QdrantIndex(client, "t", WordEncoder())
    index.add(documents(sentences(480, seed=3), first=240))
    expected = [ids(hits) for hits in index.search_many(QUERIES, 5, exact=True)]

    def stopped(shelf: Shelf, codebook: object, record: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "publish", stopped)
        with pytest.raises(KeyboardInterrupt):
            index.optimize()

    assert [ids(hits) for hits in index.search_many(QUERIES, 5, effort=5)] == expected
    index.optimize()
    assert [ids(hits) for hits in index.search_many(QUERIES, 5, effort=5)] == expected
    assert len({tuple(bases) for bases, _ in points(client).values()}) == 1
    stored, _ = client.scroll("t" + BESIDE, limit=100)
    assert len({at.payload["base"] for at in stored}) == 1


def test_a_document_that_changes_while_it_is_coded_does_not_keep_codes_of_its_old_text(
    client: Watched, monkeypatch: pytest.MonkeyPatch
):
    index = QdrantIndex(client, "t", WordEncoder())
    index.add(documents(TEXTS))
    other = QdrantIndex(client, "t", WordEncoder())
    write, changed = coding.Coder._write, []

    def meanwhile(coder: coding.Coder, coded: Sequence[object]) -> None:
        if not changed:
            first, second = (record for record, _ in coded[:2])
            changed.append(str(first.id))
            names = {at.id: at.payload["id"] for at in client.scroll("t", limit=10_000)[0]}
            other.update([Document(names[first.id], TEXTS[-1])])
            other.delete([names[second.id]])
        write(coder, coded)

    monkeypatch.setattr(coding.Coder, "_write", meanwhile)

    index.optimize()

    held = points(client)
    assert len(held) == len(TEXTS) - 1
    [after] = {tuple(codes) for _, codes in _with_text(client, TEXTS[-1], held)}
    assert after


def _with_text(
    client: QdrantClient, text: str, held: dict[str, tuple[list[int], list[int]]]
) -> list[tuple[list[int], list[int]]]:
    found, _ = client.scroll("t", limit=10_000)
    coded = [held[at.payload["id"]] for at in found if at.payload["text"] == text]
    return [(bases, codes) for bases, codes in coded if bases]


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_without_its_codebook_a_collection_is_searched_exactly_until_it_is_optimized(
    client: Watched, harm: str
):
    index = filled(client)
    expected = ids(index.search("mars", exact=True))
    if harm == "lost":
        client.delete_collection("t" + BESIDE)
    else:
        [part], _ = client.scroll("t" + BESIDE)
        data = part.payload["data"]
        swapped = {"data": data[:1000] + ("A" if data[1000] != "A" else "B") + data[1001:]}
        client.set_payload("t" + BESIDE, swapped, [part.id])
    client.staged.clear()
    reader = QdrantIndex(client, "t", WordEncoder())

    assert ids(reader.search("mars")) == expected
    assert client.staged == [False]

    reader.optimize()

    assert ids(reader.search("mars")) == expected
    assert client.staged == [False, True]


def test_a_collection_of_an_earlier_version_is_searched_exactly_and_can_be_copied(
    client: Watched,
):
    old = QdrantIndex(client, "old", WordEncoder(), prefetch=50)  # it has no place for codes
    old.add(documents(TEXTS))
    reader = QdrantIndex(client, "old", WordEncoder())

    assert ids(reader.search("mars")) == ids(reader.search("mars", exact=True))
    with pytest.raises(ValueError, match=r"no place for codes.*copy_index"):
        reader.optimize()
    with pytest.raises(ValueError, match="no codes"):
        reader.recall()

    new = QdrantIndex(client, "new", like=old.info)
    copy_index(old, new)
    new.optimize()

    assert {len(bases) for bases, _ in points(client, "new").values()} == {1}


def test_recall_is_measured_and_its_effort_kept_for_all_clients(client: Watched):
    index = filled(client)

    found = index.recall(QUERIES, 5, wanted=0.0)

    assert [way.effort for way in found.efforts] == [1, 2, 3, 4, 5]
    assert found.efforts[-1].recall == 1.0  # more candidates than documents
    assert found.chosen == 1
    assert Shelf(client, "t").current().effort == 1
    assert index.recall(k=5, wanted=1.0, sample=4).queries == 4
    exact = [set(ids(hits)) for hits in index.search_many(QUERIES, 5, exact=True)]
    first = [set(ids(hits)) for hits in index.search_many(QUERIES, 5, effort=1)]
    parts = [len(a & b) / 5 for a, b in zip(exact, first, strict=True)]
    assert found.efforts[0].recall == pytest.approx(sum(parts) / len(parts))


@pytest.mark.parametrize(
    ("recorded", "effort"),
    [
        *((value, 3) for value in ("nonsense", {"effort": [1]}, {"effort": 77}, {"unknown": 1})),
        ({"effort": 2, "recall": 1, "k": 10, "queries": 5}, 2),  # 1.0, as a server may give it back
    ],
)
def test_a_choice_that_is_unreadable_is_none(client: Watched, recorded: object, effort: int):
    filled(client)
    client.update_collection("t", metadata={"colbert_rag_effort": recorded})

    assert Shelf(client, "t").current().effort == effort


def test_a_query_gains_by_what_its_centroids_are_nearer_than_the_next():
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    rows = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=1)
    bounds = torch.tensor([0, 40])
    book = Codebook(1000, Centroids(values, values[:1], bounds))

    found = book.query(rows, 4)

    expected: dict[int, float] = defaultdict(float)
    for row in rows:
        ranked = sorted(range(40), key=lambda at: -float(row @ values[at]))
        for code in ranked[:4]:
            expected[1000 + code] += float(row @ values[code] - row @ values[ranked[4]])
    assert dict(zip(found.indices, found.values, strict=True)) == {
        code: pytest.approx(gain, abs=1e-5) for code, gain in expected.items()
    }


def test_qdrants_engine_finds_by_codes_what_it_finds_exactly(tmp_path: Path, client: Watched):
    library = LocalIndex(":memory:", WordEncoder())
    library.add(documents(TEXTS))
    hosted = QdrantIndex(client, "t", like=library.info)
    copy_index(library, hosted)
    hosted.optimize()
    book = Shelf(client, "t").current().codebook
    shard = _shard(tmp_path / "shard", library, points(client))
    queries = WordEncoder().encode_queries(QUERIES).to(dtype=torch.float16)

    for rows, hits in zip(queries, hosted.search_embeddings(queries, 10, effort=1), strict=True):
        codes = book.query(rows.float(), EFFORTS[1].probes)
        stage = edge.Prefetch(
            limit=EFFORTS[1].candidates,
            query=edge.Query.Nearest(edge.SparseVector(codes.indices, codes.values), using="codes"),
        )
        answer = shard.query(
            edge.QueryRequest(
                limit=10,
                query=edge.Query.Nearest(rows.float().tolist(), using="colbert"),
                prefetches=[stage],
            )
        )
        assert [f"d{at.id}" for at in answer] == ids(hits)
        assert [at.score for at in answer] == pytest.approx([hit.score for hit in hits], abs=1e-5)


def _shard(
    folder: Path, index: LocalIndex, held: dict[str, tuple[list[int], list[int]]]
) -> edge.EdgeShard:
    folder.mkdir()
    tokens = edge.EdgeVectorParams(
        size=index.info.dim,
        distance=edge.Distance.Dot,
        multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        datatype=edge.VectorStorageDatatype.Float16,
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
    )
    config = edge.EdgeConfig(
        vectors={"colbert": tokens}, sparse_vectors={"codes": edge.EdgeSparseVectorParams()}
    )
    shard = edge.EdgeShard.create(str(folder), config)
    for batch, vectors in index.encoded():
        made = []
        for document, rows in zip(batch, vectors, strict=True):
            codes = held[document.id][1]
            sparse = edge.SparseVector(codes, [1.0] * len(codes))
            made.append(
                edge.Point(int(document.id[1:]), {"colbert": rows.tolist(), "codes": sparse}, {})
            )
        shard.update(edge.UpdateOperation.upsert_points(made))
    return shard


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_codes_work_over_the_wire(server: Server):
    client = QdrantClient(url=server.url, api_key=API_KEY, check_compatibility=False)
    index = filled(client)
    index.add([Document("new", "an entirely new text")])

    hits = index.search("an entirely new text", 5, {"odd": {"$ne": 1}})

    assert hits[0].id == "new"
    assert ids(index.search("mars")) == ids(index.search("mars", exact=True))
    assert "with_vector" not in server.sent("POST", "points/query/batch")[-1].body["searches"][0]
    client.close()
