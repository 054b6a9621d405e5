"""Real checkpoints give the numbers that other projects publish for them.

Needs a model hub; run with `pytest -m network tests/test_published_scores.py`.

* `SCORES`: huggingface/sentence-transformers, tests/multi_vector_encoder/test_pretrained.py
  @cad2119, obtained there from PyLate 1.6.0, except LFM2, whose number is sentence-transformers'
  own. Tolerance there and here: rtol = atol = 1e-3. Both run in the checkpoint's dtype.
* `VECTORS`: qdrant/fastembed, tests/test_late_interaction_embeddings.py @c48247f: the first five
  components of each row for "Hello World", rounded, float32 ONNX, atol 2e-3. For jina-colbert-v2
  they also settle the rotary base.
* LateOn's second example: sentence-transformers, docs/multi_vector_encoder/pretrained_models.md.
"""

from __future__ import annotations

import pytest
import torch

from colbert_rag import ColBERT
from colbert_rag.errors import UnsupportedBackboneError

pytestmark = pytest.mark.network

QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]

SCORES = {
    "colbert-ir/colbertv2.0": [12.79703, 27.19449, 23.8495, 24.56564],
    "lightonai/colbertv2.0": [12.79703, 27.19449, 23.8495, 24.56564],
    "answerdotai/answerai-colbert-small-v1": [30.56916, 31.48954, 31.30291, 31.30716],
    "lightonai/GTE-ModernColBERT-v1": [11.25772, 11.51133, 11.34575, 11.4518],
    "lightonai/Reason-ModernColBERT": [9.05118, 10.18419, 9.12381, 9.39101],
    "lightonai/LateOn": [10.79417, 11.11042, 10.97427, 11.08107],
    "lightonai/mLateOn": [11.3486, 11.5170, 11.4391, 11.4867],
    "mixedbread-ai/mxbai-edge-colbert-v0-17m": [11.56932, 11.75844, 11.70989, 11.72288],
}
# Published in bfloat16, whose rounding moves the third digit.
HALF_SCORES = {"LiquidAI/LFM2-ColBERT-350M": [30.42596, 30.66987, 30.55955, 30.61758]}

VECTORS = {
    "colbert-ir/colbertv2.0": {
        "document": [
            [0.0759, 0.0841, -0.0299, 0.0374, 0.0254],
            [0.0005, -0.0163, -0.0127, 0.2165, 0.1517],
            [-0.0257, -0.0575, 0.0135, 0.2202, 0.1896],
            [0.0846, 0.0122, 0.0032, -0.0109, -0.1041],
            [0.0477, 0.1078, -0.0314, 0.016, 0.0156],
        ],
        "query": [
            [0.0824, 0.0872, -0.0324, 0.0418, 0.024],
            [-0.0007, -0.0154, -0.0113, 0.2277, 0.1528],
            [-0.0251, -0.0565, 0.0136, 0.2236, 0.1838],
            [0.0848, 0.0056, 0.0041, -0.0036, -0.1032],
            [0.0574, 0.1072, -0.0332, 0.0233, 0.0209],
        ],
        "last query row": [0.1043, 0.0231, -0.0144, -0.0246, -0.067],
    },
    "answerdotai/answerai-colbert-small-v1": {
        "document": [
            [-0.07281, 0.04632, -0.04711, 0.00762, -0.07374],
            [-0.04464, 0.04426, -0.074, 0.01801, -0.05233],
            [0.09936, -0.05123, -0.04925, -0.05276, -0.08944],
            [0.01644, 0.0203, -0.03789, 0.03165, -0.06501],
            [-0.07281, 0.04633, -0.04711, 0.00762, -0.07374],
        ],
        "query": [
            [-0.07284, 0.04657, -0.04746, 0.00786, -0.07342],
            [-0.0473, 0.04615, -0.07551, 0.01591, -0.0517],
            [0.09658, -0.0506, -0.04593, -0.05225, -0.09086],
            [0.01815, 0.0165, -0.03366, 0.03214, -0.07019],
            [-0.07284, 0.04657, -0.04746, 0.00787, -0.07342],
        ],
        "last query row": [-0.03473, 0.04792, -0.07033, 0.02196, -0.05314],
    },
    "jinaai/jina-colbert-v2": {
        "document": [
            [0.0742, 0.0591, -0.2403, -0.1774, 0.02],
            [0.1318, 0.0882, -0.1138, -0.2066, 0.146],
            [-0.0183, -0.1354, -0.0139, -0.1079, -0.051],
            [0.0003, -0.1184, -0.07, -0.0479, -0.0649],
            [0.0766, 0.0452, -0.2343, -0.183, 0.0058],
        ],
        "query": [
            [0.0477, 0.0255, -0.2224, -0.1085, -0.03],
            [0.0206, -0.0845, -0.0075, -0.1712, 0.0156],
            [-0.0056, -0.0957, -0.0147, -0.1277, -0.0225],
            [0.0486, -0.0499, -0.1609, 0.0194, 0.0274],
            [0.0481, 0.0253, -0.2278, -0.1126, -0.0294],
        ],
        "last query row": [0.0204, -0.0856, -0.0386, -0.1232, -0.0332],
    },
}


@pytest.mark.parametrize("name", SCORES)
def test_a_published_checkpoint_gives_the_scores_of_pylate(name: str) -> None:
    model = ColBERT.from_pretrained(name, device="cpu", dtype="float32")

    assert model.score(QUERY, DOCUMENTS) == pytest.approx(SCORES[name], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", HALF_SCORES)
def test_a_bfloat16_checkpoint_gives_the_scores_of_sentence_transformers(name: str) -> None:
    model = ColBERT.from_pretrained(name, device="cpu", dtype="bfloat16")

    assert model.score(QUERY, DOCUMENTS) == pytest.approx(HALF_SCORES[name], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", VECTORS)
def test_a_published_checkpoint_gives_the_vectors_of_fastembed(name: str) -> None:
    expected = {key: torch.tensor(rows) for key, rows in VECTORS[name].items()}
    model = ColBERT.from_pretrained(name, device="cpu", dtype="float32")

    (document,) = model.encode_documents(["Hello World"])
    (query,) = model.encode_queries(["Hello World"])

    assert len(document) == 5
    assert len(query) == 32
    torch.testing.assert_close(document[:, :5], expected["document"], rtol=0, atol=2e-3)
    torch.testing.assert_close(query[:5, :5], expected["query"], rtol=0, atol=2e-3)
    torch.testing.assert_close(query[31, :5], expected["last query row"], rtol=0, atol=2e-3)


def test_lateon_gives_the_scores_and_shapes_of_its_documentation() -> None:
    model = ColBERT.from_pretrained("lightonai/LateOn", device="cpu", dtype="float32")
    texts = ["Paris is the capital of France.", "Berlin is the capital of Germany."]

    query = model.encode_queries(["What is the capital of France?"])
    document = model.encode_documents(texts[:1])
    scores = model.score("What is the capital of France?", texts)

    assert tuple(query.values.shape) == (10, 128)
    assert tuple(document.values.shape) == (9, 128)
    assert scores == pytest.approx([9.1129, 8.8769], rel=1e-3, abs=1e-3)


def test_a_checkpoint_whose_backbone_is_remote_code_is_refused() -> None:
    """Published scores: 31.56128, 31.80504, 31.67393, 31.74072; its Qwen3 looks both ways."""
    with pytest.raises(UnsupportedBackboneError, match="Qwen3"):
        ColBERT.from_pretrained("perplexity-ai/pplx-embed-v1-late-0.6b", device="cpu")
