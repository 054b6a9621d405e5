"""The fused kernel gives the scores of the torch path, which test_maxsim.py checks in turn.

With a CUDA device the compiled kernel is tested. Without one the same tests run in Triton's
interpreter, in a process of their own: it must be asked for before anything imports triton, as
transformers may have done here.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.maxsim import maxsim, torch_kernel

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
RUNS_HERE = CUDA or INTERPRETED

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
on_gpu = [pytest.mark.gpu] if CUDA else []
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA device"),
]
# Triton's interpreter multiplies bfloat16 as if it were integers.
DTYPES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
TILE = 16  # document rows in a tile here: small, for the interpreter takes elements one by one


def ragged(
    lengths: Sequence[int], dim: int, dtype: torch.dtype = torch.float16, *, seed: int = 0
) -> TokenEmbeddings:
    """Unit vectors cut into texts of these lengths, on the device under test."""
    generator = torch.Generator().manual_seed(seed)
    values = F.normalize(torch.randn(sum(lengths), dim, generator=generator), dim=1)
    return TokenEmbeddings(values.to(DEVICE, dtype), torch.tensor([0, *lengths]).cumsum(0))


def small_tiles(dim: int, *, pieces: int = 2, piece_rows: int = 16):
    """Tiles that small inputs fill more than once."""
    from colbert_rag.maxsim.triton_kernel import Tiling

    block_dim = min(128, max(16, 1 << (dim - 1).bit_length()))
    return Tiling(piece_rows, pieces, document_rows=TILE, block_dim=block_dim)


def fused(queries: TokenEmbeddings, documents: TokenEmbeddings, **tiles: int) -> torch.Tensor:
    """The scores of the kernel, with small tiles."""
    from colbert_rag.maxsim import triton_kernel

    tiling = small_tiles(documents.dim, **tiles)
    return triton_kernel.maxsim_many(queries, documents, tiling)


def exact(queries: TokenEmbeddings, documents: TokenEmbeddings) -> torch.Tensor:
    """The scores of the torch path in float32, from the same rounded vectors."""
    rounded = queries.to(dtype=documents.dtype).to("cpu", torch.float32)
    return torch_kernel.maxsim_many(rounded, documents.to("cpu", torch.float32))


def assert_same(scores: torch.Tensor, expected: torch.Tensor) -> None:
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.cpu(), expected, atol=1e-4, rtol=0)


class TestKernel:
    """Collected only where the kernel can run."""

    __test__ = RUNS_HERE
    pytestmark = on_gpu

    @pytest.mark.parametrize("dim", [16, 48, 64, 96, 128, 384])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_lengths_around_the_tile_at_any_dim(self, dim, dtype):
        queries = ragged([5, 16, 1], dim, dtype, seed=1)
        documents = ragged([1, TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 3], dim, dtype)

        assert_same(fused(queries, documents), exact(queries, documents))

    def test_padding_cannot_win_the_maximum(self):
        query = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=DEVICE)
        short = torch.tensor([[-0.8, -0.6]])
        long = torch.tensor([[-0.6, -0.8], [-0.28, -0.96], [-0.6, -0.8]])
        documents = TokenEmbeddings.from_list([short, long]).to(DEVICE, torch.float16)

        scores = fused(TokenEmbeddings(query, torch.tensor([0, 2])), documents)

        assert scores.tolist()[0] == pytest.approx([-1.40, -1.08], abs=1e-3)

    def test_negative_maxima_at_every_length(self):
        documents = ragged([1, TILE - 1, TILE, TILE + 1], 64)
        documents.values[:, 0] = documents.values[:, 0].abs() + 0.1
        query = torch.zeros(3, 64, device=DEVICE)
        query[:, 0] = -1.0
        queries = TokenEmbeddings(query, torch.tensor([0, 3]))

        scores = fused(queries, documents)

        assert bool((scores < 0).all())
        assert_same(scores, exact(queries, documents))

    def test_more_queries_than_a_tile_holds(self):
        queries = ragged([3, 16, 1, 7, 12, 16, 2], 32, seed=1)
        documents = ragged([9, 20, 1], 32)

        assert_same(fused(queries, documents, pieces=4), exact(queries, documents))

    def test_a_query_longer_than_a_piece_is_added_up(self, monkeypatch):
        from colbert_rag.maxsim import triton_kernel

        monkeypatch.setattr(triton_kernel, "_PIECE_ROWS", 16)
        queries = ragged([40, 0, 16, 17], 32, seed=1)
        documents = ragged([9, 0, 20], 32)

        assert_same(fused(queries, documents), exact(queries, documents))

    def test_documents_and_queries_without_rows(self):
        queries, documents = ragged([4, 0, 2], 16, seed=1), ragged([0, 3, 0], 16)

        scores = fused(queries, documents)

        assert scores.tolist()[0][::2] == [-4.0, -4.0]
        assert_same(scores, exact(queries, documents))

    @pytest.mark.parametrize(("queries", "documents"), [([], [2]), ([2], []), ([2], [0, 0])])
    def test_nothing_to_score(self, queries, documents):
        texts = ragged(queries, 16), ragged(documents, 16)

        assert_same(fused(*texts), exact(*texts))

    def test_nan_stays_in_its_own_document(self):
        queries, documents = ragged([4, 16], 16, seed=1), ragged([4, TILE + 5, 6], 16)
        documents[1][TILE, 0] = torch.nan

        scores = fused(queries, documents)

        assert scores.isnan().tolist() == [[False, True, False]] * 2

    def test_many_documents_share_a_program(self):
        queries, documents = ragged([4], 16, seed=1), ragged([1, 2, 3] * 8, 16)

        assert_same(fused(queries, documents, pieces=1), exact(queries, documents))

    def test_tiles_chosen_by_rule(self):
        from colbert_rag.maxsim import triton_kernel

        queries, documents = ragged([9], 48, seed=1), ragged([65, 1], 48)

        assert_same(triton_kernel.maxsim_many(queries, documents), exact(queries, documents))

    def test_offsets_beyond_two_to_the_31_elements(self):
        from colbert_rag.maxsim import triton_kernel

        # 4 GiB of address space, of which only the pages that are touched become memory.
        dim, far = 128, 2**31 // 128 + 7
        values = torch.empty(far + 20, dim, dtype=torch.float16, device=DEVICE)
        queries, documents = ragged([5], dim, seed=1), ragged([20], dim)
        values[far:] = documents.values
        scores = torch.empty(1, 1, device=DEVICE)

        triton_kernel.launch(
            queries.values,
            torch.tensor([0], device=DEVICE),
            torch.tensor([5], device=DEVICE),
            values,
            torch.tensor([far, far + 20], device=DEVICE),
            scores,
            small_tiles(dim, pieces=1),
        )

        assert_same(scores, exact(queries, documents))

    def test_a_machine_that_cannot_build_the_kernel_is_told_why(self, monkeypatch, caplog):
        from colbert_rag.maxsim import triton_kernel

        def no_compiler(*args: object) -> None:
            raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        device = torch.device(DEVICE)
        assert triton_kernel.works_on(device)
        monkeypatch.setattr(triton_kernel, "launch", no_compiler)

        assert not triton_kernel.works_on(device)
        assert "the Triton kernel failed: Failed to find C compiler" in caplog.text


@pytest.mark.parametrize(
    ("longest", "pieces", "dim", "expected"),
    [
        pytest.param(32, 1, 128, (32, 1, 128), id="one query"),
        pytest.param(32, 64, 128, (32, 4, 128), id="many queries"),
        pytest.param(5, 3, 96, (16, 4, 128), id="short queries"),
        pytest.param(128, 9, 128, (128, 1, 128), id="a piece fills the tile"),
        pytest.param(32, 64, 384, (32, 2, 128), id="wide vectors"),
        pytest.param(20, 1, 48, (32, 1, 64), id="narrow vectors"),
    ],
)
def test_tiling_depends_on_powers_of_two_only(longest, pieces, dim, expected):
    from colbert_rag.maxsim.triton_kernel import Tiling

    tiling = Tiling.of(longest, pieces, dim)

    assert (tiling.piece_rows, tiling.pieces, tiling.block_dim) == expected


class TestGpu:
    """At real sizes, where the compiled kernel is fast enough for them."""

    pytestmark = needs_gpu

    @pytest.fixture
    def documents(self) -> TokenEmbeddings:
        lengths = torch.distributions.LogNormal(5.0, 0.5).sample((2000,)).long().clamp(1, 512)
        return ragged(lengths.tolist(), 128, torch.bfloat16)

    @pytest.mark.parametrize("queries", [[32], [32] * 64, [5, 31, 17, 300, 1, 64]])
    def test_public_scores_are_the_exact_ones(self, documents, queries):
        queries = ragged(queries, 128, torch.bfloat16, seed=1)

        from colbert_rag.maxsim import maxsim_many

        assert_same(maxsim_many(queries, documents), exact(queries, documents))

    def test_no_similarities_are_stored(self, documents):
        query = ragged([32], 128, torch.bfloat16, seed=1).values
        maxsim(query, documents)  # builds the kernel
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

        maxsim(query, documents)

        similarities = 4 * 32 * len(documents.values)
        assert torch.cuda.max_memory_allocated() - before < similarities / 20

    def test_float32_takes_the_torch_path_and_is_exact(self, documents):
        query, documents = (
            ragged([32], 128, torch.float32, seed=1),
            documents.to(dtype=torch.float32),
        )

        assert_same(maxsim(query.values, documents)[None], exact(query, documents))

    def test_scores_agree_with_late_interaction_kernels(self, documents):
        reference = pytest.importorskip("late_interaction_kernels.varlen")
        queries = ragged([32] * 3, 128, torch.bfloat16, seed=1)
        bounds = [x.offsets.int().to(DEVICE) for x in (queries, documents)]

        expected = reference.maxsim_varlen(queries.values, documents.values, *bounds)

        assert_same(fused(queries, documents, piece_rows=32), expected.cpu())


@pytest.mark.slow
def test_the_kernel_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "no:cacheprovider", "-k", "TestKernel"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout


test_the_kernel_in_the_interpreter.__test__ = not RUNS_HERE
