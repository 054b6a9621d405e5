"""What a caller decides instead of the checkpoint, and what side files add to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer

from colbert_rag import ColBERT, Settings, open_checkpoint
from colbert_rag.checkpoint import vocabulary
from colbert_rag.errors import MarkerError
from tests.helpers.answers import ask_colbert, ask_oracle, open_exactly, unlike, unlike_scores
from tests.helpers.oracle import (
    SentenceTransformersOracle,
    entry_skiplist,
    load_tokenizer,
    plain_oracle,
    stanford_oracle,
)
from tests.helpers.texts import DOCUMENTS, QUERIES
from tests.helpers.tiny import edit_json, read_json, write_json
from tests.helpers.variants import VARIANTS


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"query_length": 20}, {"query_length": 20}),
        ({"query_length": 48}, {"query_length": 48}),
        ({"document_length": 12}, {"document_length": 12}),
        ({"query_expansion": False}, {"expansion": None}),
        ({"attend_to_expansion": True}, {"attend": True}),
        ({"skiplist": []}, {"skip": frozenset()}),
        ({"query_marker": ""}, {"query_marker": None}),
        ({"document_marker": "[unused2]"}, {"document_marker": 3}),
    ],
    ids=lambda value: next(iter(value)),
)
def test_an_option_replaces_what_the_checkpoint_says(
    options: dict[str, Any],
    changes: dict[str, Any],
    checkpoint: Callable[[str], Path],
    colbert: Callable[..., ColBERT],
) -> None:
    folder = checkpoint("stanford-bert")
    oracle = stanford_oracle(folder, "BertModel", prefix="bert.", **changes)
    hashable = {key: tuple(value) if value == [] else value for key, value in options.items()}

    found = ask_colbert(colbert("stanford-bert", **hashable), QUERIES, DOCUMENTS)

    expected = ask_oracle(oracle, QUERIES, DOCUMENTS)
    assert found.query_tokens == expected.query_tokens
    assert found.document_tokens == expected.document_tokens
    assert unlike(found.query_vectors, expected.query_vectors) == {}
    assert unlike(found.document_vectors, expected.document_vectors) == {}
    assert unlike_scores(found.scores, expected.scores) == {}


def test_expansion_may_be_switched_on(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    name = "pylate-bert-no-expansion"
    mask = load_tokenizer(checkpoint(name)).token_to_id("[MASK]")

    batch = colbert(name, query_expansion=True).tokenizer.queries(["mars"])

    assert batch.ids[-1] == mask
    assert len(batch.ids) == 32


def test_a_skiplist_of_words_drops_their_entries(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    tokenizer = load_tokenizer(checkpoint("pylate-bert"))
    skip = entry_skiplist(tokenizer, ["the", "is"], tokenizer.token_to_id("[UNK]"))

    batch = colbert("pylate-bert", skiplist=("the", "is")).tokenizer.documents(["the red is red."])

    assert len(skip) == 2
    assert [number for number in batch.ids if number in skip] == batch.ids[~batch.scoring].tolist()


@pytest.mark.parametrize("published", ["[Q] search_query: ", "[Z] search_query: "])
@pytest.mark.parametrize("marker", ["", "[D] "])
def test_the_callers_marker_replaces_the_one_in_a_prompt(
    marker: str, published: str, copy_of: Callable[[str], Path]
) -> None:
    """As if the prompt had been published with that marker, also where its own does not exist."""
    folder = copy_of("native-modernbert-prompts")
    config = folder / "config_sentence_transformers.json"
    edit_json(config, prompts={"query": f"{marker}search_query: ", "document": ""})
    expected = SentenceTransformersOracle(folder).query("mars")
    edit_json(config, prompts={"query": published, "document": ""})

    model = open_exactly(folder, query_marker=marker)

    assert model.tokenizer.queries(["mars"]).ids.tolist() == expected.tokens.ids
    assert unlike({"": model.encode_queries(["mars"])[0]}, {"": expected.rows}) == {}


def test_fallback_markers_do_not_overrule_the_callers(
    checkpoint: Callable[[str], Path], colbert: Callable[..., ColBERT]
) -> None:
    name = "jina-wrong-markers"
    plain = load_tokenizer(checkpoint(name)).encode("mars").ids

    with pytest.raises(MarkerError, match=r"query marker '\[unused5\]' is not in the vocabulary"):
        open_exactly(checkpoint(name), query_marker="[unused5]")

    batch = colbert(name, document_marker="").tokenizer.documents(["mars"])
    assert batch.ids.tolist() == plain


@pytest.mark.parametrize(
    ("name", "marker", "prompt"),
    [
        ("native-modernbert-prompts", "[Q] ", "search_query: "),
        ("jina-wrong-markers", "[QueryMarker]", ""),
        ("pylate-bert", "[Q] ", ""),
    ],
)
def test_the_recipe_of_a_checkpoint_has_its_final_markers(
    name: str, marker: str, prompt: str, checkpoint: Callable[[str], Path]
) -> None:
    recipe = open_checkpoint(Settings.normalised(checkpoint(name))).recipe

    assert (recipe.query.marker, recipe.query.prompt) == (marker, prompt)


def test_a_tokenizer_is_parsed_once(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    def parse(text: str) -> Tokenizer:
        parsed.append(text)
        return Tokenizer.from_str(text)

    monkeypatch.setattr(vocabulary, "Tokenizer", SimpleNamespace(from_str=parse))

    folder = checkpoint("stanford-bert")
    model = open_exactly(folder)
    model.unload()
    model.load()

    assert parsed == [(folder / "tokenizer.json").read_text(encoding="utf-8")]


def test_a_language_chooses_the_adapter(colbert: Callable[..., ColBERT]) -> None:
    english = colbert("stanford-xmod").score("mars", ["venus"])
    german = colbert("stanford-xmod", language="de_DE").score("mars", ["venus"])

    assert colbert("stanford-xmod", language="en_XX").score("mars", ["venus"]) == english
    assert german != pytest.approx(english, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "prefix"), [("stanford-bert", "bert."), ("stanford-roberta", "roberta.")]
)
def test_a_published_length_beyond_the_positions_is_cut_to_them(
    name: str, prefix: str, copy_of: Callable[[str], Path]
) -> None:
    """RoBERTa's table of 322 positions has 320 for text: the first two are padding's."""
    folder = copy_of(name)
    edit_json(folder / "artifact.metadata", doc_maxlen=512)
    model = {"bert.": "BertModel", "roberta.": "RobertaModel"}[prefix]
    oracle = stanford_oracle(folder, model, prefix=prefix, document_length=320)
    texts = {"long": "mars venus " * 200}

    found = ask_colbert(open_exactly(folder), QUERIES, texts)

    expected = ask_oracle(oracle, QUERIES, texts)
    assert found.document_tokens == expected.document_tokens
    assert unlike(found.document_vectors, expected.document_vectors) == {}


def test_a_native_checkpoint_without_lengths_reads_as_far_as_its_positions(
    colbert: Callable[..., ColBERT],
    sentence_transformers: Callable[[str], SentenceTransformersOracle],
) -> None:
    text = "mars venus " * 200
    expected = sentence_transformers("native-bert-no-lengths").document(text)

    (found,) = colbert("native-bert-no-lengths").encode_documents([text])

    assert len(expected.tokens.ids) == 320
    assert unlike({"": found}, {"": expected.rows}) == {}


def test_markers_that_only_a_side_file_names_are_added(
    copy_of: Callable[[str], Path], checkpoint: Callable[[str], Path]
) -> None:
    """Older PyLate saves keep `"[Q] "` in added_tokens.json and not in tokenizer.json."""
    folder = copy_of("pylate-bert")
    tokenizer = read_json(folder / "tokenizer.json")
    markers = {
        token["content"]: token["id"]
        for token in tokenizer["added_tokens"]
        if token["content"] in ("[Q] ", "[D] ")
    }
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] not in markers
    ]
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "added_tokens.json", markers)
    oracle = plain_oracle(VARIANTS["pylate-bert"], checkpoint("pylate-bert"))

    model = open_exactly(folder)

    found = ask_colbert(model, QUERIES, DOCUMENTS)
    expected = ask_oracle(oracle, QUERIES, DOCUMENTS)
    assert len(markers) == 2
    assert found.query_tokens == expected.query_tokens
    assert unlike_scores(found.scores, expected.scores) == {}


def test_special_tokens_may_be_written_as_objects(
    copy_of: Callable[[str], Path], checkpoint: Callable[[str], Path]
) -> None:
    """RoBERTa's published files describe `<mask>` by an object with `content` and `lstrip`."""
    folder = copy_of("stanford-roberta")
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "special": True}
    edit_json(folder / "tokenizer_config.json", mask_token=mask)
    edit_json(folder / "special_tokens_map.json", mask_token=mask)
    oracle = plain_oracle(VARIANTS["stanford-roberta"], checkpoint("stanford-roberta"))

    model = open_exactly(folder)

    found = ask_colbert(model, QUERIES, DOCUMENTS)
    assert unlike_scores(found.scores, ask_oracle(oracle, QUERIES, DOCUMENTS).scores) == {}


def test_a_line_separator_in_vocab_txt_shifts_no_id(copy_of: Callable[[str], Path]) -> None:
    """Only a line feed ends an entry; multilingual vocabularies hold U+2028 and U+0085."""
    folder = copy_of("stanford-bert-vocab-txt")
    path = folder / "vocab.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[3] = "\u2028"
    path.write_text("\n".join(lines), encoding="utf-8")
    oracle = stanford_oracle(folder, "BertModel", prefix="bert.")

    model = open_exactly(folder)

    found = ask_colbert(model, QUERIES, DOCUMENTS)
    expected = ask_oracle(oracle, QUERIES, DOCUMENTS)
    assert found.query_tokens == expected.query_tokens
    assert unlike_scores(found.scores, expected.scores) == {}
