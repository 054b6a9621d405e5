"""What every index promises: one suite over `LocalIndex` and `QdrantIndex`.

The truth is a naive MaxSim over the vectors that the index itself gives back.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from qdrant_client import QdrantClient

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.errors import (
    IndexMismatchError,
    InvalidFilterError,
    InvalidQueryError,
    ScoringError,
)
from colbert_rag.index import (
    Changes,
    Document,
    Index,
    IndexInfo,
    LocalIndex,
    QdrantIndex,
    copy_index,
)
from tests.helpers.filter_cases import FILTERS, METADATA
from tests.helpers.index_fakes import WordEncoder, naive_maxsim, sentences

# Vectors are stored as float16; what is left are rounding errors of float32 sums.
TOLERANCE = 1e-4

Open = Callable[..., Index]


ENGINES = ["local memory", "local file", "qdrant memory", "qdrant path", "qdrant server"]


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "qdrant server" and not os.environ.get("COLBERT_RAG_QDRANT_URL"):
        pytest.skip("no Qdrant server: set COLBERT_RAG_QDRANT_URL (and COLBERT_RAG_QDRANT_API_KEY)")
    return request.param


@contextmanager
def opener(kind: str, folder: Path) -> Iterator[Open]:
    """A function that opens an empty index of some kind; called again, the same index."""
    if kind == "local memory":
        yield partial(_in_memory, [])
        return
    if kind == "local file":
        yield partial(LocalIndex, folder / "index.sqlite")
        return
    collection = f"test_{uuid4().hex}"
    client = _client(kind, folder)
    yield partial(QdrantIndex, client, collection)
    client.delete_collection(collection)
    client.close()


def _client(kind: str, folder: Path) -> QdrantClient:
    if kind == "qdrant memory":
        return QdrantClient(":memory:")
    if kind == "qdrant path":
        return QdrantClient(path=str(folder / "qdrant"))
    return QdrantClient(
        url=os.environ["COLBERT_RAG_QDRANT_URL"],
        api_key=os.environ.get("COLBERT_RAG_QDRANT_API_KEY"),
    )


def _in_memory(opened: list[Index], colbert: WordEncoder | None = None, **options: Any) -> Index:
    if opened:
        pytest.skip("an index in memory ends with its object, so it cannot be opened again")
    opened.append(LocalIndex(":memory:", colbert, **options))
    return opened[0]


@pytest.fixture
def open_index(kind: str, tmp_path: Path) -> Iterator[Open]:
    with opener(kind, tmp_path) as open_one:
        yield open_one


@pytest.fixture
def model() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def index(open_index: Open, model: WordEncoder) -> Index:
    return open_index(model)


@pytest.fixture(scope="module")
def library(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Sixty documents, for tests that only read."""
    with opener(kind, tmp_path_factory.mktemp("library")) as open_one:
        index = open_one(WordEncoder())
        index.add(documents(60))
        yield index


@pytest.fixture(scope="module")
def catalogue(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """The documents that filters are tried on."""
    with opener(kind, tmp_path_factory.mktemp("catalogue")) as open_one:
        index = open_one(WordEncoder())
        index.add([Document(name, f"mars {name}", value) for name, value in METADATA.items()])
        yield index


def documents(count: int, **metadata: Any) -> list[Document]:
    return [Document(f"d{at}", text, metadata) for at, text in enumerate(sentences(count))]


def brute_force(index: Index, query: str, k: int) -> list[tuple[str, float]]:
    """Every document the index gives back, scored by the definition, best first."""
    rows = WordEncoder(index.info.dim).encode_queries([query])[0]
    scores = [
        (document.id, naive_maxsim(rows, vectors))
        for documents, embeddings in index.encoded()
        for document, vectors in zip(documents, embeddings, strict=True)
    ]
    return sorted(scores, key=lambda pair: -pair[1])[:k]


@pytest.mark.parametrize("query", ["red storm on mars", "ring dust", "x"])
def test_search_finds_what_a_naive_maxsim_over_all_documents_finds(library: Index, query: str):
    hits = library.search(query, top_k=15)

    expected = brute_force(library, query, 15)
    assert [hit.id for hit in hits] == [name for name, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx(
        [score for _, score in expected], abs=TOLERANCE
    )
    assert all(type(hit.score) is float for hit in hits)


def test_a_hit_carries_its_document(index: Index):
    document = Document("a", "mars is dusty", {"source": "é.txt", "page": 3})
    index.add([document])

    [hit] = index.search("mars")

    assert hit.document == document
    assert (hit.id, hit.text, hit.metadata) == (document.id, document.text, document.metadata)


def test_many_queries_find_what_each_finds_alone(library: Index):
    queries = [f"{text} orbit" for text in sentences(40, seed=5)]

    together = library.search_many(queries, top_k=4)

    alone = [library.search(query, top_k=4) for query in queries]
    assert [[hit.id for hit in hits] for hits in together] == [
        [hit.id for hit in hits] for hits in alone
    ]


def test_ties_keep_the_order_of_insertion_also_at_the_last_place(index: Index):
    index.add([Document(name, "the same text") for name in "qwertyuiopasdfgh"])

    assert [hit.id for hit in index.search("same", top_k=3)] == ["q", "w", "e"]
    assert "".join(hit.id for hit in index.search("same", top_k=20)) == "qwertyuiopasdfgh"


@pytest.mark.parametrize(("k", "found"), [(1, 1), (60, 60), (1000, 60)])
def test_search_returns_at_most_k(library: Index, k: int, found: int):
    assert len(library.search("mars", top_k=k)) == found


@pytest.mark.parametrize(("filter", "expected"), FILTERS.values(), ids=FILTERS)
def test_a_filter_lets_through_exactly_its_documents(
    catalogue: Index, filter: dict[str, Any], expected: set[str]
):
    assert {hit.id for hit in catalogue.search("mars", 100, filter)} == expected


def test_a_filtered_search_keeps_order_and_scores(index: Index):
    index.add(documents(21, kept=False))
    index.update(documents(21, kept=True)[::3])

    hits = index.search("storm on saturn", 5, {"kept": True})

    everything = index.search("storm on saturn", 21)
    expected = [hit for hit in everything if int(hit.id[1:]) % 3 == 0][:5]
    assert [hit.id for hit in hits] == [hit.id for hit in expected]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected])


def test_filters_follow_every_change(index: Index):
    def passing() -> set[str]:
        return {hit.id for hit in index.search("mars", 100, {"n": {"$gte": 1}})}

    index.add([Document("a", "mars", {"n": 1}), Document("b", "venus", {"n": 0})])
    assert passing() == {"a"}
    index.add([Document("c", "saturn", {"n": 2})])
    assert passing() == {"a", "c"}
    index.delete(["a"])
    assert passing() == {"c"}
    index.update([Document("b", "venus", {"n": 5}), Document("c", "moon", {"n": 0})])
    assert passing() == {"b"}


def test_an_empty_index_finds_nothing(index: Index):
    assert index.search("mars") == []
    assert index.search_many([]) == []
    assert index.search("mars", top_k=min(5, index.count())) == []
    assert index.search_embeddings(WordEncoder().encode_queries(["mars", "x"]), 0) == [[], []]
    with pytest.raises(ValueError, match="top_k is -1"):
        index.search("mars", top_k=-1)
    with pytest.raises(TypeError, match="top_k is False"):
        index.search("mars", top_k=False)
    assert index.count() == 0
    assert list(index) == []


@pytest.mark.parametrize("query", ["", " \n", None, 7])
def test_a_query_without_text_is_refused(library: Index, query: object):
    with pytest.raises(InvalidQueryError, match="query is"):
        library.search(query)


def test_wrong_arguments_of_a_search_are_refused(library: Index):
    for k in (0, -1):
        message = rf"top_k is {k}, expected at least 1; give index\.count\(\) to get all"
        with pytest.raises(ValueError, match=message):
            library.search("mars", top_k=k)
        with pytest.raises(ValueError, match=f"top_k is {k}, expected at least 1"):
            library.search_embeddings(WordEncoder().encode_queries(["mars", "x"]), k)
    with pytest.raises(TypeError, match=r"top_k is None, .* whole number; give index\.count\(\)"):
        library.search("mars", top_k=None)
    with pytest.raises(InvalidFilterError, match=r"\$gte"):
        library.search("mars", filter={"n": {"$over": 1}})
    with pytest.raises(TypeError, match=r"expected several: \['mars'\]"):
        library.search_many("mars")
    with pytest.raises(ValueError, match="7 wide, expected 16"):
        library.search_embeddings(TokenEmbeddings.from_list([torch.ones(2, 7)]))
    with pytest.raises(ScoringError, match="NaN"):
        library.search_embeddings(TokenEmbeddings.from_list([torch.full((2, 16), math.nan)]))


def test_documents_may_be_texts_mappings_or_documents(index: Index):
    changes = index.add(
        ["mars", {"text": "venus"}, {"id": "s", "text": "saturn", "metadata": {"n": 1}}]
    )

    assert changes == Changes(added=3)
    assert [document.text for document in index] == ["mars", "venus", "saturn"]
    assert index.get(["s"]) == [Document("s", "saturn", {"n": 1})]


def test_a_text_without_an_id_is_the_same_document_every_time(index: Index):
    index.add(["mars", "venus"])

    assert index.add(["venus", "mars", "earth"]) == Changes(added=1, unchanged=2)
    assert index.count() == 3


def test_an_identical_document_is_skipped_without_encoding(index: Index, model: WordEncoder):
    documents = [Document("a", "mars", {"n": [1, {"deep": True}]}), Document("b", "venus")]
    index.add(documents)

    changes = index.add(documents)

    assert changes == Changes(unchanged=2)
    assert model.encoded == ["mars", "venus"]


def test_a_text_known_under_another_id_is_not_encoded_again(index: Index, model: WordEncoder):
    index.add([Document("a", "mars")])
    index.add([Document("b", "mars"), Document("c", "venus"), Document("d", "venus")])

    assert model.encoded == ["mars", "venus"]
    assert torch.equal(index.embeddings(["a"]).values, index.embeddings(["b"]).values)
    assert index.count() == 4


def test_a_known_id_with_another_text_is_replaced(index: Index):
    index.add([Document("a", "mars"), Document("b", "venus")])

    changes = index.add([Document("a", "saturn")])

    assert changes == Changes(updated=1)
    assert [(document.id, document.text) for document in index] == [("b", "venus"), ("a", "saturn")]
    assert index.search("saturn", 1)[0].text == "saturn"


def test_new_metadata_needs_no_encoding_and_filters_see_it(index: Index, model: WordEncoder):
    index.add([Document("a", "mars", {"n": 1}), Document("b", "venus", {"n": 1})])
    assert len(index.search("mars", filter={"n": 1})) == 2

    changes = index.update([Document("a", "mars", {"n": True}), Document("b", "venus", {"n": 1})])

    assert changes == Changes(updated=1, unchanged=1)
    assert model.encoded == ["mars", "venus"]
    assert [hit.id for hit in index.search("mars", filter={"n": 1})] == ["b"]
    assert [document.id for document in index] == ["a", "b"]


def test_the_last_of_several_documents_with_one_id_wins(index: Index):
    changes = index.add([Document("a", "mars"), Document("a", "venus"), Document("a", "venus")])

    assert changes == Changes(added=1, updated=1, unchanged=1, removed=0)
    assert [document.text for document in index] == ["venus"]


def test_only_known_documents_can_be_updated(index: Index):
    index.add([Document("a", "mars")])

    with pytest.raises(KeyError, match="'b'"):
        index.update([Document("a", "venus"), Document("b", "saturn")])

    assert index.get(["a"])[0].text == "mars"


def test_deleted_documents_are_not_found(index: Index):
    index.add(documents(20))
    best = [hit.id for hit in index.search("mars", 5)]

    removed = index.delete([*best[:3], "unknown", best[0]])

    assert removed == 3
    assert [hit.id for hit in index.search("mars", 2)] == best[3:5]
    assert index.count() == 17
    assert index.delete(best[:3]) == 0


def test_everything_can_be_deleted_and_added_again(index: Index):
    index.add(documents(5))
    index.delete([document.id for document in index])
    assert index.search("mars") == []

    index.add(["mars"])
    assert [hit.text for hit in index.search("mars")] == ["mars"]


def test_documents_and_vectors_are_read_in_the_order_asked_for(library: Index):
    names = ["d7", "d3", "d7"]

    documents, vectors = library.get(names), library.embeddings(names)

    texts = sentences(60)
    expected = WordEncoder().encode_documents([texts[7], texts[3], texts[7]])
    assert [document.text for document in documents] == [texts[7], texts[3], texts[7]]
    assert vectors.dtype == torch.float16
    assert torch.equal(vectors.offsets, expected.offsets)
    assert torch.equal(vectors.values, expected.values.half())


def test_unknown_ids_are_named(library: Index):
    with pytest.raises(KeyError, match="'zz'"):
        library.get(["d1", "zz"])
    with pytest.raises(KeyError, match="'zz'"):
        library.embeddings(["zz"])
    with pytest.raises(TypeError, match="expected several"):
        library.delete("d1")
    with pytest.raises(TypeError, match="expected str"):
        library.get([1])


def test_vectors_are_found_by_text(library: Index):
    known = sentences(60)[4]

    found = library.embeddings_for([known, "never seen", known])

    assert list(found) == [known]
    assert torch.equal(found[known], library.embeddings(["d4"])[0])


def test_everything_comes_back_batch_by_batch_in_order(library: Index):
    batches = list(library.encoded(25))

    assert [len(documents) for documents, _ in batches] == [25, 25, 10]
    assert [document.id for documents, _ in batches for document in documents] == [
        f"d{at}" for at in range(60)
    ]


def test_an_empty_text_is_kept_and_not_found(index: Index):
    index.add([Document("nothing", ""), Document("something", "mars")])

    assert [hit.id for hit in index.search("mars")] == ["something"]
    assert [document.id for document in index] == ["nothing", "something"]
    assert index.add([Document("nothing", "")]).unchanged == 1


@pytest.mark.parametrize(
    ("document", "error", "help"),
    [
        pytest.param(Document(7, "x"), TypeError, "id 7 is an int", id="id is a number"),
        pytest.param({"id": 7, "text": "x"}, TypeError, "id 7 is an int", id="id in a mapping"),
        pytest.param({"id": "", "text": "x"}, ValueError, "leave 'id' out", id="empty id"),
        pytest.param(Document("a", None), TypeError, "text of type NoneType", id="no text"),
        pytest.param({"title": "x"}, ValueError, "keys 'title', expected 'text'", id="title alone"),
        pytest.param(
            {"text": "x", "year": 1}, ValueError, "under 'metadata'", id="key beside metadata"
        ),
        pytest.param(7, TypeError, "expected a Document", id="a number"),
        pytest.param(Document("a", "x", ["n"]), TypeError, "expected a mapping", id="a list"),
        pytest.param(
            Document("a", "x", {"when": object()}), TypeError, "'when' is an object", id="object"
        ),
        pytest.param(
            Document("a", "x", {"n": {"deep": [math.inf]}}), ValueError, "'n.deep'", id="infinity"
        ),
        pytest.param(Document("a", "x", {1: 2}), TypeError, "key 1", id="key is a number"),
        pytest.param(
            Document("a", "\ud800"),
            ValueError,
            "document 'a' holds a lone surrogate .* which is not valid Unicode",
            id="lone surrogate",
        ),
        pytest.param(
            Document("a", "x", {"n": reduce(lambda inner, _: [inner], range(5_000), 1)}),
            ValueError,
            "nested too deeply",
            id="deep",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused_at_the_border(
    index: Index, document: object, error: type[Exception], help: str
):
    with pytest.raises(error, match=help):
        index.add([document])

    assert index.count() == 0


@pytest.mark.parametrize(
    ("vectors", "help"),
    [
        pytest.param(torch.full((2, 16), math.nan), "'bad' hold NaN", id="NaN"),
        pytest.param(torch.full((2, 16), math.inf), "'bad' hold NaN, infinity", id="infinity"),
        pytest.param(torch.full((2, 16), 1e5), "float16 can", id="beyond float16"),
        pytest.param(torch.ones(2, 8), "8 wide, expected 16", id="wrong width"),
        pytest.param(torch.ones(0, 16), "'bad' has no token vectors", id="no rows"),
    ],
)
def test_vectors_that_cannot_be_searched_are_refused(
    index: Index, vectors: torch.Tensor, help: str
):
    documents = [Document("good", "x"), Document("bad", "y")]
    embeddings = TokenEmbeddings.from_list([torch.ones(1, vectors.shape[1]), vectors])

    with pytest.raises(ValueError, match=help):
        index.add_encoded(documents, embeddings)
    with pytest.raises(ValueError, match="1 texts for 2 documents"):
        index.add_encoded(documents, embeddings[:1])

    assert index.count() == 0


def test_encoded_documents_are_skipped_replaced_and_edited_like_others(index: Index):
    vectors = WordEncoder().encode_documents(["mars", "venus", "saturn"])
    documents = [Document("a", "mars"), Document("b", "venus"), Document("c", "saturn")]
    index.add_encoded(documents, vectors)

    changes = index.add_encoded(
        [documents[0], Document("b", "venus", {"n": 1}), Document("c", "moon"), Document("d", "x")],
        TokenEmbeddings.from_list([vectors[0], vectors[1], vectors[2][:1], vectors[0]]),
    )

    assert changes == Changes(added=1, updated=2, unchanged=1, removed=0)
    assert index.embeddings(["a", "b", "c"]).lengths.tolist() == [2, 2, 1]
    assert index.get(["b", "c"]) == [Document("b", "venus", {"n": 1}), Document("c", "moon")]
    with pytest.raises(ValueError, match="the same id"):
        index.add_encoded([documents[0], documents[0]], vectors[:2])


def test_a_model_that_loses_a_document_is_noticed(index: Index, model: WordEncoder):
    model.encode_documents = lambda texts: TokenEmbeddings.from_list([torch.ones(1, 16)])

    with pytest.raises(ValueError, match="1 of 2 documents"):
        index.add(["mars", "venus"])

    assert index.count() == 0


def test_a_single_document_in_place_of_several_is_refused(index: Index):
    with pytest.raises(TypeError, match="put it in a list"):
        index.add("mars")
    with pytest.raises(TypeError, match="put it in a list"):
        index.add({"text": "mars"})
    with pytest.raises(TypeError, match="put it in a list"):
        index.add(Document("a", "mars"))
    for write in (index.add, index.sync):
        with pytest.raises(TypeError, match="documents is NoneType, expected several: a list"):
            write(None)
    with pytest.raises(ValueError, match="batch_size is 0"):
        index.add(["mars"], batch_size=0)
    with pytest.raises(TypeError, match=r"batch_size is 2\.5, expected a whole number"):
        index.add(["mars"], batch_size=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_a_copy_in_impossible_batches_is_refused(
    library: Index, size: Any, error: type[Exception]
) -> None:
    with (
        LocalIndex(":memory:", like=library.info) as copy,
        pytest.raises(error, match=f"batch_size is {size}"),
    ):
        copy_index(library, copy, batch_size=size)


@pytest.mark.parametrize("k", [True, 2.5, math.nan, None, "3"])
def test_a_k_that_is_no_whole_number_is_refused(library: Index, k: Any) -> None:
    with pytest.raises(TypeError, match=f"k is {k!r}, expected a whole number"):
        library.search("mars", k)


def test_text_that_cannot_be_stored_is_not_held(index: Index) -> None:
    index.add(["mars"])

    assert list(index.embeddings_for(["\ud83d cut", "mars"])) == ["mars"]
    with pytest.raises(ValueError, match="lone surrogate"):
        index.get(["\ud800"])


def test_the_name_of_a_model_is_not_a_model(open_index: Open) -> None:
    with pytest.raises(TypeError, match=r"colbert is 'offline-minilm'.*from_pretrained"):
        open_index("offline-minilm")  # type: ignore[arg-type]


def test_documents_are_read_as_they_are_needed(index: Index):
    counts = []

    def stream() -> Iterator[str]:
        for text in sentences(10):
            counts.append(index.count())
            yield text

    index.add(stream(), batch_size=4)

    assert counts == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]


def test_an_interrupted_run_keeps_its_batches_and_goes_on_where_it_stopped(
    index: Index, model: WordEncoder
):
    def broken() -> Iterator[str]:
        yield from sentences(10)[:7]
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        index.add(broken(), batch_size=3)
    assert index.count() == 6

    assert index.add(sentences(10), batch_size=3) == Changes(added=4, unchanged=6)
    assert model.encoded == sentences(10)


def test_progress_is_drawn_on_request(index: Index, capsys: pytest.CaptureFixture):
    index.add(["mars"])
    assert capsys.readouterr().err == ""

    index.add(["venus", "saturn"], show_progress=True)
    assert "2/2" in capsys.readouterr().err


def test_the_callers_metadata_is_neither_changed_nor_shared(index: Index):
    metadata = {"tags": ["a"], "nested": {"n": 1}}
    index.add([Document("a", "mars", metadata)])

    metadata["tags"].append("b")
    index.get(["a"])[0].metadata["nested"]["n"] = 2

    assert index.get(["a"])[0].metadata == {"tags": ["a"], "nested": {"n": 1}}


def test_metadata_comes_back_as_it_was(index: Index):
    metadata = {"ü": "日本", "n": 1, "x": 1.5, "t": True, "none": None, "deep": [{"a": []}]}
    index.add([Document("a", "mars", metadata)])

    [document] = index.get(["a"])

    assert document.metadata == metadata
    assert type(document.metadata["t"]) is bool


def test_an_index_is_an_index(index: Index):
    assert isinstance(index, Index)
    assert copy.deepcopy(index) is index
    assert "tests/words, dim 16" in repr(index)


def test_an_index_gives_the_model_it_was_opened_with(open_index: Open, model: WordEncoder):
    with open_index(model) as index:
        assert index.colbert is model

    with open_index(None) as index:
        assert index.colbert is None


def test_what_was_added_is_there_after_reopening(open_index: Open, model: WordEncoder):
    with open_index(model) as first:
        first.add([Document("a", "mars", {"n": 1})])

    second = open_index(model)

    assert second.get(["a"]) == [Document("a", "mars", {"n": 1})]
    assert second.add([Document("a", "mars", {"n": 1})]) == Changes(unchanged=1)
    assert second.search("mars")[0].id == "a"


def test_an_index_remembers_its_model(open_index: Open):
    model = WordEncoder(checkpoint="tests/other", query_length=48, query_expansion=False)
    open_index(model).close()

    info = open_index().info

    recipe = {"query_length": 48, "query_expansion": False}
    assert info == IndexInfo(checkpoint="tests/other", fingerprint="a" * 64, dim=16, recipe=recipe)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(WordEncoder(checkpoint="tests/b", fingerprint="b" * 64), id="other weights"),
        pytest.param(WordEncoder(fingerprint="b" * 64, query_length=8), id="other recipe"),
        pytest.param(WordEncoder(dim=8), id="other width"),
    ],
)
def test_another_model_is_refused_and_both_are_named(open_index: Open, other: WordEncoder):
    with open_index(WordEncoder()) as index:
        index.add(["mars"])

    with pytest.raises(IndexMismatchError, match=r"by tests/words .*aaaa.* with tests/") as caught:
        open_index(other)

    assert f"width {other.dim}, fingerprint {other.fingerprint[:12]}" in str(caught.value)
    assert open_index(WordEncoder()).count() == 1


def test_another_name_for_the_same_model_is_welcome(open_index: Open):
    open_index(WordEncoder()).close()

    assert open_index(WordEncoder(checkpoint="/a/local/copy")).info.checkpoint == "tests/words"


def test_without_a_model_everything_works_but_encoding(open_index: Open, model: WordEncoder):
    with open_index(model) as index:
        index.add([Document("a", "mars"), Document("b", "venus")])

    bare = open_index()

    assert [hit.id for hit in bare.search_embeddings(model.encode_queries(["mars"]))[0]] == [
        "a",
        "b",
    ]
    assert bare.delete(["b"]) == 1
    with pytest.raises(ValueError, match="pass colbert"):
        bare.search("mars")
    with pytest.raises(ValueError, match="pass colbert"):
        bare.add(["saturn"])


def test_pooled_vectors_are_fewer_and_searched_like_any_others(
    open_index: Open, model: WordEncoder
):
    index = open_index(model, token_pooling=2)
    index.add(documents(30))

    plain = model.encode_documents(sentences(30))
    hits = index.search("red storm", top_k=5)

    expected = brute_force(index, "red storm", 5)
    stored = index.embeddings([f"d{at}" for at in range(30)])
    assert len(stored.values) < 0.7 * len(plain.values)
    assert [hit.id for hit in hits] == [name for name, _ in expected]
    assert index.info.token_pooling == 2


def test_pooling_is_recorded_followed_and_cannot_be_changed(open_index: Open, model: WordEncoder):
    open_index(model, token_pooling=2).close()

    with open_index(model) as index:
        assert index.info.token_pooling == 2
    with pytest.raises(IndexMismatchError, match=r"token_pooling=2.*token_pooling=3"):
        open_index(model, token_pooling=3)


def test_pooling_below_one_is_refused(open_index: Open, model: WordEncoder):
    with pytest.raises(ValueError, match="at least 1"):
        open_index(model, token_pooling=0.5)


def test_a_copy_is_the_same_index_in_either_direction(library: Index, model: WordEncoder):
    there = QdrantIndex(QdrantClient(":memory:"), "copy", like=library.info)
    back = LocalIndex(":memory:", model, like=library.info)

    assert copy_index(library, there, batch_size=17) == Changes(added=60)
    assert copy_index(there, back, batch_size=17) == Changes(added=60)
    assert copy_index(there, back) == Changes(unchanged=60)

    hits, expected = back.search("dust on the moon", 20), library.search("dust on the moon", 20)
    assert list(back) == list(library)
    assert [hit.id for hit in hits] == [hit.id for hit in expected]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert model.encoded == []


def test_a_copy_draws_its_progress_on_request(library: Index, capsys: pytest.CaptureFixture[str]):
    copy_index(library, LocalIndex(":memory:", like=library.info), show_progress=True)

    assert "60/60" in capsys.readouterr().err


def test_a_copy_between_different_models_is_refused(library: Index):
    other = LocalIndex(":memory:", WordEncoder(fingerprint="b" * 64))

    with pytest.raises(IndexMismatchError, match="the target of the copy"):
        copy_index(library, other)


# Removing by metadata, and following sources


def texts_of(index: Index) -> set[str]:
    return {document.text for document in index}


def test_documents_are_deleted_by_their_metadata(index: Index) -> None:
    index.add([Document(f"d{n}", f"mars {n}", {"n": n, "even": n % 2 == 0}) for n in range(10)])

    removed = index.delete(filter={"n": {"$lt": 6}, "even": True})

    assert removed == 3
    assert {document.id for document in index} == {f"d{n}" for n in (1, 3, 5, 6, 7, 8, 9)}
    assert index.delete(filter={"n": 99}) == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([], {}, ValueError, "either ids or a filter"),
        ([["a"]], {"filter": {"n": 1}}, ValueError, "either ids or a filter"),
        ([], {"filter": {}}, InvalidFilterError, "would delete every document"),
        ([{"n": 1}], {}, TypeError, "pass it as filter="),
        ([], {"filter": {"n": {"$near": 1}}}, InvalidFilterError, "expected one of"),
    ],
)
def test_a_deletion_that_is_not_clear_removes_nothing(
    index: Index, arguments: list[Any], options: Any, error: type[Exception], message: str
) -> None:
    index.add([Document("a", "mars", {"n": 1})])

    with pytest.raises(error, match=message):
        index.delete(*arguments, **options)

    assert index.count() == 1


def page(name: str, text: str, source: str) -> Document:
    return Document(name, text, {"source": source})


def test_a_sync_adds_updates_and_removes_within_its_sources(
    index: Index, model: WordEncoder
) -> None:
    index.sync([page("1", "mars", "a"), page("2", "venus", "a"), page("3", "moon", "b")])

    changes = index.sync([page("1", "mars", "a"), page("4", "saturn", "a")])

    assert changes == Changes(added=1, updated=0, unchanged=1, removed=1)
    assert texts_of(index) == {"mars", "saturn", "moon"}
    assert index.sync([page("1", "mars", "a"), page("4", "saturn", "a")]) == Changes(unchanged=2)


def test_a_source_that_holds_nothing_any_more_is_emptied_when_it_is_named(index: Index) -> None:
    index.sync([page("1", "mars", "a"), page("3", "moon", "b")])

    assert index.sync([]) == Changes()
    assert index.sync([], sources=["a"]) == Changes(removed=1)

    assert texts_of(index) == {"moon"}


def test_a_sync_that_fails_half_way_removes_nothing(index: Index) -> None:
    index.sync([page("1", "mars", "a"), page("2", "venus", "a")])

    def failing() -> Iterator[Document]:
        yield page("1", "mars", "a")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        index.sync(failing())

    assert texts_of(index) == {"mars", "venus"}


def test_a_document_without_a_source_stops_a_sync(index: Index) -> None:
    index.sync([page("1", "mars", "a"), page("2", "venus", "a")])

    with pytest.raises(ValueError, match="'x' has None as its 'source', expected text"):
        index.sync([page("1", "mars", "a"), Document("x", "moon")])
    with pytest.raises(ValueError, match="expected a key without a dot"):
        index.sync([], source_key="a.b")

    assert {"mars", "venus"} <= texts_of(index)


def test_how_much_is_held_is_told_without_reading_it(index: Index, model: WordEncoder) -> None:
    index.add(["mars is red", "venus"])

    stats = index.stats()

    rows = sum(len(rows) for rows in index.embeddings([document.id for document in index]))
    assert stats.documents == 2
    assert stats.tokens in (rows, None)
    index.verify()


def test_a_hit_knows_its_mean(index: Index, model: WordEncoder) -> None:
    index.add(["mars is red", "venus is hot"])

    hits = index.search("red mars storm")

    (query,) = model.encode_queries(["red mars storm"])
    assert [hit.mean for hit in hits] == pytest.approx([hit.score / len(query) for hit in hits])


def test_a_document_without_an_id_is_called_by_its_beginning(index: Index) -> None:
    with pytest.raises(TypeError, match="the document that begins 'mars is the red planet"):
        index.add([{"text": "mars is the red planet, " * 9, "metadata": {"seen": object()}}])


class Read(dict[str, Any]):
    """Metadata that counts how often it is gone through."""

    times = 0

    def items(self) -> Any:
        self.times += 1
        return super().items()


@pytest.mark.parametrize("write", ["add", "update", "sync"])
def test_a_document_is_checked_once(index: Index, write: str) -> None:
    metadata = Read(source="a")
    index.add([Document("a", "mars", {"source": "a"})])

    getattr(index, write)([Document("a", "mars", metadata)])

    assert metadata.times == 1
