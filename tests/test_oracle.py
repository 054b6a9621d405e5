"""The references agree with each other, so a failing parity test accuses the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.answers import ask_oracle, unlike, unlike_scores
from tests.helpers.oracle import SentenceTransformersOracle, best_sum, naive_maxsim, plain_oracle
from tests.helpers.texts import DOCUMENTS, QUERIES
from tests.helpers.variants import VARIANTS


@pytest.mark.parametrize(
    "name",
    [
        "stanford-bert",
        "stanford-bert-attend",
        "stanford-distilbert",
        "pylate-bert-residual",
        "pylate-bert-gelu-bias",
        "pylate-modernbert",
        "pylate-modernbert-expansion",
        "pylate-lfm2",
        "pylate-eurobert",
        "pylate-xmod",
    ],
)
def test_plain_transformers_and_sentence_transformers_agree(
    name: str,
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
) -> None:
    plain = ask_oracle(plain_oracle(VARIANTS[name], checkpoint(name)), QUERIES, DOCUMENTS)

    other = ask_oracle(sentence_transformers(name), QUERIES, DOCUMENTS)

    assert plain.query_tokens == other.query_tokens
    assert plain.document_tokens == other.document_tokens
    assert unlike(plain.query_vectors, other.query_vectors) == {}
    assert unlike(plain.document_vectors, other.document_vectors) == {}
    assert unlike_scores(plain.scores, other.scores) == {}


def test_naive_maxsim_takes_the_best_document_row_of_each_query_row() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    document = torch.tensor([[0.5, -1.0], [0.25, -0.5], [0.0, -0.75]])

    assert naive_maxsim(query, document) == 0.5 - 0.5
    assert best_sum(query, document) == 0.5 - 0.5
