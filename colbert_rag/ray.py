"""Encode a corpus on many machines with Ray Data, and store what they made.

    rows = ray.data.read_json("corpus/").map_batches(
        EncodeDocuments,
        fn_constructor_args=["answerdotai/answerai-colbert-small-v1"],
        batch_size=256,
        num_gpus=1,
        compute=ray.data.ActorPoolStrategy(size=8),
    )
    write_encoded(index, rows.iter_batches(batch_size=256))

Nothing here imports Ray: batches are dicts of arrays, which other tools have too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from colbert_rag.colbert import shared_colbert
from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index import Changes, Document, Index, IndexInfo
from colbert_rag.index.documents import as_document, metadata_json
from colbert_rag.index.pooling import pool_tokens
from colbert_rag.settings import ModelOptions

Batch: TypeAlias = Mapping[str, NDArray[Any]]

COLUMNS = ("id", "text", "metadata", "embeddings", "rows", "model")


class EncodeDocuments:
    """Adds token vectors to the rows of a data set: give the class itself to `map_batches`.

    Each worker makes one, which loads the model once. A row needs `text`, and may have `id` and
    `metadata`, a mapping or its JSON text. What comes out has these columns, and can be written to
    Parquet as well as into an index:

    * `id`, `text`: as given; without an id, one is made from the text.
    * `metadata`: JSON text. Ray would give all rows the keys of any.
    * `embeddings`: the vectors as bytes, `(rows, dim)` little-endian float16.
    * `rows`: how many vectors.
    * `model`: which model made them, as JSON text.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        token_pooling: float | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        """Load the model; in a pipeline, Ray does this in each worker.

        Args:
            checkpoint: As in `ColBERT.from_pretrained`.
            token_pooling: That of the index the rows are meant for.
            options: As in `ColBERT.from_pretrained`.
        """
        self._colbert = shared_colbert(checkpoint, **options)
        self._info = IndexInfo.of(self._colbert, token_pooling=token_pooling)

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Encode one batch.

        Raises:
            TypeError: a value has the wrong type.
            ValueError: there is no `text`, or a column that is none of the three.
        """
        rows = zip(*batch.values(), strict=True)
        documents = [_read(dict(zip(batch, values, strict=True))) for values in rows]
        vectors = self._colbert.encode_documents([document.text for document in documents])
        if self._info.token_pooling is not None:
            vectors = pool_tokens(vectors, self._info.token_pooling)
        halves = vectors.to("cpu", torch.float16)
        return {
            "id": _column([document.id for document in documents]),
            "text": _column([document.text for document in documents]),
            "metadata": _column([metadata_json(document.metadata) for document in documents]),
            "embeddings": _column([rows.numpy().astype("<f2").tobytes() for rows in halves]),
            "rows": halves.lengths.numpy(),
            "model": _column([json.dumps(self._info.to_json())] * len(documents)),
        }


def write_encoded(index: Index, batches: Iterable[Batch]) -> Changes:
    """Store rows of `EncodeDocuments` in an index, without encoding anything.

    Documents that the index holds already are skipped, so a run that was interrupted can be
    repeated. Of equal ids in one batch the last is stored.

    Args:
        index: Made with the model of the rows, or with `like=encoded_by(batch)`.
        batches: Such as `dataset.iter_batches()`.

    Raises:
        IndexMismatchError: the rows were made by another model, or pooled otherwise.
        ValueError: a column is missing, or the vectors are not what the row says.
    """
    changes = Changes()
    for batch in batches:
        if not len(batch["id"]):
            continue
        index.info.check(encoded_by(batch), "the index")
        last = {str(name): place for place, name in enumerate(batch["id"])}
        places = list(last.values())
        documents = [
            Document(
                str(batch["id"][place]),
                str(batch["text"][place]),
                json.loads(str(batch["metadata"][place])),
            )
            for place in places
        ]
        vectors = [_vectors(batch, place, index.info.dim) for place in places]
        changes += index.add_encoded(documents, TokenEmbeddings.from_list(vectors))
    return changes


def encoded_by(batch: Batch) -> IndexInfo:
    """Which model made the rows of a batch.

    Raises:
        IndexCorruptError: a row does not say.
        ValueError: rows of two models are mixed, or a column is missing.
    """
    missing = [name for name in COLUMNS if name not in batch]
    if missing:
        raise ValueError(f"the rows have no {', '.join(missing)}: EncodeDocuments makes them")
    models = {str(model) for model in batch["model"]}
    if len(models) != 1:
        raise ValueError(f"the rows were made by {len(models)} models, expected one")
    return IndexInfo.from_json(json.loads(models.pop()), "a row")


def _read(row: Mapping[str, Any]) -> Document:
    """A row as a document, with values of Python instead of numpy."""
    plain = {name: str(value) if isinstance(value, str) else value for name, value in row.items()}
    if isinstance(plain.get("metadata"), str):
        plain["metadata"] = json.loads(plain["metadata"])
    return as_document(plain)


def _column(values: Sequence[object]) -> NDArray[Any]:
    """One object for each row: numpy would cut bytes at a trailing zero."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _vectors(batch: Batch, place: int, dim: int) -> torch.Tensor:
    values = np.frombuffer(batch["embeddings"][place], dtype="<f2")
    rows = int(batch["rows"][place])
    if len(values) != rows * dim:
        raise ValueError(
            f"row {batch['id'][place]!r} says {rows} vectors of width {dim}, and holds "
            f"{len(values)} numbers"
        )
    return torch.from_numpy(values.astype(np.float16).reshape(rows, dim))
