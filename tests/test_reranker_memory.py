"""An index as the memory of a reranker: what it holds is not encoded again."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from qdrant_client import QdrantClient

from colbert_rag import ColBERT, IndexMismatchError, LocalIndex, QdrantIndex, clear_cache
from colbert_rag.adapter import Reranking
from colbert_rag.index import Index, IndexInfo
from colbert_rag.langchain import ColBERTRerank as LangChainRerank
from colbert_rag.llama_index import ColBERTRerank as LlamaIndexRerank
from colbert_rag.text_encoder import TextEncoder
from tests.helpers.rerankers import LengthRanker, WordModel

STORED = ["mars is a red planet", "venus is hot", "saturn has rings"]
NEW = ["jupiter is large", "the moon is near"]
QUERY = "which planet is red"

# A unit vector in float16 is off by up to one part in 2000, and a query sums 32 similarities.
ROUNDED = 5e-3


@pytest.fixture
def model(colbert: Callable[..., ColBERT]) -> ColBERT:
    """A model that remembers nothing by itself."""
    return colbert("stanford-bert", document_cache=None)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every document that is encoded while the test runs, once asked for."""
    texts: list[str] = []
    encode = TextEncoder.documents

    def noting(self: TextEncoder, some: Any, **options: Any) -> Any:
        texts.extend(some)
        return encode(self, some, **options)

    monkeypatch.setattr(TextEncoder, "documents", noting)
    return texts


@pytest.fixture
def path(model: ColBERT, tmp_path: Path) -> Path:
    with LocalIndex(tmp_path / "stored.sqlite", model) as index:
        index.add(STORED)
    return tmp_path / "stored.sqlite"


@pytest.fixture(params=["path", "local", "qdrant"])
def stored(request: pytest.FixtureRequest, model: ColBERT, path: Path) -> Iterator[Index | Path]:
    if request.param == "path":
        yield path
    elif request.param == "local":
        with LocalIndex(path) as index:  # reading needs no model
            yield index
    else:
        client = QdrantClient(":memory:")
        qdrant = QdrantIndex(client, "stored", model)
        qdrant.add(STORED)
        yield qdrant
        client.close()


def rerank(reranker: Reranking, texts: list[str] | None = None) -> dict[str, float]:
    texts = [*NEW, *STORED] if texts is None else texts
    places = reranker._rerank(QUERY, texts, [None] * len(texts))
    return {texts[place.index]: place.score for place in places}


def test_what_the_index_holds_is_not_encoded(
    model: ColBERT, stored: Index | Path, encoded: list[str]
) -> None:
    reranker = Reranking(colbert=model, index=stored, top_n=None)
    encoded.clear()

    scores = rerank(reranker)

    assert encoded == NEW
    assert scores == pytest.approx(rerank(Reranking(colbert=model, top_n=None)), abs=ROUNDED)


def test_stored_documents_score_as_a_search_of_the_index_scores_them(
    model: ColBERT, path: Path
) -> None:
    reranker = Reranking(colbert=model, index=path, top_n=None, score="sum")
    with LocalIndex(path, model) as index:
        hits = index.search(QUERY)

    scores = rerank(reranker, STORED)

    assert list(scores) == [hit.text for hit in hits]
    assert list(scores.values()) == pytest.approx([hit.score for hit in hits], abs=1e-5)


def test_a_text_must_be_the_same_to_the_letter(
    model: ColBERT, path: Path, encoded: list[str]
) -> None:
    rerank(Reranking(colbert=model, index=path), ["Venus is hot", "venus is hot "])

    assert encoded == ["Venus is hot", "venus is hot "]


def test_nothing_is_added_to_the_index(model: ColBERT, path: Path) -> None:
    rerank(Reranking(colbert=model, index=path))

    with LocalIndex(path) as index:
        assert [document.text for document in index] == STORED


def test_a_document_that_joins_the_index_is_known_from_then_on(
    model: ColBERT, path: Path, encoded: list[str]
) -> None:
    reranker = Reranking(colbert=model, index=path)
    rerank(reranker)
    with LocalIndex(path, model) as index:
        index.add(NEW)
    encoded.clear()

    rerank(reranker)

    assert encoded == []


def test_both_frameworks_have_the_memory(model: ColBERT, path: Path, encoded: list[str]) -> None:
    options: dict[str, Any] = {"colbert": model, "index": path, "top_n": 1}
    documents = [Document(text) for text in STORED]
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in STORED]

    (document,) = LangChainRerank(**options).compress_documents(documents, QUERY)
    (node,) = LlamaIndexRerank(**options).postprocess_nodes(nodes, query_str=QUERY)

    assert encoded == []
    assert document.page_content == node.text
    assert document.metadata["relevance_score"] == node.score


def test_a_node_is_known_by_the_text_that_is_ranked(
    model: ColBERT, tmp_path: Path, encoded: list[str]
) -> None:
    node = TextNode(text="mars", metadata={"kind": "planet"})
    with LocalIndex(tmp_path / "nodes.sqlite", model) as index:
        index.add([node.get_content(MetadataMode.EMBED)])
    encoded.clear()

    reranker = LlamaIndexRerank(colbert=model, index=tmp_path / "nodes.sqlite")
    reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)

    assert encoded == []


# Explanations


def test_an_explanation_re_uses_the_stored_vectors(
    model: ColBERT, path: Path, encoded: list[str]
) -> None:
    reranker = Reranking(colbert=model, index=path, explain=True, score="sum")

    (place, *_) = reranker._rerank(QUERY, STORED, [None] * 3)

    assert encoded == []
    assert place.explanation is not None
    assert place.explanation["score"] == pytest.approx(place.score, abs=1e-5)


# Together with the document cache


def test_rounded_vectors_stay_out_of_the_cache_of_an_exact_model(
    tiny_checkpoint: Path, path: Path
) -> None:
    exact = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="float32")
    expected = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="float32")

    rerank(Reranking(colbert=exact, index=path))

    assert exact.score(QUERY, STORED) == expected.score(QUERY, STORED)


def test_the_cache_of_a_half_precision_model_is_filled_from_the_index(
    tiny_checkpoint: Path, path: Path, encoded: list[str]
) -> None:
    half = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="bfloat16")
    asked: list[str] = []

    with LocalIndex(path) as index:

        def known(texts: Any) -> Any:
            asked.extend(texts)
            return index.embeddings_for(texts)

        half.score(QUERY, STORED, known=known)
        half.score(QUERY, STORED, known=known)

    assert asked == STORED
    assert half.cache_info().texts == 3
    assert encoded == []


@pytest.mark.parametrize("vectors", ["int8", "int4"])
def test_vectors_of_fewer_bits_stay_out_of_the_cache(
    tiny_checkpoint: Path, tmp_path: Path, vectors: Any, encoded: list[str]
) -> None:
    half = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="bfloat16")
    with LocalIndex(tmp_path / "few.sqlite", half, vectors=vectors) as index:
        index.add(STORED)
        encoded.clear()

        scores = half.score(QUERY, STORED, known=index.embeddings_for)

        assert encoded == []
        assert half.cache_info().texts == 0
        found = {hit.text: hit.score for hit in index.search(QUERY, len(STORED))}
    # bfloat16 rounds the stored vectors once more.
    assert scores == pytest.approx([found[text] for text in STORED], abs=0.1)
    assert half.score(QUERY, STORED) != scores


@pytest.mark.parametrize(("datatype", "kept"), [("float16", 3), ("turbo8", 0), ("turbo4", 0)])
def test_what_qdrant_stores_in_fewer_bits_stays_out_of_the_cache(
    tiny_checkpoint: Path, datatype: Any, kept: int
) -> None:
    half = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="bfloat16")
    client = QdrantClient(":memory:")
    QdrantIndex(client, "few", half, datatype=datatype).add(STORED)
    # A server tells whoever opens the collection how it was made.
    index = QdrantIndex(client, "few", half)

    half.score(QUERY, STORED, known=index.embeddings_for)

    assert half.cache_info().texts == kept


def test_the_index_of_another_model_is_refused_and_nothing_of_it_is_cached(
    tiny_checkpoint: Path, path: Path, encoded: list[str]
) -> None:
    other = ColBERT.from_pretrained(
        tiny_checkpoint, device="cpu", dtype="bfloat16", document_length=20
    )

    with LocalIndex(path) as index:
        for ask in (other.rank, other.score):
            with pytest.raises(IndexMismatchError, match="Rank with the model that made"):
                ask(QUERY, STORED, known=index.embeddings_for)

    assert other.cache_info().texts == 0
    other.rank(QUERY, STORED)
    assert sorted(encoded) == sorted(STORED)


def test_a_text_in_the_cache_is_not_asked_of_the_index(tiny_checkpoint: Path) -> None:
    model = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="float32")
    model.cache_documents(STORED)

    def unused(texts: Any) -> Any:
        raise AssertionError(texts)

    assert model.score(QUERY, STORED, known=unused) == model.score(QUERY, STORED)


def test_the_cache_keeps_known_vectors_when_their_owner_changes_them(
    tiny_checkpoint: Path,
) -> None:
    model = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="float32")
    vectors = model.encode_documents(STORED).to_list()
    expected = model.score(QUERY, STORED)
    model.unload()  # and what it remembers

    model.score(QUERY, STORED, known=lambda texts: dict(zip(STORED, vectors, strict=True)))
    for rows in vectors:
        rows.zero_()

    assert model.cache_info().misses == 3
    assert model.score(QUERY, STORED) == expected
    assert model.cache_info().hits == 3


@pytest.mark.parametrize(
    ("vectors", "kind"), [(None, "NoneType"), (torch.zeros(3, 128, dtype=torch.int8), "torch.int8")]
)
def test_known_vectors_that_are_no_floats_are_refused(
    model: ColBERT, vectors: object, kind: str
) -> None:
    with pytest.raises(TypeError, match=f"known gave vectors of type {kind}"):
        model.rank(QUERY, ["mars"], known=lambda texts: {"mars": vectors})  # type: ignore[dict-item]


def test_vectors_of_another_width_are_refused(model: ColBERT) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 7\), expected \(rows, \d+\)"):
        model.rank(QUERY, ["mars"], known=lambda texts: {"mars": torch.zeros(3, 7)})


# Long documents


def test_the_windows_of_a_long_document_are_encoded_and_short_ones_are_known(
    checkpoint: Callable[[str], Path], tmp_path: Path, encoded: list[str]
) -> None:
    options: dict[str, Any] = {"document_length": 32, "device": "cpu", "dtype": "float32"}
    windowed = ColBERT.from_pretrained(
        checkpoint("stanford-bert"), long_documents="windows", document_cache=None, **options
    )
    long = "venus is hot and has clouds . " * 20
    with LocalIndex(tmp_path / "long.sqlite", windowed) as index:
        index.add([*STORED, long])
    encoded.clear()

    scores = rerank(
        Reranking(colbert=windowed, index=tmp_path / "long.sqlite", top_n=None), [*STORED, long]
    )

    assert set(scores) == {*STORED, long}
    assert len(encoded) > 1
    assert all(text in long for text in encoded)


# Which index, which model


def test_a_reranker_takes_its_model_from_the_index(path: Path, tiny_checkpoint: Path) -> None:
    reranker = LangChainRerank(index=path)

    assert reranker.model == str(tiny_checkpoint)


def test_a_recipe_is_taken_from_the_index_too(
    colbert: Callable[..., ColBERT], tmp_path: Path
) -> None:
    model = colbert("stanford-bert", document_length=48)
    LocalIndex(tmp_path / "short.sqlite", model).close()

    reranker = Reranking(index=tmp_path / "short.sqlite", device="cpu", dtype="float32")

    assert reranker.document_length == 48
    clear_cache()


@pytest.mark.parametrize("opened", [True, False], ids=["index", "path"])
def test_an_index_of_another_model_is_refused(
    colbert: Callable[..., ColBERT], path: Path, opened: bool
) -> None:
    other = colbert("stanford-electra")
    index = LocalIndex(path) if opened else path

    with pytest.raises(IndexMismatchError, match=r"was made by .*stanford-bert"):
        rerank(Reranking(colbert=other, index=index))


def test_an_index_of_merged_tokens_is_refused(model: ColBERT) -> None:
    with LocalIndex(":memory:", model, token_pooling=2) as index:
        index.add(STORED)

        with pytest.raises(ValueError, match=r"token_pooling=2\.0, so its scores"):
            rerank(Reranking(colbert=model, index=index))


def test_a_missing_file_is_an_error_and_is_not_made(model: ColBERT, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no index at .*missing\.sqlite"):
        rerank(Reranking(colbert=model, index=tmp_path / "missing.sqlite"))

    assert list(tmp_path.iterdir()) == []


def test_a_memory_needs_an_encoder_with_vectors(path: Path) -> None:
    with pytest.raises(TypeError, match="colbert is LengthRanker, which ranks only"):
        rerank(Reranking(colbert=LengthRanker(), index=path))


def test_a_model_that_is_no_colbert_has_a_memory_too(tmp_path: Path) -> None:
    model = WordModel()
    with LocalIndex(tmp_path / "words.sqlite", model) as index:
        index.add(STORED)
    model.encoded.clear()
    remembering = Reranking(colbert=model, index=tmp_path / "words.sqlite", top_n=None)

    scores = rerank(remembering)

    assert model.encoded == NEW
    assert scores == pytest.approx(rerank(Reranking(colbert=model, top_n=None)), abs=ROUNDED)


# Opening


def test_a_slow_file_does_not_hold_up_another_one(
    model: ColBERT, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalIndex(tmp_path / "slow.sqlite", model).close()
    opening, finish = threading.Event(), threading.Event()
    of = IndexInfo.of.__func__

    def slow(cls: type[IndexInfo], colbert: Any, **options: Any) -> IndexInfo:
        if threading.current_thread().name.startswith("slow"):
            opening.set()
            assert finish.wait(30)
        return of(cls, colbert, **options)

    monkeypatch.setattr(IndexInfo, "of", classmethod(slow))
    with ThreadPoolExecutor(1, thread_name_prefix="slow") as thread:
        waiting = thread.submit(rerank, Reranking(colbert=model, index=tmp_path / "slow.sqlite"))
        assert opening.wait(30)
        scores = rerank(Reranking(colbert=model, index=path))
        early = waiting.done()
        finish.set()

    assert len(scores) == 3
    assert not early
    assert len(waiting.result()) == 3


def test_threads_that_open_a_file_get_one_index(model: ColBERT, path: Path) -> None:
    rerankers = [Reranking(colbert=model, index=path) for _ in range(8)]
    together = Barrier(8)

    def opened(reranker: Reranking) -> Index:
        together.wait()
        return reranker._open_index(model)

    with ThreadPoolExecutor(8) as threads:
        assert len({id(index) for index in threads.map(opened, rerankers)}) == 1


def test_threads_that_make_a_file_get_one_index(model: ColBERT, tmp_path: Path) -> None:
    rerankers = [Reranking(colbert=model, index=tmp_path / "new.sqlite") for _ in range(8)]
    together = Barrier(8)

    def made(reranker: Reranking) -> Index:
        together.wait()
        return reranker._open_index(model, create=True)

    with ThreadPoolExecutor(8) as threads:
        assert len({id(index) for index in threads.map(made, rerankers)}) == 1


def test_a_file_is_opened_once_for_each_model(
    model: ColBERT, colbert: Callable[..., ColBERT], path: Path
) -> None:
    other = colbert("stanford-bert")
    reranker = Reranking(index=path)

    assert reranker._open_index(model) is not reranker._open_index(other)


# Copies


def test_a_component_that_opened_its_file_equals_one_that_did_not(
    model: ColBERT, path: Path
) -> None:
    first, second = Reranking(colbert=model, index=path), Reranking(colbert=model, index=path)
    rerank(first)

    assert first == second


def test_a_copy_shares_the_open_file(model: ColBERT, path: Path) -> None:
    first, second = Reranking(colbert=model, index=path), Reranking(colbert=model, index=path)
    rerank(first)

    assert first._open_index(model) is second._open_index(model)
    assert first.model_copy(deep=True)._open_index(model) is first._open_index(model)


@pytest.mark.parametrize("kind", [LangChainRerank, LlamaIndexRerank])
def test_pickle_and_json_keep_the_path(kind: Any, model: ColBERT, path: Path) -> None:
    reranker = kind(colbert=model, index=path)
    rerank(reranker)  # so that it holds an open file

    assert pickle.loads(pickle.dumps(reranker)).index == str(path)
    assert json.loads(reranker.model_dump_json())["index"] == str(path)
    assert "index" in kind.model_json_schema()["properties"]


@pytest.mark.parametrize("kind", [LangChainRerank, LlamaIndexRerank])
def test_an_open_index_is_stored_by_its_path_or_not_at_all(
    kind: Any, model: ColBERT, path: Path
) -> None:
    with LocalIndex(path) as file, LocalIndex(":memory:", model) as memory:
        in_file, in_memory = kind(index=file), kind(colbert=model, index=memory)

        assert json.loads(in_file.model_dump_json())["index"] == str(path)
        assert json.loads(in_memory.model_dump_json())["index"] is None
        assert pickle.loads(pickle.dumps(in_file)).index == str(path)
        assert pickle.loads(pickle.dumps(in_memory)).index is None
        assert (in_file.index, in_memory.index) == (file, memory)


def test_a_file_that_was_replaced_is_opened_anew(model: ColBERT, path: Path) -> None:
    reranker = Reranking(colbert=model, index=path)
    before = reranker._open_index(model)
    path.rename(path.with_name("old.sqlite"))
    with LocalIndex(path, model) as index:
        index.add(NEW)

    assert reranker._open_index(model) is not before
    assert reranker._open_index(model).count() == len(NEW)


def test_unload_lets_the_file_go(model: ColBERT, path: Path) -> None:
    reranker = Reranking(colbert=model, index=path)
    rerank(reranker)
    beside = [path.with_name(path.name + end) for end in ("-wal", "-shm")]
    assert any(file.exists() for file in beside)

    reranker.unload()

    assert not any(file.exists() for file in beside)
    assert len(rerank(reranker)) == 3


def test_many_threads_share_one_memory(model: ColBERT, path: Path, encoded: list[str]) -> None:
    rerankers = [Reranking(colbert=model, index=path, top_n=None) for _ in range(8)]
    expected = rerank(rerankers[0], STORED)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda at: rerank(rerankers[at % 8], STORED), range(32)))

    assert encoded == []
    assert found == [expected] * 32
