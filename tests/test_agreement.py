"""One question has one answer: rank, score, explain and search agree, whatever the float type.

The vectors are random and are given, so that nothing but the scoring itself is compared. The
expected values are sums of dot products in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from colbert_rag import ColBERT, LocalIndex, TokenEmbeddings
from colbert_rag.index import Document

QUERY = "which planet is red"
TOLERANCE = 1e-3
"""What two ways to score the same vectors may differ by: float16 cannot hold the last bits of very
small numbers that bfloat16 and float32 can, and an index stores float16."""


def ragged(lengths: list[int], dim: int, dtype: torch.dtype) -> TokenEmbeddings:
    generator = torch.Generator().manual_seed(sum(lengths))
    values = normalize(torch.randn(sum(lengths), dim, generator=generator), dim=1)
    # As a model of this float type makes them, and as an index can store them.
    return TokenEmbeddings.from_lengths(values.to(dtype).half().to(dtype), lengths)


def definition(query: Tensor, document: Tensor) -> float:
    """Khattab & Zaharia 2020, equation 3, in float64."""
    return float((query.double() @ document.double().T).amax(1).sum())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([5, 1, 90, 17, 3, 200, 44], id="ragged"),
        pytest.param([64] * 30, id="near ties"),
        pytest.param([1], id="one row"),
    ],
)
def test_rank_score_explain_and_search_agree(
    checkpoint: Callable[[str], Path], dtype: str, lengths: list[int]
) -> None:
    colbert = ColBERT.from_pretrained(checkpoint("stanford-bert"), device="cpu", dtype=dtype)
    # As many words as an explanation expects rows: markers and special tokens count too.
    texts = [f"{number} {'mars ' * (length + 8)}" for number, length in enumerate(lengths)]
    rows = [len(rows) for rows in colbert.encode_documents(texts)]
    documents = ragged(rows, colbert.dim, colbert.dtype)
    known = dict(zip(texts, documents, strict=True))
    query = colbert.encode_queries([QUERY])[0]
    expected = [definition(query, document) for document in documents]

    scores = colbert.score(QUERY, texts, known=lambda asked: {text: known[text] for text in asked})
    ranking = colbert.rank(QUERY, texts, known=lambda asked: {text: known[text] for text in asked})
    with LocalIndex(":memory:", colbert) as index:
        index.add_encoded([Document(text, text) for text in texts], documents)
        hits = index.search(QUERY, len(texts))

    assert scores == pytest.approx(expected, abs=TOLERANCE)
    ranked = {place.text: place.score for place in ranking}
    assert ranked == pytest.approx(dict(zip(texts, expected, strict=True)), abs=TOLERANCE)
    explained = {
        place.text: ranking.explain(position).score for position, place in enumerate(ranking[:10])
    }
    assert explained == pytest.approx({text: ranked[text] for text in explained}, abs=TOLERANCE)
    found = {hit.id: hit.score for hit in hits}
    assert found == pytest.approx(ranked, abs=TOLERANCE)
    assert [hit.id for hit in hits] == [place.text for place in ranking]


def test_near_ties_of_bfloat16_vectors_are_not_rounded_away(tiny_checkpoint: Path) -> None:
    """Of two documents that differ by one step of one number, the better one is first."""
    colbert = ColBERT.from_pretrained(tiny_checkpoint, device="cpu", dtype="bfloat16")
    # The bits of a query's vectors are the machine's; on each some query is a case.
    text, near, further = next(
        (text, near, further)
        for text in [QUERY, *(f"{QUERY} {number}" for number in range(50))]
        for query in colbert.encode_queries([text])
        for near in [normalize(query.float().sum(0, keepdim=True), dim=1).bfloat16()]
        for further in one_step_away(near)
        if rounding_hides(query, near, further)
    )
    known = {"further": further, "near": near}

    ranking = colbert.rank(
        text, ["further", "near"], known=lambda texts: {text: known[text] for text in texts}
    )

    assert [place.text for place in ranking] == ["near", "further"]


def one_step_away(row: Tensor) -> Iterator[Tensor]:
    for column in range(row.shape[1]):
        moved = row.clone()
        moved[0, column] = torch.nextafter(row[0, column], torch.zeros_like(row[0, column]))
        yield moved


def rounding_hides(query: Tensor, near: Tensor, further: Tensor) -> bool:
    """Whether similarities in bfloat16 would put the worse document first, or tie."""
    rounded = [float((query @ rows.T).amax(1).float().sum()) for rows in (near, further)]
    return definition(query, near) > definition(query, further) + 1e-4 and rounded[0] <= rounded[1]
