"""JinaBERT v1, LFM2.5 and pplx's Qwen3 give the answers of their published architectures.

Their own code is remote, so the references are those architectures in plain torch, on the published
tensors: `tests/helpers/jinabert_oracle.py` and `bidirectional_oracle.py`, which
`tests/test_oracle_families.py` compares with parts of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colbert_rag import ColBERT
from tests.helpers.answers import ask_colbert, ask_oracle, distance, unlike, unlike_scores
from tests.helpers.bidirectional_oracle import bidirectional_oracle, lfm2_body
from tests.helpers.jinabert_oracle import jinabert_body, jinabert_oracle
from tests.helpers.oracle import (
    PlainOracle,
    load_tensors,
    load_tokenizer,
    naive_maxsim,
    stanford_oracle,
)
from tests.helpers.texts import DOCUMENTS, LITERALS, OUTER_SPACES, QUERIES
from tests.helpers.tiny import edit_json, read_json
from tests.helpers.variants import VARIANTS

LONG = " ".join(DOCUMENTS["one hundred and twenty words"].split() * 3)
ALL_QUERIES = {**QUERIES, **OUTER_SPACES, **LITERALS}
ALL_DOCUMENTS = {**DOCUMENTS, **OUTER_SPACES, **LITERALS, "as long as it can be": LONG}
NAMES = [
    "stanford-jinabert",
    "stanford-jinabert-attend",
    "stanford-jinabert-four-heads",
    "pylate-lfm2-bidirectional",
    "pylate-lfm2-bidirectional-attend",
    "pylate-lfm2-bidirectional-no-expansion",
    "pylate-lfm2-bidirectional-no-auto-map",
    "pylate-qwen3-bidirectional",
    "pylate-qwen3-bidirectional-unattended",
    "pylate-qwen3-bidirectional-by-key",
]
ONE_OF_EACH = ["stanford-jinabert", "pylate-lfm2-bidirectional", "pylate-qwen3-bidirectional"]


def reference(name: str, folder: Path) -> PlainOracle:
    if VARIANTS[name].backbone == "jinabert":
        return jinabert_oracle(folder)
    return bidirectional_oracle(VARIANTS[name], folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_the_answers_of_its_published_architecture(
    name: str, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    found = ask_colbert(colbert(name), ALL_QUERIES, ALL_DOCUMENTS)

    expected = ask_oracle(reference(name, checkpoint(name)), ALL_QUERIES, ALL_DOCUMENTS)
    assert found.query_tokens == expected.query_tokens
    assert found.document_tokens == expected.document_tokens
    assert unlike(found.query_vectors, expected.query_vectors) == {}
    assert unlike(found.document_vectors, expected.document_vectors) == {}
    assert unlike_scores(found.scores, expected.scores) == {}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_score_is_the_naive_sum_over_the_references_vectors(
    name: str, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    oracle = reference(name, checkpoint(name))
    query = QUERIES["plain question"]
    texts = [DOCUMENTS["another planet"], DOCUMENTS["empty"], DOCUMENTS["one word"]]

    found = colbert(name).score(query, texts)

    rows = oracle.query(query).rows
    expected = [naive_maxsim(rows, oracle.document(text).rows) for text in texts]
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(found) - min(found) > 1


def test_alibi_is_not_left_out(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    """The tensors alone do not tell that there are positions at all."""
    folder = checkpoint("stanford-jinabert-attend")
    blind = jinabert_body(load_tensors(folder), heads=12, alibi=False)
    wrong = stanford_oracle(folder, "", body=blind).document(LONG).rows

    (found,) = colbert("stanford-jinabert-attend").encode_documents([LONG])

    assert distance(found, jinabert_oracle(folder).document(LONG).rows) <= 1e-5
    assert distance(found, wrong) > 0.1


def test_lfm2_5_is_not_encoded_as_lfm2(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    """Every tensor fits both, and the model type is the same."""
    name = "pylate-lfm2-bidirectional-no-auto-map"
    folder = checkpoint(name)
    text = DOCUMENTS["another planet"]
    config = read_json(folder / "config.json")
    causal = lfm2_body(load_tensors(folder), config, causal=True)

    (found,) = colbert(name).encode_documents([text])

    wrong = bidirectional_oracle(VARIANTS[name], folder)
    wrong.body = causal
    assert distance(found, wrong.document(text).rows) > 0.1


def test_unattended_expansion_tokens_reach_lfm2_5_through_its_convolutions(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    expanded = colbert("pylate-lfm2-bidirectional")
    (rows,) = expanded.encode_queries(["mars"])
    length = len(expanded.tokenizer.queries(["mars"]).attention.nonzero()[0])

    (bare,) = colbert("pylate-lfm2-bidirectional", query_expansion=False).encode_queries(["mars"])

    # The last token of the text has another neighbour; the reference agrees, as tested above.
    assert distance(rows[:length], bare) > 0.01


def test_a_marker_stands_second_although_no_token_is_put_in_front(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    """PyLate inserts at position 1 whatever is at 0; pplx's tokenizer puts nothing there."""
    name = "pylate-qwen3-bidirectional"
    vocabulary = load_tokenizer(checkpoint(name))

    batch = colbert(name).tokenizer.documents(["mars venus", ""])

    words = vocabulary.encode("mars venus").ids
    marker = vocabulary.token_to_id("[D] ")
    assert batch.ids.tolist() == [words[0], marker, *words[1:], marker]


def test_an_empty_text_without_any_token_of_its_own_is_legal(
    colbert: Callable[..., ColBERT],
) -> None:
    """Neither tokenizer nor caller adds anything: there is nothing to encode, and nothing fails."""
    model = colbert("pylate-qwen3-bidirectional", query_marker="", document_marker="")

    scores = model.score("mars", ["", "venus", ""])

    assert torch.tensor(scores).isfinite().all()
    assert model.rank("mars", ["", "venus"])[0].text == "venus"


# Told apart by config.json alone


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"auto_map": None}, id="architectures alone"),
        pytest.param({"architectures": None}, id="auto_map alone"),
        pytest.param(
            {"model_type": "lfm2_bidirectional", "auto_map": None}, id="the type of transformers"
        ),
    ],
)
def test_any_word_of_both_directions_opens_lfm2_5(
    changes: dict[str, object],
    checkpoint: Callable[[str], Path],
    copy_of: Callable[[str], Path],
) -> None:
    from tests.helpers.answers import open_exactly

    folder = copy_of("pylate-lfm2-bidirectional")
    edit_json(folder / "config.json", **changes)
    oracle = bidirectional_oracle(VARIANTS["pylate-lfm2-bidirectional"], folder)

    (found,) = open_exactly(folder).encode_documents([DOCUMENTS["another planet"]])

    assert distance(found, oracle.document(DOCUMENTS["another planet"]).rows) <= 1e-5
