"""Where sentence-transformers 6.2 departs from the library that trained a checkpoint.

Each test shows what sentence-transformers answers, what the training library answers (a plain
reference of `tests/helpers/oracle.py`), and that ours is the second. `sentence-transformers` is
right on everything else, which `tests/test_parity.py` holds us to.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colbert_rag import ColBERT
from colbert_rag.checkpoint import open_checkpoint
from colbert_rag.errors import MarkerError, UnsupportedModuleError
from colbert_rag.settings import Settings
from colbert_rag.tokenizer import TextTokenizer
from tests.helpers.answers import (
    ask_colbert,
    ask_oracle,
    named_tokens,
    open_exactly,
    unlike,
    unlike_scores,
)
from tests.helpers.oracle import SentenceTransformersOracle, load_tokenizer, plain_oracle, score
from tests.helpers.texts import DOCUMENTS, OUTER_SPACES, QUERIES
from tests.helpers.tiny import DROP, Spec, build, edit_json, edit_tensors, write_json
from tests.helpers.variants import VARIANTS

QUERY = QUERIES["plain question"]
TEXTS = [DOCUMENTS["another planet"], DOCUMENTS["one word"], DOCUMENTS["empty"]]


def test_a_stale_modules_json_does_not_drop_the_projection(copy_of: Callable[[str], Path]) -> None:
    """mxbai-colbert-large-v1 shipped a `modules.json` that names the backbone alone.

    sentence-transformers then applies neither projection nor normalisation, and its scores leave
    the range of 32 unit vectors. The inline projection is what was trained.
    """
    folder = copy_of("stanford-bert")
    entry = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    write_json(folder / "modules.json", [entry])
    right = score(plain_oracle(VARIANTS["stanford-bert"], folder), QUERY, TEXTS)

    theirs = score(SentenceTransformersOracle(folder), QUERY, TEXTS)
    ours = open_exactly(folder).score(QUERY, TEXTS)

    assert min(theirs) > 32
    assert ours == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("architecture", ["BertModel", "ColBERT"])
def test_a_renamed_architecture_does_not_replace_the_projection(
    architecture: str, copy_of: Callable[[str], Path]
) -> None:
    """cramraj8/duqgen says `ColBERT`; other inline checkpoints were saved as `BertModel`.

    sentence-transformers and PyLate recognise only `HF_ColBERT`, and build a random projection to
    128 dimensions otherwise. Tensors decide here, not names.
    """
    folder = copy_of("stanford-bert")
    edit_json(folder / "config.json", architectures=[architecture])
    right = score(plain_oracle(VARIANTS["stanford-bert"], folder), QUERY, TEXTS)

    theirs = SentenceTransformersOracle(folder)
    ours = open_exactly(folder)

    assert theirs.query(QUERY).rows.shape[1] == 128
    assert ours.dim == 16
    assert ours.score(QUERY, TEXTS) == pytest.approx(right, abs=1e-4)


def test_an_untrusted_activation_is_refused_instead_of_replaced(
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    checkpoint: Callable[[str], Path],
) -> None:
    """sentence-transformers replaces an activation outside `torch.` by Tanh, with a warning.

    The scores are then wrong and look fine.
    """
    name = "pylate-bert-foreign-activation"
    right = score(plain_oracle(VARIANTS["pylate-bert"], checkpoint("pylate-bert")), QUERY, TEXTS)

    theirs = score(sentence_transformers(name), QUERY, TEXTS)

    assert theirs != pytest.approx(right, abs=0.01)
    with pytest.raises(UnsupportedModuleError, match=r"pylate\.activations\.Identity"):
        open_exactly(checkpoint(name))


def test_a_marker_outside_the_vocabulary_is_refused_instead_of_shattered(
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    checkpoint: Callable[[str], Path],
) -> None:
    """colbert-xm's metadata says `[unused0]`, which XLM-R's vocabulary does not hold.

    sentence-transformers writes it as text, which falls into many pieces; PyLate adds a random row.
    """
    name = "stanford-xmod-unknown-markers"
    tokenizer = load_tokenizer(checkpoint(name))

    theirs = sentence_transformers(name).document("mars").tokens.ids

    pieces = tokenizer.encode("[unused1] mars").ids
    assert theirs == pieces
    assert len(pieces) > 8
    with pytest.raises(MarkerError, match=r"\[unused0\]"):
        open_exactly(checkpoint(name))


def test_a_model_trained_with_unknown_markers_is_opened_by_naming_the_unknown_token(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    """Stanford's code looks the marker up and gets the unknown id, for queries and documents."""
    name = "stanford-xmod-unknown-markers"
    oracle = plain_oracle(VARIANTS[name], checkpoint(name))
    unknown = oracle.tokenizer.token_to_id("<unk>")
    oracle.recipe = replace(oracle.recipe, query_marker=unknown, document_marker=unknown)

    ours = colbert(name, query_marker="<unk>", document_marker="<unk>")

    assert ours.score(QUERY, TEXTS) == pytest.approx(score(oracle, QUERY, TEXTS), abs=1e-4)


@pytest.mark.parametrize("text", ["mars [unused0] venus", "[unused1] venus"])
def test_a_stanford_marker_typed_by_a_user_stays_plain_text(
    text: str,
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    """Stanford inserts the marker by id, so the same letters in a text are ordinary pieces.

    sentence-transformers registers it as a special token, and then finds it in the text too.
    """
    right = plain_oracle(VARIANTS["stanford-bert"], checkpoint("stanford-bert"))

    theirs = sentence_transformers("stanford-bert").document(text).tokens
    ours = named_tokens({"": text}, colbert("stanford-bert").tokenizer.documents([text]))[""]

    assert theirs != right.document(text).tokens
    assert ours == right.document(text).tokens


def test_a_marker_before_byte_level_pieces_leaves_no_space_behind(
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    """sentence-transformers encodes `"[unused0] mars"`: the text's first piece becomes ` mars`.

    On WordPiece nothing changes; ModernBERT and RoBERTa tokenise a leading space.
    """
    name = "stanford-modernbert"
    right = plain_oracle(VARIANTS[name], checkpoint(name))

    theirs = sentence_transformers(name).document("mars").tokens
    ours = named_tokens({"": "mars"}, colbert(name).tokenizer.documents(["mars"]))[""]

    tokenizer = right.tokenizer
    assert tokenizer.id_to_token(theirs.ids[2]) == "Ġmars"
    assert tokenizer.id_to_token(ours.ids[2]) == "mars"
    assert ours == right.document("mars").tokens


def test_stanfords_skiplist_on_sentencepiece_is_the_first_piece_of_each_symbol(
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    """`encode("!")` gives `▁!`, and that id is what Stanford drops, not the `!` inside a text.

    sentence-transformers and PyLate drop the entry `!`.
    """
    name, text = "stanford-xlm-roberta", DOCUMENTS["punctuation between words"]
    right = plain_oracle(VARIANTS[name], checkpoint(name))

    theirs = sentence_transformers(name).document(text).tokens
    ours = named_tokens({"": text}, colbert(name).tokenizer.documents([text]))[""]

    assert theirs.ids == ours.ids
    assert theirs.scoring != ours.scoring
    assert ours == right.document(text).tokens


def test_unknown_tokens_count_although_some_punctuation_is_unknown(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    """PyLate looks `~` up, gets the unknown id, and drops every unknown word from the score."""
    tokenizer = load_tokenizer(checkpoint("pylate-bert"))
    unknown = tokenizer.token_to_id("[UNK]")
    text = "red 🪐 planet"

    ours = named_tokens({"": text}, colbert("pylate-bert").tokenizer.documents([text]))[""]

    assert any(tokenizer.token_to_id(symbol) is None for symbol in string.punctuation)
    assert ours.scoring[ours.ids.index(unknown)]


def test_a_sharded_inline_checkpoint_opens(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    """sentence-transformers looks for the projection in `model.safetensors` alone."""
    name = "stanford-bert-sharded"
    right = score(plain_oracle(VARIANTS[name], checkpoint(name)), QUERY, TEXTS)

    with pytest.raises(ValueError, match="Could not find"):
        SentenceTransformersOracle(checkpoint(name))
    assert colbert(name).score(QUERY, TEXTS) == pytest.approx(right, abs=1e-4)


def test_the_older_class_path_of_pylate_opens(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    """`pylate.models.Dense` has moved; sentence-transformers wants to run code for the old path."""
    name = "pylate-bert-old-class"
    right = score(plain_oracle(VARIANTS[name], checkpoint(name)), QUERY, TEXTS)

    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformersOracle(checkpoint(name))
    assert colbert(name).score(QUERY, TEXTS) == pytest.approx(right, abs=1e-4)


def test_outer_spaces_are_stripped_as_pylate_does(
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    """sentence-transformers no longer strips, and byte-level pieces show it."""
    name = "pylate-modernbert"
    right = plain_oracle(VARIANTS[name], checkpoint(name))
    expected = {key: right.document(text).tokens for key, text in OUTER_SPACES.items()}

    theirs = {
        key: sentence_transformers(name).document(text).tokens for key, text in OUTER_SPACES.items()
    }
    batch = colbert(name).tokenizer.documents(list(OUTER_SPACES.values()))

    assert all(theirs[key] != tokens for key, tokens in expected.items())
    assert named_tokens(OUTER_SPACES, batch) == expected


def test_lower_casing_is_pythons_as_in_pylate(
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    """Python ends a word with `ς` and lowers literal special tokens; a normalizer does neither."""
    name = "pylate-modernbert-two-layers"
    right = plain_oracle(VARIANTS[name], checkpoint(name))
    texts = {"sigma": "ΟΔΥΣΣΕΥΣ", "mask": "the [MASK] planet"}
    expected = {key: right.document(text).tokens for key, text in texts.items()}

    theirs = {key: sentence_transformers(name).document(text).tokens for key, text in texts.items()}
    batch = colbert(name).tokenizer.documents(list(texts.values()))

    assert all(theirs[key] != tokens for key, tokens in expected.items())
    assert named_tokens(texts, batch) == expected


def test_a_missing_document_length_is_stanfords_220(
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
    colbert: Callable[..., ColBERT],
) -> None:
    """sentence-transformers goes on to the limit of the tokenizer."""
    name, text = "stanford-bert-no-lengths", "mars " * 400

    theirs = sentence_transformers(name).document(text).tokens
    ours = colbert(name).tokenizer.documents([text])

    assert len(theirs.ids) == 320
    assert len(ours.ids) == 220


def test_an_inline_projection_behind_the_body_prefix_is_found(
    copy_of: Callable[[str], Path],
) -> None:
    """sentence-transformers reads the exact key `linear.weight` and raises KeyError otherwise."""
    folder = copy_of("stanford-bert")
    right = score(plain_oracle(VARIANTS["stanford-bert"], folder), QUERY, TEXTS)
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: {
            name.replace("linear.weight", "bert.linear.weight"): tensor
            for name, tensor in tensors.items()
        },
    )

    with pytest.raises(KeyError):
        SentenceTransformersOracle(folder)
    ours = open_exactly(folder)
    assert ours.score(QUERY, TEXTS) == pytest.approx(right, abs=1e-4)


def test_of_two_descriptions_of_one_model_the_inline_one_decides(tmp_path: Path) -> None:
    """answerai-colbert-small-v1 shipped `0_Transformer/` and `1_Dense/` beside its inline weights.

    Both hold the same tensors; lengths are those of `artifact.metadata`.
    """
    markers = ("[unused0]", "[unused1]")
    other = {"query_length": 20, "document_length": 25}
    build(Spec("pylate", tokens=markers, folder="0_Transformer", settings=other), tmp_path)
    build(VARIANTS["stanford-bert"], tmp_path)
    right = plain_oracle(VARIANTS["stanford-bert"], tmp_path)

    ours = open_exactly(tmp_path)

    found = ask_colbert(ours, QUERIES, DOCUMENTS)
    expected = ask_oracle(right, QUERIES, DOCUMENTS)
    assert found.document_tokens == expected.document_tokens
    assert unlike(found.query_vectors, expected.query_vectors) == {}
    assert unlike_scores(found.scores, expected.scores) == {}


def test_an_unmentioned_activation_is_not_sentence_transformers_tanh(
    checkpoint: Callable[[str], Path], copy_of: Callable[[str], Path]
) -> None:
    """A PyLate Dense without `activation_function` is a plain linear layer.

    Source: lightonai/pylate, pylate/models/Dense.py @034d6aa.
    """
    folder = copy_of("pylate-bert")
    edit_json(folder / "1_Dense" / "config.json", activation_function=DROP)
    right = score(plain_oracle(VARIANTS["pylate-bert"], checkpoint("pylate-bert")), QUERY, TEXTS)

    ours = open_exactly(folder).score(QUERY, TEXTS)

    assert ours == pytest.approx(right, abs=1e-4)


def test_a_marker_stands_behind_the_first_token_even_where_that_is_a_word(
    checkpoint: Callable[[str], Path],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
) -> None:
    """pplx-embed-v1-late's tokenizer puts no token in front of a text.

    PyLate inserts at position 1 whatever stands at 0 (`models/colbert.py`, `insert_prefix_token`);
    sentence-transformers writes the marker in front of the text, so that it comes first.
    """
    name = "pylate-qwen3-bidirectional-by-key"
    vocabulary = load_tokenizer(checkpoint(name))
    marker, words = vocabulary.token_to_id("[D] "), vocabulary.encode("mars venus").ids
    opened = open_checkpoint(Settings.normalised(str(checkpoint(name))))

    theirs = sentence_transformers(name).document("mars venus").tokens.ids
    ours = TextTokenizer(opened.recipe, opened.vocabulary).documents(["mars venus"]).ids.tolist()

    assert theirs == [marker, *words]
    assert ours == [words[0], marker, *words[1:]]
