"""Explanations: every span is right, shares add up, nothing is computed twice, passages hold."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from colbert_rag import ColBERT, Explanation, InvalidQueryError, Ranking
from colbert_rag.colbert import shared_colbert
from colbert_rag.encoder import Encoder
from colbert_rag.explanation import Token
from colbert_rag.explanation.overview import DocumentUnit
from colbert_rag.explanation.passage import best_passage
from colbert_rag.explanation.words import words
from colbert_rag.tokenizer import TextTokenizer, TokenBatch
from tests.helpers.texts import DOCUMENTS, LITERALS, OUTER_SPACES

DATA = Path(__file__).parents[2] / "shared" / "data"
COLLECTIONS = ["scifact", "lfrqa", "cosqa", "squadshift-wiki"] + [
    f"xquad-{language}" for language in ("ar", "de", "en", "hi", "th", "zh")
]
# One for each way of writing tokens, with and without expansion, prompts and lower-casing.
TINY = [
    "stanford-bert",
    "pylate-bert-prompts",
    "pylate-bert-lower-case",
    "pylate-xlm-roberta",
    "pylate-modernbert-prompts",
    "pylate-lfm2",
    "native-bert-no-expansion",
    "jina",
    "flagembedding",
    "pylate-qwen3-bidirectional",
]


@pytest.fixture(scope="module")
def minilm() -> ColBERT:
    """Real weights, cutting early so that 200 pairs take seconds and many are cut."""
    return shared_colbert("offline-minilm", device="cpu", dtype="float32", document_length=64)


def pairs(collection: str, count: int) -> Iterator[tuple[str, str]]:
    """Random queries with random documents, the same ones every time."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not on this machine")
    generator = random.Random(f"pairs of {collection}")
    queries, documents = (
        (DATA / collection / name).read_text(encoding="utf-8").rstrip("\n").split("\n")
        for name in ("queries.jsonl", "corpus.jsonl")
    )
    chosen = zip(generator.sample(queries, count), generator.sample(documents, count), strict=True)
    return ((json.loads(query)["text"], json.loads(text)["text"]) for query, text in chosen)


# What it means that a span spells a token


def bytes_of_characters() -> dict[str, int]:
    """How byte-level vocabularies write bytes (openai/gpt-2, encoder.py, `bytes_to_unicode`)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTES = bytes_of_characters()


def plain(text: str) -> str:
    """Without accents, case, compatibility forms and white space: what no normaliser changes."""
    flat = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in flat if unicodedata.category(c)[0] not in "MZC")


def spells(token: str, part: str, tokenizer: TextTokenizer) -> bool:
    """Whether a part of a text is what a token stands for.

    * An unknown token stands for anything, and a literal marker or special token for itself; only
      padding stands for a blank where Stanford's recipe says so.
    * WordPiece: the same letters, but for `##`.
    * Unigram: `▁` stands for the space before; one letter, such as a ligature, may be cut apart.
    * Byte-level BPE: `Ġ` is a space; one letter may be cut apart into bytes.
    """
    kind = type(tokenizer.tokenizer.model)
    if tokenizer.tokenizer.token_to_id(token) == tokenizer.vocabulary.unk:
        return bool(part)
    if plain(token) == plain(part):
        return True
    if tokenizer.recipe.padding_is_blank and part == "[PAD]":
        return token == "[MASK]"
    if kind is models.WordPiece:
        return plain(token.removeprefix("##")) == plain(part)
    if kind is models.Unigram:
        return plain(token.replace("▁", "")) in plain(part)
    written = bytes(BYTES[character] for character in token)
    return written.strip() in unicodedata.normalize("NFC", part).encode()


def assert_sound(explanation: Explanation, ranking: Ranking, model: ColBERT) -> None:
    """Everything that holds for any query and any document, which the ranking has ranked."""
    query, text = explanation.query, explanation.text
    assert explanation.score == pytest.approx(ranking[0].score, abs=1e-4)
    assert sum(match.share for match in explanation.matches) == pytest.approx(1.0, abs=1e-6)
    assert len(explanation.matches) == ranking.query_rows
    asked = [match.query for match in explanation.matches]
    found = explanation.document_tokens
    assert {match.document for match in explanation.matches} <= set(found)
    assert [token for token in asked if not is_right(token, query, model)] == []
    assert [token for token in found if not is_right(token, text, model)] == []


def is_right(token: Token, text: str, model: ColBERT) -> bool:
    """Whether a token's span lies in the text and spells it, if it is of the text at all."""
    if token.span is None:
        return token.role != "text"
    start, stop = token.span
    part = text[start:stop]
    in_text = token.role == "text" and 0 <= start < stop <= len(text)
    # Many vocabularies count a space to the word behind it; a reader does not.
    trimmed = part.strip() in (part, "")
    return in_text and trimmed and spells(token.text, part, model.tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("collection", COLLECTIONS)
def test_shares_add_up_and_spans_spell_their_tokens_on_real_texts(
    collection: str, minilm: ColBERT
) -> None:
    for query, text in pairs(collection, 20):
        ranking = minilm.rank(query, [text])
        assert_sound(ranking.explain(0), ranking, minilm)


@pytest.mark.parametrize("name", TINY)
def test_they_do_with_every_kind_of_tokenizer(name: str, colbert: Callable[..., ColBERT]) -> None:
    model = colbert(name)

    for collection in COLLECTIONS:
        for query, text in pairs(collection, 1):
            assert_sound(model.explain(query, text), model.rank(query, [text]), model)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("text", [*DOCUMENTS.values(), *OUTER_SPACES.values(), *LITERALS.values()])
def test_they_do_on_texts_that_set_traps(
    name: str, text: str, colbert: Callable[..., ColBERT]
) -> None:
    model = colbert(name)

    query = text if text.strip() else "planet"
    assert_sound(model.explain(query, text), model.rank(query, [text]), model)


@pytest.mark.parametrize("name", TINY)
def test_accents_of_their_own_belong_to_their_letter(
    name: str, colbert: Callable[..., ColBERT]
) -> None:
    text = "cafe\u0301 de\u0301ja\u0300 vu"

    tokens = colbert(name).explain("planet", text).document_tokens

    covered = {place for token in tokens if token.span for place in range(*token.span)}
    letters = {place for place, character in enumerate(text) if character != " "}
    assert letters <= covered


def test_two_half_precision_sums_agree(colbert: Callable[..., ColBERT]) -> None:
    model = colbert("stanford-bert", dtype="bfloat16")
    texts = [text for text in DOCUMENTS.values() if text]

    for text in texts:
        explained, scored = (
            model.explain("red planet", text).score,
            model.score("red planet", [text]),
        )
        # bfloat16 has 8 bits: a similarity near 1 moves in steps of 1/256.
        assert explained == pytest.approx(scored[0], abs=32 / 256)


def test_each_query_token_takes_its_best_document_token(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("which planet is red?", "Mars is the red planet.")
    query = tiny_colbert.encode_queries(["which planet is red?"])[0].tolist()
    document = tiny_colbert.encode_documents(["Mars is the red planet."])[0].tolist()

    for match, row in zip(explanation.matches, query, strict=True):
        cosines = [sum(a * b for a, b in zip(row, other, strict=True)) for other in document]
        best = max(range(len(cosines)), key=cosines.__getitem__)
        assert match.document is explanation.document_tokens[best]
        assert match.similarity == pytest.approx(cosines[best], abs=1e-6)
        assert match.share == pytest.approx(cosines[best] / explanation.score, abs=1e-6)


def test_words_carry_what_their_tokens_carry(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("is the famous planet red?", "famously reddish, is mars")

    for place in explanation.overview.places:
        if place.span is not None:
            within = [
                match.share
                for match in explanation.matches
                if match.document is not None
                and match.document.span is not None
                and place.span[0] <= match.document.span[0] < place.span[1]
            ]
            assert place.share == pytest.approx(sum(within))
            assert bool(place.lines) == bool(within)
    for line in explanation.overview.lines:
        carried = [explanation.overview.places[place].share for place in line.best]
        assert 0 < line.share <= sum(carried) + 1e-9


# Tokens that are not in the text


def test_roles_tell_why_a_token_is_there(colbert: Callable[..., ColBERT]) -> None:
    explanation = colbert("pylate-bert-prompts").explain("Red Planet", "Mars")

    said = [(match.query.text, match.query.role, match.query.span) for match in explanation.matches]
    assert said == [
        ("[CLS]", "special", None),
        ("[q] ", "marker", None),
        ("search", "prompt", None),
        ("query", "prompt", None),
        (":", "prompt", None),
        ("red", "text", (0, 3)),
        ("planet", "text", (4, 10)),
        ("[SEP]", "special", None),
    ]


def test_expansion_tokens_are_told_apart_also_where_they_are_end_tokens(
    colbert: Callable[..., ColBERT],
) -> None:
    explanation = colbert("pylate-lfm2").explain("red planet", "Mars")

    roles = [match.query.role for match in explanation.matches]
    assert roles == ["special", "marker", "text", "text", *["expansion"] * 28]
    assert {match.query.text for match in explanation.matches[4:]} == {"<|im_end|>"}


def test_skipped_tokens_have_no_match(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("red", "mars, (red); planet!")

    found = [token.span for token in explanation.document_tokens if token.span]
    assert found == [(0, 4), (7, 10), (13, 19)]


def test_a_literal_special_token_is_a_word_of_the_text(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("red", "the [MASK] planet")

    assert Token("[MASK]", "text", (4, 10)) in explanation.document_tokens


# What was read


def test_what_is_cut_is_said_and_has_no_span(tiny_colbert: ColBERT) -> None:
    text = "  " + "planet " * 100

    explanation = tiny_colbert.explain("red", text)

    last = max(token.span[1] for token in explanation.document_tokens if token.span)
    # 40 tokens: 37 words beside [CLS], the marker and [SEP].
    assert explanation.text_read == (0, last) == (0, 2 + 37 * 7 - 1)
    assert not explanation.is_window


def test_the_best_window_is_explained_in_places_of_the_whole_text(
    colbert: Callable[..., ColBERT],
) -> None:
    model = colbert("stanford-bert", long_documents="windows")
    text = "saturn rings " * 60 + "mars is the red planet " + "venus storms " * 60
    place = model.rank("which planet is red", [text])

    explanation = place.explain(0)

    assert explanation.is_window
    assert explanation.text_read == place[0].span
    assert explanation.score == pytest.approx(place[0].score, abs=1e-4)
    assert [t for t in explanation.document_tokens if not is_right(t, text, model)] == []
    assert "best window" in str(explanation)


# Asking


def test_explaining_encodes_what_scoring_encodes_and_nothing_more(
    colbert: Callable[..., ColBERT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = colbert("stanford-bert", document_cache=None)
    sizes: list[int] = []
    encode = Encoder.encode

    def counted(self: Encoder, batch: TokenBatch, **options: object) -> object:
        sizes.append(len(batch.ids))
        return encode(self, batch, **options)

    monkeypatch.setattr(Encoder, "encode", counted)
    model.score("red planet", ["mars is red"])
    scoring = sorted(sizes)
    sizes.clear()
    model.explain("red planet", "mars is red")

    assert sorted(sizes) == scoring


def test_the_top_of_a_ranking_is_explained_with_the_vectors_that_ranked_it(
    colbert: Callable[..., ColBERT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = colbert("stanford-bert", document_cache=None)
    texts = [f"{word} is a planet" for word in "mars venus saturn jupiter red".split()] * 4
    ranking = model.rank("which planet is red", texts)
    expected = [place.score for place in ranking[:10]]
    monkeypatch.delattr(Encoder, "encode")

    explanations = [ranking.explain(rank) for rank in range(10)]

    assert [each.score for each in explanations] == pytest.approx(expected, abs=1e-4)
    assert [each.text for each in explanations] == [texts[p.index] for p in ranking[:10]]


def test_places_further_down_are_explained_as_well(tiny_colbert: ColBERT) -> None:
    ranking = tiny_colbert.rank("which planet is red", [f"planet {n}" for n in range(30)])

    assert ranking.explain(29).score == pytest.approx(ranking[29].score, abs=1e-4)
    assert ranking.explain(-1).text == ranking.explain(29).text


def test_there_is_nothing_to_explain_outside_a_ranking(tiny_colbert: ColBERT) -> None:
    ranking = tiny_colbert.rank("planet", ["mars"])

    with pytest.raises(IndexError, match="position 1 is outside the 1 places"):
        ranking.explain(1)
    with pytest.raises(IndexError, match="position -2 is outside the 1 places"):
        ranking[-2]
    assert list(reversed(ranking)) == [ranking[0]] == ranking[:9]


@pytest.mark.parametrize("position", ["0", None, 0.0])
def test_a_position_that_is_no_number_is_refused(position: object, tiny_colbert: ColBERT) -> None:
    ranking = tiny_colbert.rank("planet", ["mars"])

    message = f"position is {position!r}, expected a whole number, counted from 0"
    for read in (ranking.explain, ranking.__getitem__):
        with pytest.raises(TypeError, match=message):
            read(position)  # type: ignore[operator]


def test_a_pickled_ranking_is_small_and_says_how_to_go_on(tiny_colbert: ColBERT) -> None:
    ranking = tiny_colbert.rank("planet", ["mars " * 30] * 20)

    pickled = pickle.dumps(ranking)

    assert len(pickled) < 2000
    assert [*pickle.loads(pickled)] == [*ranking]
    with pytest.raises(ValueError, match=r"Use ColBERT\.explain"):
        pickle.loads(pickled).explain(0)
    assert copy.deepcopy(ranking).explain(0).score == ranking.explain(0).score


@pytest.mark.parametrize("query", ["", "  ", None])
def test_a_query_without_words_is_refused(query: str, tiny_colbert: ColBERT) -> None:
    with pytest.raises(InvalidQueryError):
        tiny_colbert.explain(query, "mars")


def test_a_document_that_is_not_a_text_is_refused(tiny_colbert: ColBERT) -> None:
    with pytest.raises(TypeError, match="text is list, expected a string, or something"):
        tiny_colbert.explain("mars", ["mars"])  # type: ignore[arg-type]


# As plain values


def test_the_dictionary_is_plain_json_and_complete(tiny_colbert: ColBERT) -> None:
    explanation = tiny_colbert.explain("red planet", "Mars is red")

    told = json.loads(json.dumps(explanation.to_dict(), allow_nan=False))

    assert told["text_read"] == [0, 11]
    assert sum(match["similarity"] for match in told["matches"]) == pytest.approx(told["score"])
    assert told["matches"][2]["query"] == {"token": "red", "role": "text", "start": 0, "stop": 3}


def test_what_is_not_a_number_is_null_in_json_and_shown_as_a_dash(tiny_colbert: ColBERT) -> None:
    vectors = torch.full((32, 16), torch.nan), torch.ones(6, 16)

    explanation = Explanation.of(
        "red planet", "mars is red", vectors=vectors, tokenizer=tiny_colbert.tokenizer
    )

    assert json.dumps(explanation.to_dict(), allow_nan=False).count("null") > 32
    assert str(explanation).startswith("Score -:")
    assert "nan" not in explanation._repr_html_().lower().replace("lignan", "")
    assert explanation.best_passage().text == ""


def test_a_document_without_rows_is_explained_too(tiny_colbert: ColBERT) -> None:
    # No tokenizer we know leaves a document without any token; a scorer gives -1 for each row.
    explanation = Explanation.of(
        "red planet",
        "",
        vectors=(torch.eye(16).repeat(2, 1), torch.zeros(0, 16)),
        tokenizer=NoDocuments(tiny_colbert.tokenizer),  # type: ignore[arg-type]
    )

    assert explanation.score == -32
    assert {match.document for match in explanation.matches} == {None}
    assert "nothing to match" in explanation._repr_html_()
    assert str(explanation).startswith("Score -32.0000")


class NoDocuments:
    """Tokenises queries, and says that documents have no tokens."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def spans(self, text: str, kind: str) -> object:
        found = self.tokenizer.spans(text, "query")
        if kind == "document":
            found.batch.scoring[:] = False
        return found


# Words


def tokens(*spans: tuple[int, int]) -> list[Token]:
    return [Token("", "text", span) for span in spans]


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        pytest.param("reranking", [(0, 2), (2, 6), (6, 9)], ["reranking"], id="pieces"),
        pytest.param("red planet", [(0, 3), (4, 10)], ["red", "planet"], id="words"),
        pytest.param("what's", [(0, 4), (4, 5), (5, 6)], ["what's"], id="contraction"),
        pytest.param("what's", [(0, 4), (5, 6)], ["what's"], id="skipped apostrophe"),
        pytest.param("'red'", [(0, 1), (1, 4), (4, 5)], ["'", "red", "'"], id="quoted"),
        pytest.param("6,961 m", [(0, 1), (1, 2), (2, 5), (6, 7)], ["6,961", "m"], id="number"),
        pytest.param("red-hot", [(0, 3), (3, 4), (4, 7)], ["red", "-", "hot"], id="hyphen"),
        pytest.param("red,hot", [(0, 3), (4, 7)], ["red", "hot"], id="skipped comma"),
        pytest.param("東京は", [(0, 2), (2, 3)], ["東京", "は"], id="no spaces"),
        pytest.param("नमस्ते", [(0, 1), (1, 2), (2, 4), (4, 6)], ["नमस्ते"], id="vowel signs"),
        pytest.param("👩\u200d👧", [(0, 1), (1, 2), (2, 3)], ["👩\u200d👧"], id="joined emoji"),
        pytest.param("🪐", [(0, 1)] * 4, ["🪐"], id="bytes of one character"),
    ],
)
def test_tokens_are_joined_to_words(
    text: str, spans: list[tuple[int, int]], expected: list[str]
) -> None:
    found = words(tokens(*spans), text)

    assert [text[start:stop] for start, stop in found] == expected
    assert [row for rows in found.values() for row in rows] == list(range(len(spans)))


# Passages

TEXT = (
    "The Andes are high. Mount Aconcagua rises to 6,961 m (22,838 ft) above the sea. "
    "Chimborazo is farther from the centre. Lamas graze there."
)


def places(text: str, **shares: float) -> list[DocumentUnit]:
    """Words of a text as places, with shares for some."""
    return [
        DocumentUnit(match[0], match.span(), shares.get(match[0], 0.0), ())
        for match in re.finditer(r"\w+", text)
    ]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        pytest.param(280, TEXT[20:118], id="both sentences that carry something"),
        pytest.param(80, TEXT[20:79], id="one sentence of most weight"),
        pytest.param(30, "Mount Aconcagua rises to 6,961", id="words, where no sentence fits"),
        pytest.param(9, "Aconcagua", id="one word"),
        pytest.param(4, "Acon", id="a word that is too long is cut"),
    ],
)
def test_a_passage_is_whole_sentences_or_words(width: int, expected: str) -> None:
    carried = places(TEXT, Mount=0.2, Aconcagua=0.5, Chimborazo=0.1)

    passage = best_passage(TEXT, carried, width)

    assert passage.text == expected == TEXT[passage.start : passage.stop]


def test_where_nothing_in_the_text_matched_the_passage_is_empty(tiny_colbert: ColBERT) -> None:
    passage = tiny_colbert.explain("mars", "").best_passage()

    assert (passage.text, passage.start, passage.stop, passage.share) == ("", 0, 0, 0.0)


def test_a_passage_has_at_least_one_character(tiny_colbert: ColBERT) -> None:
    with pytest.raises(ValueError, match="width is 0, expected at least 1"):
        tiny_colbert.explain("mars", "mars").best_passage(0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "bb,", "c d.", "\n\n", "ee!", "東京。"]), st.integers(0, 9)
        ),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 60),
)
def test_a_passage_keeps_to_its_width_and_carries_nearly_what_can_be_carried(
    parts: list[tuple[str, int]], width: int
) -> None:
    text = " ".join(part for part, _ in parts)
    total = sum(weight for _, weight in parts) or 1
    found = list(re.finditer(r"\w+", text))
    weights = [weight / total for _, weight in parts] * 2
    carried = [
        DocumentUnit(match[0], match.span(), weights[place], ())
        for place, match in enumerate(found[: len(weights)])
    ]

    passage = best_passage(text, carried, width)

    # Every window of whole words that fits: the most that could have been had.
    most = max(
        (
            sum(place.share for place in carried if first <= place.span[0] < place.span[1] <= last)
            for first, _ in (place.span for place in carried)
            for _, last in (place.span for place in carried)
            if first < last <= first + width
        ),
        default=0.0,
    )
    assert len(passage.text) <= width
    assert passage.text == text[passage.start : passage.stop]
    assert passage.share >= 0.8 * most - 1e-9


@pytest.mark.parametrize("text", ["." * 100_000, " " * 100_000, "\n " * 50_000, "a" * 100_000])
def test_no_text_makes_the_search_for_sentences_slow(text: str) -> None:
    # Quadratic time would be hours.
    assert len(best_passage(text, [DocumentUnit("a", (0, 1), 1.0, ())], 50).text) <= 50
