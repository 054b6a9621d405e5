"""Token pooling, held to sentence-transformers 6.2's `HierarchicalTokenPooling`."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.index.pooling import pool_tokens


def unit_rows(rows: int, dim: int, *, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1)


def clustered_rows(rows: int, dim: int, *, seed: int) -> Tensor:
    """Vectors as models give them: several near copies of each of a few."""
    generator = torch.Generator().manual_seed(seed)
    centres = unit_rows(max(rows // 4, 1), dim, seed=seed + 1000)
    chosen = torch.randint(len(centres), (rows,), generator=generator)
    noise = 0.4 * unit_rows(rows, dim, seed=seed + 2000)
    return torch.nn.functional.normalize(centres[chosen] + noise, dim=-1)


def in_any_order(rows: Tensor) -> Tensor:
    """Rows sorted by their first value: the two libraries number groups differently."""
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("make", [unit_rows, clustered_rows])
@pytest.mark.parametrize("factor", [1, 1.5, 2, 3, 7, 1000])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 17, 64, 180])
def test_pooling_gives_the_vectors_of_sentence_transformers(make, factor, rows):
    document = make(rows, 32, seed=rows)

    pooled = pool_tokens(TokenEmbeddings.from_list([document]), factor)

    expected = HierarchicalTokenPooling(pool_factor=factor).pool([document])[0]
    torch.testing.assert_close(in_any_order(pooled[0]), in_any_order(expected), atol=1e-5, rtol=0)


def test_repeated_vectors_fall_together_as_in_sentence_transformers():
    document = unit_rows(5, 16, seed=0)[[0, 1, 1, 1, 2, 2, 2, 3, 4, 4]]

    pooled = pool_tokens(TokenEmbeddings.from_list([document]), 1.5)

    expected = HierarchicalTokenPooling(pool_factor=1.5).pool([document])[0]
    torch.testing.assert_close(in_any_order(pooled[0]), in_any_order(expected), atol=1e-5, rtol=0)


def test_each_document_is_pooled_for_itself():
    documents = [clustered_rows(rows, 16, seed=rows) for rows in (9, 1, 30)]

    together = pool_tokens(TokenEmbeddings.from_list(documents), 2)

    alone = [pool_tokens(TokenEmbeddings.from_list([document]), 2)[0] for document in documents]
    assert torch.equal(together.values, torch.cat(alone))


def test_the_first_vector_stays_first_and_half_precision_is_pooled_in_float32():
    document = clustered_rows(40, 16, seed=3).bfloat16()

    pooled = pool_tokens(TokenEmbeddings.from_list([document]), 2)

    first = torch.nn.functional.normalize(document[0].float(), dim=-1)
    torch.testing.assert_close(pooled[0][0], first)
    assert pooled.dtype == torch.float32
