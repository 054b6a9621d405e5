"""jina-colbert-v2's layout gives the answers of its published architecture.

Its own code is remote, so the reference is that architecture in plain torch, on the published
tensors (`tests/helpers/jina_oracle.py`). The tiny weights are large and the longest document has
300 tokens, because a small model barely sees its rotary base: with fresh weights and 12 tokens the
difference between 10000 and 20000 is 3e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colbert_rag import ColBERT
from tests.helpers.answers import (
    ask_colbert,
    ask_oracle,
    distance,
    open_exactly,
    unlike,
    unlike_scores,
)
from tests.helpers.jina_oracle import jina_body, jina_oracle
from tests.helpers.oracle import (
    SentenceTransformersOracle,
    load_tensors,
    load_tokenizer,
    score,
    stanford_oracle,
)
from tests.helpers.texts import DOCUMENTS, LITERALS, QUERIES
from tests.helpers.tiny import DROP, edit_json, edit_tensors

LONG = " ".join(DOCUMENTS["one hundred and twenty words"].split() * 3)
TEXTS = {**DOCUMENTS, **LITERALS, "three hundred tokens": LONG}
QUERY = QUERIES["plain question"]


@pytest.mark.parametrize("name", ["jina", "jina-wrong-markers", "jina-unattended", "jina-bfloat16"])
def test_the_published_layout_gives_the_published_architectures_answers(
    name: str, checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    oracle = jina_oracle(checkpoint(name))

    found = ask_colbert(colbert(name), QUERIES, TEXTS)

    expected = ask_oracle(oracle, QUERIES, TEXTS)
    assert found.query_tokens == expected.query_tokens
    assert found.document_tokens == expected.document_tokens
    assert unlike(found.query_vectors, expected.query_vectors) == {}
    assert unlike(found.document_vectors, expected.document_vectors) == {}
    assert unlike_scores(found.scores, expected.scores) == {}


def test_the_rotary_base_is_10000_where_the_config_names_none(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    folder = checkpoint("jina")
    right = jina_oracle(folder).document(LONG).rows
    # The default of the class in transformers that hosts these weights.
    wrong = jina_oracle(folder, base=20000.0).document(LONG).rows

    (found,) = colbert("jina").encode_documents([LONG])

    assert distance(right, wrong) > 0.1
    assert distance(found, right) <= 1e-5


def test_a_rotary_base_named_in_the_config_is_followed(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    expected = jina_oracle(checkpoint("jina-base-20000"), base=20000.0).document(LONG).rows

    (found,) = colbert("jina-base-20000").encode_documents([LONG])

    assert distance(found, expected) <= 1e-5


def test_markers_absent_from_the_vocabulary_give_way_to_the_published_pair(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    vocabulary = load_tokenizer(checkpoint("jina-wrong-markers"))

    batch = colbert("jina-wrong-markers").tokenizer.queries(["mars"])

    assert vocabulary.token_to_id("[unused0]") is None
    assert batch.ids[1] == vocabulary.token_to_id("[QueryMarker]")


def test_the_oracle_equals_the_native_class_of_transformers(
    checkpoint: Callable[[str], Path], copy_of: Callable[[str], Path]
) -> None:
    from transformers import JinaEmbeddingsV3Model

    oracle = jina_body(load_tensors(checkpoint("jina")), heads=4)
    folder = copy_of("jina")
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    native = {"model_type": "jina_embeddings_v3", "rope_parameters": rope, "auto_map": DROP}
    edit_json(folder / "config.json", **native)
    # transformers 5 renames the published tensors itself when the config names its own class.
    model = JinaEmbeddingsV3Model.from_pretrained(folder).eval()
    ids = list(range(4, 60))

    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0]

    assert distance(oracle(ids, [True] * len(ids)), expected) <= 1e-5


def test_sentence_transformers_opens_the_layout_with_untrained_layers(
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    """`AutoModel` builds an `XLMRobertaModel`, finds almost no tensor and leaves the rest random.

    There is no exception, only a printed report; we know the tensors by their names.
    """
    texts = [DOCUMENTS["another planet"], DOCUMENTS["one word"], DOCUMENTS["empty"]]

    theirs = score(sentence_transformers("jina"), QUERY, texts)
    ours = colbert("jina").score(QUERY, texts)

    assert theirs != pytest.approx(ours, abs=1.0)
    assert ours == pytest.approx(score(jina_oracle(checkpoint("jina")), QUERY, texts), abs=1e-4)


def test_the_layout_of_transformers_own_class_gives_its_answers(
    copy_of: Callable[[str], Path],
) -> None:
    from transformers import JinaEmbeddingsV3Model

    folder = copy_of("jina")
    names = {"model_type": "jina_embeddings_v3", "auto_map": DROP, "architectures": ["HF_ColBERT"]}
    edit_json(folder / "config.json", **names)  # and no base: 20000 is that class's own
    body = JinaEmbeddingsV3Model.from_pretrained(folder, add_pooling_layer=False).eval()
    edit_tensors(
        folder / "model.safetensors",
        lambda stored: {**body.state_dict(), "linear.weight": stored["linear.weight"]},
    )

    (found,) = open_exactly(folder).encode_documents([LONG])

    ids = stanford_oracle(
        folder, "", body=lambda ids, _: torch.zeros(len(ids), 32), document_length=300
    ).document(LONG)
    with torch.inference_mode():
        hidden = body(input_ids=torch.tensor([ids.tokens.ids])).last_hidden_state[0]
    rows = hidden @ load_tensors(folder)["linear.weight"].float().T
    kept = rows[torch.tensor(ids.tokens.scoring)]
    assert distance(found, torch.nn.functional.normalize(kept, dim=-1)) <= 1e-5
