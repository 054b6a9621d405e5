"""MaxSim: the scores are those of the definition, whatever the shapes, types and block sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.maxsim import maxsim, maxsim_many, torch_kernel


def naive(query: Tensor, document: Tensor) -> float:
    """The definition, one dot product at a time (Khattab & Zaharia 2020, equation 3)."""
    similarities = [[float(torch.dot(q, d)) for d in document] for q in query]
    return sum(max(row) for row in similarities)


def vectors(rows: int, dim: int = 8, *, seed: int = 0) -> Tensor:
    """Unit vectors, of which no two seeds share one."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def ragged(lengths: Sequence[int], dim: int = 8, *, seed: int = 1) -> TokenEmbeddings:
    """Unit vectors cut into texts of these lengths."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return TokenEmbeddings(vectors(sum(lengths), dim, seed=seed), offsets)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of at most 4 document rows: every document that is longer is cut."""
    monkeypatch.setattr(torch_kernel, "_CELLS_PER_THREAD", 4 * torch_kernel._LEAST_WIDTH)
    monkeypatch.setattr(torch_kernel, "_MAX_THREADS", 1)


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([1], id="one document of one row"),
        pytest.param([5, 1, 9, 2], id="ragged"),
        pytest.param([3] * 40, id="equal lengths"),
        pytest.param([17, 33], id="long"),
    ],
)
@pytest.mark.parametrize("dim", [2, 48, 96, 128])
def test_scores_are_those_of_the_definition(lengths, dim):
    query, documents = vectors(7, dim), ragged(lengths, dim)

    scores = maxsim(query, documents)

    expected = [naive(query, document) for document in documents]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    query_lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    dim=st.integers(1, 20),
)
def test_block_borders_change_no_score(small_blocks, query_lengths, lengths, dim):
    queries, documents = ragged(query_lengths, dim, seed=2), ragged(lengths, dim)

    scores = maxsim_many(queries, documents)

    expected = torch.tensor([[naive(q, d) for d in documents] for q in queries])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_scores_agree_with_sentence_transformers():
    reference = pytest.importorskip("sentence_transformers.util")
    query, documents = vectors(32, 96), ragged([120, 3, 260, 41, 1, 77], 96)

    scores = maxsim(query, documents)

    expected = reference.maxsim([query], documents.to_list())[0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_padding_cannot_win_the_maximum():
    # All similarities are negative; padding with zeros would lift the short document to 0.0.
    query = torch.eye(2)
    short = torch.tensor([[-0.8, -0.6]])
    long = torch.tensor([[-0.6, -0.8], [-0.28, -0.96], [-0.6, -0.8]])

    scores = maxsim(query, TokenEmbeddings.from_list([short, long]))

    assert scores.tolist() == pytest.approx([-1.40, -1.08], abs=1e-6)


def test_a_document_longer_than_a_block_is_scored_whole():
    rows = torch_kernel._CELLS_PER_THREAD // torch_kernel._LEAST_WIDTH
    query, documents = vectors(32), ragged([5, 2 * rows + 3, 4])
    query[0] = documents[1][-1]  # the best match lies in the last piece

    scores = maxsim(query, documents)

    expected = torch.stack([(query @ document.T).amax(1).sum() for document in documents])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_many_queries_score_as_one_by_one():
    queries, documents = ragged([32, 5, 300, 1], seed=2), ragged([9, 1, 40])

    together = maxsim_many(queries, documents)

    alone = torch.stack([maxsim(query, documents) for query in queries])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_score_does_not_depend_on_the_other_documents():
    query, documents = vectors(32, 128), ragged([50, 3, 200, 1, 90], 128)

    together = maxsim(query, documents)

    alone = torch.cat([maxsim(query, documents[[i]]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_document_without_rows_scores_the_least_possible():
    query = vectors(4)

    scores = maxsim(query, ragged([0, 3, 0, 0, 2, 0]))

    assert scores[[0, 2, 3, 5]].tolist() == [-4.0] * 4
    assert (scores[[1, 4]] > -4).all()


def test_only_documents_without_rows():
    assert maxsim(vectors(3), ragged([0, 0])).tolist() == [-3.0, -3.0]


def test_no_documents_give_no_scores():
    assert maxsim(vectors(3), ragged([])).shape == (0,)
    assert maxsim_many(ragged([]), ragged([2, 3])).shape == (0, 2)


def test_a_query_without_rows_scores_zero():
    assert maxsim(vectors(0), ragged([2, 0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("width", [1, 32, 40])
def test_nan_stays_in_its_own_document(width):
    query, documents = vectors(width), ragged([4, 5, 6, 1])
    clean = maxsim(query, documents)
    documents[2][3, 0] = torch.nan

    scores = maxsim(query, documents)

    assert scores.isnan().tolist() == [False, False, True, False]
    assert torch.equal(scores[[0, 1, 3]], clean[[0, 1, 3]])


def test_nan_reaches_the_score_of_a_document_longer_than_a_block(small_blocks):
    documents = ragged([4, 11, 3])
    documents[1][9, 0] = torch.nan

    assert maxsim(vectors(5), documents).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_float32_and_as_exact_as_the_stored_vectors(dtype):
    query, documents = vectors(32, 128), ragged([90, 200, 1, 17], 128).to(dtype=dtype)

    scores = maxsim(query, documents)

    expected = torch.stack([(query.double() @ d.double().T).amax(1).sum() for d in documents])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[90, 200, 1, 0, 17], [3, 40_000, 5]])
def test_half_precision_stores_vectors_and_rounds_no_product(dtype, lengths):
    query, documents = vectors(32, 128), ragged(lengths, 128).to(dtype=dtype)

    scores = maxsim(query.to(dtype), documents)

    # One rounding of a similarity to bfloat16 would be up to 2^-9, and 32 of them 0.06.
    widened = maxsim(query.to(dtype).float(), documents.to(dtype=torch.float32))
    torch.testing.assert_close(scores, widened, atol=1e-5, rtol=0)


def test_the_query_may_have_another_type_than_the_documents():
    query, documents = vectors(4), ragged([3, 2])

    assert torch.equal(maxsim(query.double(), documents), maxsim(query, documents))


def test_rows_need_not_be_contiguous():
    values = vectors(9, 16)
    documents = TokenEmbeddings(values[:, ::2], torch.tensor([0, 4, 9]))

    scores = maxsim(values[:3, ::2], documents)

    packed = TokenEmbeddings(values[:, ::2].contiguous(), documents.offsets)
    torch.testing.assert_close(scores, maxsim(values[:3, ::2].contiguous(), packed))


def test_vectors_that_want_gradients_are_scored_without():
    documents = ragged([3, 2])
    values = documents.values.clone().requires_grad_()

    scores = maxsim(vectors(4), TokenEmbeddings(values, documents.offsets))

    assert not scores.requires_grad
    assert torch.equal(scores, maxsim(vectors(4), documents))


def test_vectors_made_in_inference_mode_are_scored_outside_of_it():
    with torch.inference_mode():
        query, documents = vectors(4), ragged([3, 2]).to(dtype=torch.float16)

    assert maxsim(query, documents).shape == (2,)


def test_segmented_maxima_agree_between_devices():
    similarities = vectors(20, 6)
    bounds = torch.tensor([0, 7, 8, 20])

    scattered = torch_kernel.maxima_by_scatter(similarities, bounds)

    assert torch.equal(scattered, torch_kernel.maxima_by_product(similarities, bounds))


class LargestAllocation(TorchDispatchMode):
    """Records the largest tensor, in bytes, that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.layout == torch.strided:
            shared = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
            if result.untyped_storage().data_ptr() not in shared:
                self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("lengths", [[50] * 2000, [100_000], [0] * 100_000])
def test_memory_does_not_grow_with_the_documents(lengths, dtype):
    # 100,000 maxima or similarities with 640 query rows would take 256 MB.
    documents, queries = ragged(lengths, 64).to(dtype=dtype), ragged([32] * 20, 64)

    with LargestAllocation() as recorded:
        maxsim_many(queries, documents)

    block = 4 * torch_kernel._CELLS_PER_THREAD * torch.get_num_threads()
    scores = 4 * len(queries) * len(documents)
    assert recorded.largest <= max(block, scores)


def test_different_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"8 dimensions and the document vectors 16.*same model"):
        maxsim(vectors(4, 8), ragged([3], 16))


def test_a_query_that_is_not_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"shape \(8,\), expected \(query_rows, dim\)"):
        maxsim(vectors(1)[0], ragged([3]))


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"document vectors are torch\.int64, expected a float"):
        maxsim(vectors(4), TokenEmbeddings(torch.ones(2, 8).long(), torch.tensor([0, 2])))


def test_scoring_warns_of_nothing_in_a_fresh_process():
    # torch announces beta features once per process, so only a new one can tell.
    code = (
        "import torch; from colbert_rag.embeddings import TokenEmbeddings as T;"
        "from colbert_rag.maxsim import maxsim;"
        "maxsim(torch.ones(1, 4), T(torch.ones(2, 4), torch.tensor([0, 1, 2])))"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")
