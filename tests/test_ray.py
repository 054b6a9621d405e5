"""Encoding with Ray Data: rows that an index takes, alone and in a real local Ray."""

from __future__ import annotations

import json
import pickle
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient

from colbert_rag import ColBERT, IndexMismatchError, LocalIndex, QdrantIndex, clear_cache
from colbert_rag.index import Changes, Document, Index
from colbert_rag.ray import EncodeDocuments, encoded_by, write_encoded

EXACT: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
QUERY = "which planet is red"
ROWS = [
    {"id": "m", "text": "mars is a red planet", "metadata": {"order": 4, "moons": ["P", "D"]}},
    {"id": "v", "text": "venus is hot", "metadata": {"order": 2}},
    {"id": "s", "text": "saturn has rings and many moons", "metadata": {}},
    {"id": "e", "text": "", "metadata": {"order": None}},
]


def batch(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What Ray hands to a stage: an array for each column."""
    columns = {name: np.empty(len(rows), dtype=object) for name in rows[0]}
    for name, column in columns.items():
        column[:] = [row[name] for row in rows]
    return columns


@pytest.fixture(scope="module")
def encode(tiny_checkpoint: Path) -> Iterator[EncodeDocuments]:
    yield EncodeDocuments(tiny_checkpoint, **EXACT)
    clear_cache()


@pytest.fixture(params=["local", "qdrant"])
def index(request: pytest.FixtureRequest, tiny_colbert: ColBERT) -> Iterator[Index]:
    if request.param == "local":
        yield LocalIndex(":memory:", tiny_colbert)
    else:
        client = QdrantClient(":memory:")
        yield QdrantIndex(client, "planets", tiny_colbert)
        client.close()


# Without Ray


def test_rows_say_what_was_encoded_and_by_whom(
    encode: EncodeDocuments, tiny_colbert: ColBERT
) -> None:
    found = encode(batch(ROWS))

    vectors = tiny_colbert.encode_documents([row["text"] for row in ROWS])
    assert list(found["id"]) == [row["id"] for row in ROWS]
    assert list(found["text"]) == [row["text"] for row in ROWS]
    assert [json.loads(text) for text in found["metadata"]] == [row["metadata"] for row in ROWS]
    assert found["rows"].tolist() == vectors.lengths.tolist()
    assert encoded_by(found).fingerprint == tiny_colbert.fingerprint
    stored = np.frombuffer(b"".join(found["embeddings"]), "<f2").reshape(-1, tiny_colbert.dim)
    torch.testing.assert_close(
        torch.from_numpy(stored.astype(np.float32)), vectors.values, atol=5e-4, rtol=0
    )


def test_an_index_takes_the_rows_without_encoding(
    encode: EncodeDocuments, index: Index, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    with LocalIndex(tmp_path / "direct.sqlite", tiny_colbert) as direct:
        direct.add(ROWS)
        expected = direct.search(QUERY)
    rows = encode(batch(ROWS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("colbert_rag.text_encoder.TextEncoder.documents", None)
        changes = write_encoded(index, [rows])

    assert changes == Changes(added=4)
    assert list(index) == [Document(**row) for row in ROWS]
    assert [hit.id for hit in index.search(QUERY)] == [hit.id for hit in expected]
    assert [hit.score for hit in index.search(QUERY)] == pytest.approx(
        [hit.score for hit in expected], abs=1e-2
    )


def test_an_index_for_the_rows_needs_no_model(encode: EncodeDocuments) -> None:
    rows = encode(batch(ROWS))

    index = LocalIndex(":memory:", like=encoded_by(rows))
    write_encoded(index, [rows])

    kept = [
        0 if name == "e" else count for name, count in zip(rows["id"], rows["rows"], strict=True)
    ]
    assert index.embeddings(rows["id"]).lengths.tolist() == kept  # "e" has no words


def test_writing_again_changes_nothing(encode: EncodeDocuments, index: Index) -> None:
    rows = encode(batch(ROWS))
    write_encoded(index, [rows])

    assert write_encoded(index, [rows]) == Changes(unchanged=4)


def test_a_row_needs_only_a_text(encode: EncodeDocuments, index: Index) -> None:
    write_encoded(index, [encode({"text": np.array(["mars", "venus"])})])
    index.add(["mars"])

    assert [document.text for document in index] == ["mars", "venus"]


def test_metadata_may_be_json_text(encode: EncodeDocuments) -> None:
    rows = batch([{"text": "mars", "metadata": '{"order": 4}'}])

    assert list(encode(rows)["metadata"]) == ['{"order":4}']


def test_of_equal_ids_in_a_batch_the_last_is_stored(encode: EncodeDocuments, index: Index) -> None:
    rows = encode(batch([{"id": "a", "text": "mars"}, {"id": "a", "text": "venus"}]))

    write_encoded(index, [rows])

    assert [document.text for document in index] == ["venus"]


def test_an_empty_batch_is_no_work(encode: EncodeDocuments, index: Index) -> None:
    empty = {name: column[:0] for name, column in batch(ROWS).items()}

    rows = encode(empty)

    assert [len(column) for column in rows.values()] == [0] * 6
    assert write_encoded(index, [rows]) == Changes()


def test_tokens_can_be_merged_for_an_index_that_wants_it(
    tiny_checkpoint: Path, tiny_colbert: ColBERT
) -> None:
    merging = EncodeDocuments(tiny_checkpoint, token_pooling=2, **EXACT)
    rows = merging(batch(ROWS))

    index = LocalIndex(":memory:", tiny_colbert, token_pooling=2)
    other = LocalIndex(":memory:", tiny_colbert, token_pooling=2)
    write_encoded(index, [rows])
    other.add(ROWS)

    assert index.embeddings([*"mvs"]).offsets.equal(other.embeddings([*"mvs"]).offsets)
    with pytest.raises(IndexMismatchError, match="token_pooling"):
        write_encoded(LocalIndex(":memory:", tiny_colbert), [rows])


def test_rows_of_another_model_are_refused(
    encode: EncodeDocuments, colbert: Callable[..., ColBERT]
) -> None:
    index = LocalIndex(":memory:", colbert("stanford-electra"))

    with pytest.raises(IndexMismatchError, match="the index was made by"):
        write_encoded(index, [encode(batch(ROWS))])

    assert index.count() == 0


@pytest.mark.parametrize(
    ("rows", "error", "advice"),
    [
        pytest.param([{"body": "mars"}], ValueError, "expected 'text' and perhaps 'id'", id="text"),
        pytest.param([{"text": "a", "page": 3}], ValueError, "put anything else under", id="extra"),
        pytest.param([{"text": 3}], TypeError, "a text of type int", id="a number for a text"),
        pytest.param([{"text": "a", "id": 3}], TypeError, "id 3 is an int", id="number for an id"),
    ],
)
def test_rows_that_are_no_documents_are_refused(
    encode: EncodeDocuments, rows: list[dict[str, Any]], error: type[Exception], advice: str
) -> None:
    with pytest.raises(error, match=advice):
        encode(batch(rows))


def test_rows_that_were_not_encoded_are_refused(index: Index) -> None:
    with pytest.raises(ValueError, match="the rows have no embeddings, rows, model"):
        write_encoded(index, [batch(ROWS)])


def test_rows_that_were_cut_are_refused(encode: EncodeDocuments, index: Index) -> None:
    rows = encode(batch(ROWS))
    rows["embeddings"][1] = rows["embeddings"][1][:-2]

    with pytest.raises(ValueError, match=r"row 'v' says .* vectors of width"):
        write_encoded(index, [rows])


def test_the_stage_pickles_small_and_finds_the_model_again(encode: EncodeDocuments) -> None:
    pickled = pickle.dumps(encode)

    assert len(pickled) < 10_000
    assert pickle.loads(pickled)._colbert is encode._colbert


# In a real local Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    # Otherwise Ray makes a token and leaves it in the home directory.
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[data]'")
    pytest.importorskip("ray.data")
    root = str(Path(__file__).parents[1])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}},
    )
    yield ray
    ray.shutdown()
    patch.undo()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # of its own settings
def test_a_pipeline_of_workers_fills_an_index(
    ray: Any, tiny_checkpoint: Path, tiny_colbert: ColBERT, tmp_path: Path
) -> None:
    corpus = [
        {"id": f"d{at}", "text": f"{ROWS[at % 3]['text']} {at}", "metadata": json.dumps({"at": at})}
        for at in range(60)
    ]
    encoded = ray.data.from_items(corpus, override_num_blocks=4).map_batches(
        EncodeDocuments,
        fn_constructor_args=[str(tiny_checkpoint)],
        fn_constructor_kwargs=EXACT,
        batch_size=16,
        compute=ray.data.ActorPoolStrategy(size=1),
    )

    with LocalIndex(tmp_path / "planets.sqlite", tiny_colbert) as index:
        changes = write_encoded(index, encoded.iter_batches(batch_size=20))
        found = index.search(QUERY, top_k=60)

    texts = [row["text"] for row in corpus]
    assert changes == Changes(added=60)
    assert {hit.id: hit.metadata for hit in found} == {f"d{at}": {"at": at} for at in range(60)}
    assert {hit.text: hit.score for hit in found} == pytest.approx(
        dict(zip(texts, tiny_colbert.score(QUERY, texts), strict=True)), abs=2e-2
    )
