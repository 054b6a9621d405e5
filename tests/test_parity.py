"""Every format and backbone gives the tokens, vectors and scores of its reference.

The references are `tests/helpers/oracle.py`. Where sentence-transformers differs from the library
that trained a format, `tests/test_reference_faults.py` says how and why; here it is asked only what
it answers rightly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from colbert_rag import ColBERT
from tests.helpers.answers import Answers, ask_colbert, ask_oracle, unlike, unlike_scores
from tests.helpers.families import FAMILIES
from tests.helpers.oracle import (
    Oracle,
    PlainOracle,
    Recipe,
    SentenceTransformersOracle,
    load_tokenizer,
    naive_maxsim,
    plain_body,
    plain_oracle,
)
from tests.helpers.texts import DOCUMENTS, LITERALS, OUTER_SPACES, QUERIES
from tests.helpers.variants import VARIANTS

ALL_QUERIES = {**QUERIES, **OUTER_SPACES, **LITERALS}
ALL_DOCUMENTS = {**DOCUMENTS, **OUTER_SPACES, **LITERALS}
PLANETS = {"plain question": QUERIES["plain question"]}

STANFORD = [
    "stanford-bert",
    "stanford-bert-no-token-ids",
    "stanford-bert-attend",
    "stanford-bert-keeps-punctuation",
    "stanford-bert-l2",
    "stanford-bert-no-metadata",
    "stanford-bert-no-lengths",
    "stanford-bert-old-names",
    "stanford-bert-no-prefix",
    "stanford-bert-sharded",
    "stanford-bert-saved-padding",
    "stanford-bert-vocab-txt",
    "stanford-bert-spare-rows",
    "stanford-bert-half",
    "stanford-bert-half-head",
    "stanford-bert-renamed",
    "stanford-electra",
    "stanford-distilbert",
    "stanford-modernbert",
    "stanford-modernbert-attend",
    "stanford-modernbert-sharded",
    "stanford-roberta",
    "stanford-xlm-roberta",
    "stanford-camembert",
    "stanford-xmod",
]
PYLATE = [
    "pylate-bert",
    "pylate-bert-no-expansion",
    "pylate-bert-expansion-unsaid",
    "pylate-bert-no-model-type",
    "pylate-bert-attend",
    "pylate-bert-residual",
    "pylate-bert-square-residual",
    "pylate-bert-gelu-bias",
    "pylate-bert-no-markers",
    "pylate-bert-empty-skiplist",
    "pylate-bert-prompts",
    "pylate-bert-in-folder",
    "pylate-bert-old-class",
    "pylate-bert-pooling",
    "pylate-bert-sharded",
    "pylate-bert-old-names",
    "pylate-bert-saved-padding",
    "pylate-bert-half-head",
    "pylate-bert-lower-case",
    "pylate-modernbert",
    "pylate-modernbert-expansion",
    "pylate-modernbert-attend",
    "pylate-modernbert-two-layers",
    "pylate-modernbert-prompts",
    "pylate-eurobert",
    "pylate-lfm2",
    "pylate-lfm2-bfloat16",
    "pylate-xlm-roberta",
    "pylate-roberta",
    "pylate-distilbert",
    "pylate-xmod",
]
NATIVE = [name for name, spec in VARIANTS.items() if spec.format in ("native", "converted")]

# What sentence-transformers reads as the training library did: formats x BERT and ModernBERT.
_WITHOUT_MARKERS = {
    name: text
    for name, text in ALL_QUERIES.items()
    if name not in ("stanford query marker", "stanford document marker", "padding")
}
_WITHOUT_OUTER_SPACES = {**QUERIES, **LITERALS}
_STANFORD_ST = [
    "stanford-bert",
    "stanford-bert-no-token-ids",
    "stanford-bert-attend",
    "stanford-bert-keeps-punctuation",
    "stanford-bert-saved-padding",
    "stanford-bert-vocab-txt",
    "stanford-electra",
    "stanford-distilbert",
]
_PYLATE_BERT_ST = [
    "pylate-bert",
    "pylate-bert-no-expansion",
    "pylate-bert-no-model-type",
    "pylate-bert-attend",
    "pylate-bert-residual",
    "pylate-bert-gelu-bias",
    "pylate-bert-prompts",
    "pylate-bert-in-folder",
    "pylate-bert-pooling",
    "pylate-xlm-roberta",
    "pylate-distilbert",
    "pylate-xmod",
]
_PYLATE_BPE_ST = [
    "pylate-modernbert",
    "pylate-modernbert-expansion",
    "pylate-modernbert-attend",
    "pylate-eurobert",
    "pylate-lfm2",
    "pylate-roberta",
]
ST_CASES = [
    *(pytest.param(name, _WITHOUT_MARKERS, id=name) for name in _STANFORD_ST),
    *(pytest.param(name, ALL_QUERIES, id=name) for name in _PYLATE_BERT_ST),
    *(pytest.param(name, _WITHOUT_OUTER_SPACES, id=name) for name in _PYLATE_BPE_ST),
    *(pytest.param(name, ALL_QUERIES, id=name) for name in NATIVE),
]


def assert_same(found: Answers, expected: Answers) -> None:
    """Tokens are equal; vectors and scores are within the tolerances of float32."""
    assert found.query_tokens == expected.query_tokens
    assert found.document_tokens == expected.document_tokens
    assert unlike(found.query_vectors, expected.query_vectors) == {}
    assert unlike(found.document_vectors, expected.document_vectors) == {}
    assert unlike_scores(found.scores, expected.scores) == {}


@pytest.mark.parametrize("name", [*STANFORD, *PYLATE])
def test_a_checkpoint_gives_the_answers_of_plain_transformers(
    name: str, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    oracle = plain_oracle(VARIANTS[name], checkpoint(name))

    found = ask_colbert(colbert(name), ALL_QUERIES, ALL_DOCUMENTS)

    assert_same(found, ask_oracle(oracle, ALL_QUERIES, ALL_DOCUMENTS))


@pytest.mark.parametrize(("name", "queries"), ST_CASES)
def test_a_checkpoint_gives_the_answers_of_sentence_transformers(
    name: str,
    queries: dict[str, str],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    oracle = sentence_transformers(name)
    documents = {**DOCUMENTS, **queries}

    found = ask_colbert(colbert(name), queries, documents)

    assert_same(found, ask_oracle(oracle, queries, documents))


@pytest.mark.parametrize(
    "name", ["stanford-bert", "pylate-modernbert-two-layers", "native-bert-min", "pylate-lfm2"]
)
def test_a_score_is_the_naive_sum_over_the_oracles_vectors(
    name: str,
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    oracle: Oracle = sentence_transformers(name)
    query = QUERIES["plain question"]
    texts = [DOCUMENTS["another planet"], DOCUMENTS["empty"], DOCUMENTS["one word"]]
    rows = oracle.query(query).rows

    found = colbert(name).score(query, texts)

    expected = [naive_maxsim(rows, oracle.document(text).rows) for text in texts]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_pickled_checkpoint_gives_the_same_answers_when_pickles_are_allowed(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    name = "stanford-bert-pickled"
    oracle = plain_oracle(VARIANTS[name], checkpoint(name))

    found = ask_colbert(colbert(name, allow_pickle=True), PLANETS, DOCUMENTS)

    assert_same(found, ask_oracle(oracle, PLANETS, DOCUMENTS))


@pytest.mark.parametrize("name", ["raw-bert", "raw-modernbert", "raw-roberta"])
def test_raw_token_embeddings_are_the_normalised_hidden_states(
    name: str, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    folder = checkpoint(name)
    body = plain_body(folder, FAMILIES[VARIANTS[name].backbone].model)
    recipe = Recipe(None, None, query_length=128, document_length=256)
    oracle = PlainOracle(body, load_tokenizer(folder), recipe, [])

    found = ask_colbert(colbert(name, raw_token_embeddings=True), ALL_QUERIES, ALL_DOCUMENTS)

    assert_same(found, ask_oracle(oracle, ALL_QUERIES, ALL_DOCUMENTS))


def test_tiny_scores_tell_documents_apart(colbert: Callable[..., ColBERT]) -> None:
    scores = colbert("stanford-bert").score(QUERIES["plain question"], list(DOCUMENTS.values()))

    # Were they nearly equal, every parity above would hold for a wrong model too.
    assert max(scores) - min(scores) > 5
