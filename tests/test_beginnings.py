"""A text far too long is cut before it is tokenised, and its tokens are those of the whole text.

What is expected is always what the tokenizers library makes of the whole text.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from copy import copy
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    normalizers,
    pre_tokenizers,
    processors,
)

from colbert_rag import ColBERT, beginnings
from colbert_rag.beginnings import Seams, read
from colbert_rag.tokenizer import KINDS
from tests.helpers.texts import DOCUMENTS, LITERALS, OUTER_SPACES
from tests.helpers.tiny_tokenizers import TOKENIZERS

# Checkpoints with every kind of tokenizer, and with prompts, lower-casing and stripping.
CHECKPOINTS = [
    "stanford-bert",
    "stanford-roberta",
    "stanford-camembert",
    "stanford-xmod",
    "pylate-bert-prompts",
    "pylate-bert-lower-case",
    "pylate-xlm-roberta",
    "pylate-modernbert-prompts",
    "pylate-eurobert",
    "pylate-lfm2",
    "pylate-qwen3-bidirectional",
    "native-bert-min",
    "flagembedding",
]

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
SPACES = normalizers.Replace(Regex(" {2,}"), "▁")
BY_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
METASPACE = pre_tokenizers.Metaspace

ADDED = (
    AddedToken("[MASK]", lstrip=True, normalized=False),
    AddedToken("[Q] ", normalized=True),
    AddedToken("[D] ", normalized=False),
    AddedToken("ab cd", normalized=False),
    AddedToken("EF gh", normalized=True),
    AddedToken(" i", normalized=True),
    AddedToken("j ", normalized=False),
    AddedToken("]]", normalized=False),
    AddedToken("{X}(", normalized=True),
    AddedToken("<right>", rstrip=True, normalized=False),
    AddedToken("left", lstrip=True, normalized=True),
    AddedToken("w", single_word=True, normalized=False),
    AddedToken("~", single_word=True, normalized=True),
    AddedToken("      ", normalized=True),
    AddedToken("é", normalized=True),
)


def split(pattern: str, behavior: str = "isolated", *, invert: bool = False) -> object:
    return pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)


STEPS: dict[str, tuple[str, object, object]] = {
    "Qwen": ("qwen3", normalizers.NFC(), pre_tokenizers.Sequence([split(QWEN), BY_BYTES])),
    "Llama 3": (
        "eurobert",
        None,
        pre_tokenizers.Sequence([split(LLAMA, "removed", invert=True), BY_BYTES]),
    ),
    "GPT-2": ("roberta", None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "sentencepiece": (
        "unigram",
        normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), SPACES]),
        METASPACE(prepend_scheme="always"),
    ),
    "first word": ("unigram", normalizers.Strip(), METASPACE(prepend_scheme="first")),
    "words": ("wordpiece", normalizers.Lowercase(), pre_tokenizers.Whitespace()),
    "accents": (
        "wordpiece",
        normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]),
        pre_tokenizers.WhitespaceSplit(),
    ),
}
"""A vocabulary with other steps before it, as published tokenizers have them."""


def unchanged(name: str) -> Tokenizer:
    """One of every kind."""
    if name in TOKENIZERS:
        return TOKENIZERS[name]().rules
    model, *steps = STEPS[name]
    made = TOKENIZERS[model]().rules
    made.normalizer, made.pre_tokenizer = steps
    return made


@functools.cache
def tokenizer(name: str, *, added: bool) -> Tokenizer:
    """The same, with added tokens that set traps or without."""
    made = unchanged(name)
    if added:
        # tokenizers panics where nothing is left of one, as `Strip` leaves nothing of spaces.
        tokens = [token for token in ADDED if name != "first word" or token.content.strip()]
        made.add_tokens(tokens)
    return made


KNOWN = [*TOKENIZERS, *STEPS]
DIVIDED = [name for name in KNOWN if name != "first word"]

parts = st.sampled_from(
    [
        *(token.content for token in ADDED),
        *("[CLS]", "[MASK]", "<mask>", "<|mask|>", "<s>", "<", "|", ">", "_", "{x}(", "e", "ef"),
        *("\u0301", "\u0338", "\u200d", "\U0001f468\u200d\U0001f469", "\U0001f3fd", "🇩🇪", "\ufe0f"),
        *(
            "火",
            "東京",
            "は",
            "ア",
            "각",
            "\u1100",
            "\u0600",
            "ß",
            "İ",
            "Σ",
            "ﬁ",
            "²",
            "½",
            "▁",
            "Ġ",
        ),
        *(" ", "  ", "\n", "\r\n", "\t", "\xa0", "\u3000", "\u2028", "\u200b", "\x00", "\x85"),
        *("mars", "is", "red", "Mars", "planet's", "'s", "'S", "12", "3456", "don't", "a.b", "..."),
        *(" mars", " a", " 1", "a b", "x y", "] [", "[[", "{[", '{"a":'),
    ]
)
TRAPS = [*DOCUMENTS.values(), *LITERALS.values(), *OUTER_SPACES.values()]
words = st.sampled_from(" mars is a red Planet s i j w ab cd EF gh 12 345 left don't".split(" "))
texts = st.lists(
    parts | words.map(" {}".format) | words | st.characters() | st.sampled_from(string.printable),
    min_size=8,
    max_size=40,
).map("".join)


def well_formed(text: str) -> str:
    """As it comes to a tokenizer: half a surrogate pair is no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def plain(made: Tokenizer, text: str) -> list[int]:
    return made.encode(text, add_special_tokens=False).ids


def cuts(seams: Seams, text: str) -> set[int]:
    """Every place at which the text may be cut."""
    return {len(seams.beginning(text, place)) for place in range(len(text) // 2)} - {len(text)}


@pytest.mark.parametrize("added", [False, True], ids=["plain", "added"])
@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_tokens_before_a_seam_are_those_of_the_whole_text(
    name: str, added: bool, text: str
) -> None:
    made = tokenizer(name, added=added)
    text = well_formed(text) + "z" * len(text)  # behind which nothing is cut
    whole = plain(made, text)

    for place in cuts(Seams.of(made), text):
        before = plain(made, text[:place])
        assert before == whole[: len(before)], text[:place]


@pytest.mark.parametrize("name", KNOWN)
def test_prose_is_cut_near_where_it_may_be_for_every_tokenizer_that_is_known(name: str) -> None:
    text = "Saturn, the planet (known for its rings), is mistaken for mars. " * 20

    seams = Seams.of(tokenizer(name, added=False))

    assert all(
        place < len(seams.beginning(text, place)) < place + 32 for place in range(len(text) // 2)
    )


@pytest.mark.parametrize(
    "text",
    [
        "x" * 999,
        "東京は" * 333,
        "a\n" * 500,
        "a  b" * 250,
        "👨‍" * 500,
        "é " * 500,
        "a e\u0301" * 250,
        ">=\u0338" * 500,
    ],
)
@pytest.mark.parametrize("name", KNOWN)
def test_the_beginning_of_what_has_no_seam_is_all_of_it(name: str, text: str) -> None:
    assert Seams.of(tokenizer(name, added=False)).beginning(text, 1) == text


def test_marks_are_parted_by_bert_alone() -> None:
    text = '[{"a":' * 200
    parted = {name for name in KNOWN if cuts(Seams.of(tokenizer(name, added=False)), text)}

    assert parted == {"wordpiece", "wordpiece-cased"}


UNKNOWN: dict[str, Callable[[Tokenizer], object]] = {
    "no pre-tokeniser": lambda made: setattr(made, "pre_tokenizer", None),
    "bytes without words": lambda made: setattr(made, "pre_tokenizer", BY_BYTES),
    "spaces that part nothing": lambda made: setattr(made, "pre_tokenizer", METASPACE(split=False)),
    "an expression of its own": lambda made: setattr(made, "pre_tokenizer", split(r"\w+ \w+")),
    "what matches is dropped": lambda made: setattr(made, "pre_tokenizer", split(QWEN, "removed")),
    "bytes before words": lambda made: setattr(
        made, "pre_tokenizer", pre_tokenizers.Sequence([BY_BYTES, pre_tokenizers.Whitespace()])
    ),
    "numbers": lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Digits()),
    "a text to its end": lambda made: setattr(
        made, "normalizer", normalizers.Replace(Regex("a b.*"), "")
    ),
    "another one among others": lambda made: setattr(
        made,
        "normalizer",
        normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")]),
    ),
    "the text twice": lambda made: setattr(
        made, "post_processor", processors.TemplateProcessing(single="$A $A", special_tokens=[])
    ),
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_no_beginning_is_cut_where_a_step_of_the_tokenizer_is_not_known(
    change: Callable[[Tokenizer], object],
) -> None:
    made = TOKENIZERS["modernbert"]().rules
    change(made)
    text = "a b " * 500

    assert Seams.of(made).beginning(text, 1) == text


def test_no_beginning_is_cut_where_a_normaliser_has_a_table_of_its_own_for_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Stands for `Precompiled`, whose table is the checkpoint's, and no library here writes one.
    monkeypatch.setattr(beginnings, "_LOCAL", {"ByteLevel"})
    made = TOKENIZERS["modernbert"]().rules
    made.normalizer = normalizers.ByteLevel()
    text = "a b " * 500

    assert Seams.of(made).beginning(text, 1) == text


@pytest.mark.parametrize("content", ["s i", "a b", " i", "s ", "S I", "s\u3000i"])
def test_no_added_token_is_cut(content: str) -> None:
    made = TOKENIZERS["wordpiece"]().rules
    made.add_tokens([AddedToken(content, normalized=True)])
    text = ("mars is a b s i " * 50)[:-1]
    whole = made.encode(text, add_special_tokens=False)
    added = made.token_to_id(content)
    inside = {
        place
        for (start, stop), number in zip(whole.offsets, whole.ids, strict=True)
        if number == added
        for place in range(start + 1, stop)
    }

    found = cuts(Seams.of(made), text)

    assert inside
    assert found
    assert not found & inside


@pytest.mark.parametrize("name", ["wordpiece", "wordpiece-cased"])
def test_what_follows_an_added_mark_decides_whether_it_is_a_word(name: str) -> None:
    made = TOKENIZERS[name]().rules
    made.add_tokens([AddedToken("~", single_word=True)])
    # Before `_` it is none, as that is a letter to the library; with nothing behind it is.
    text = ("~_(" * 60)[:-1]
    whole = plain(made, text)
    assert plain(made, "~") != plain(made, "~_")[:1]

    found = cuts(Seams.of(made), text)

    assert found
    for place in found:
        before = plain(made, text[:place])
        assert before == whole[: len(before)]


# Parts of whole texts

BACK = ("<right>", "w", "~")
"""Added tokens that look at what is before a part."""


@functools.cache
def without_a_look_back(name: str) -> Tokenizer:
    made = unchanged(name)
    made.add_tokens([token for token in ADDED if token.content not in BACK])
    return made


@pytest.mark.parametrize("name", DIVIDED)
@settings(max_examples=200, deadline=None)
@given(text=texts, size=st.integers(1, 30))
def test_parts_have_the_tokens_of_the_whole_text_where_it_has_them(
    name: str, text: str, size: int
) -> None:
    made = without_a_look_back(name)
    text = well_formed(text)
    whole = made.encode(text, add_special_tokens=False)

    with mock.patch.object(beginnings, "_PART", size):
        parts = list(Seams.of(made).divided(text))

    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for start, part in parts:
        encoding = made.encode(part, add_special_tokens=False)
        ids += encoding.ids
        places += [(start + at, start + stop) for at, stop in encoding.offsets]
    assert "".join(part for _, part in parts) == text
    assert ids == whole.ids
    assert places == whole.offsets


@pytest.mark.parametrize("name", DIVIDED)
def test_a_long_text_is_read_in_short_parts(name: str) -> None:
    text = "mars is red " * 20_000

    lengths = [len(part) for _, part in Seams.of(without_a_look_back(name)).divided(text)]

    assert sum(lengths) == len(text)
    assert max(lengths) < 2**15 + 32


LOOKING_BACK: dict[str, Callable[[Tokenizer], object]] = {
    **{
        token.content: lambda made, token=token: made.add_tokens([token])
        for token in ADDED
        if token.content in BACK
    },
    "a space that is stripped": lambda made: setattr(made, "normalizer", normalizers.Strip()),
    "the first word": lambda made: setattr(
        made, "pre_tokenizer", METASPACE(prepend_scheme="first")
    ),
    "the first place": lambda made: setattr(made, "post_processor", processors.ByteLevel()),
}


@pytest.mark.parametrize("change", LOOKING_BACK.values(), ids=LOOKING_BACK)
def test_only_beginnings_are_cut_where_a_tokenizer_looks_back(
    change: Callable[[Tokenizer], object],
) -> None:
    made = TOKENIZERS["modernbert"]().rules
    change(made)
    text = "a b " * 20_000

    assert list(Seams.of(made).divided(text)) == [(0, text)]
    assert Seams.of(made).beginning(text, 1) == "a b"


# What is read of texts


class Counting:
    """Tokenises, and counts the characters that it is given."""

    def __init__(self, made: Tokenizer) -> None:
        self.tokenizer = made
        self.characters = 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        self.characters += sum(map(len, texts))
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]


LONG = {
    "brackets": "[" * 300_000,
    "nested": '{"text": "mars", "deep": ' + '{"a":' * 60_000,
    "words": "the red planet " * 20_000,
    "words behind a long one": "x" * 3_000 + " the red planet" * 20_000,
    "few tokens at first": "x" * 90 + f"the {'x' * 120} red " * 2_500,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_of_a_text_of_any_length_little_is_read(text: str) -> None:
    made = TOKENIZERS["wordpiece"]().rules
    counting = Counting(made)

    (found,) = read([text], counting, Seams.of(made), 302)

    assert len(found) > 302
    assert found[:302] == made.encode(text).ids[:302]
    assert counting.characters < 50_000


def test_what_fits_and_what_has_no_seam_is_tokenised_whole_and_once() -> None:
    made = TOKENIZERS["wordpiece"]().rules
    counting = Counting(made)
    given = ["", "mars", "the red planet " * 100, "東" * 10_000, "x" * 10_000, ""]

    found = read(given, counting, Seams.of(made), 302)

    assert found == [made.encode(text).ids for text in given]
    assert counting.characters == sum(map(len, given))


def test_a_text_with_few_tokens_is_read_again_until_there_are_enough() -> None:
    made = TOKENIZERS["wordpiece"]().rules
    counting = Counting(made)
    word = "x" * 120  # longer than WordPiece looks into: one token
    text = f"a {word} " * 1_000

    found = read([text, text[:20_000]], counting, Seams.of(made), 302)

    assert found[0][:302] == made.encode(text).ids[:302]
    assert 302 < len(found[0]) < 700
    assert found[1] == made.encode(text[:20_000]).ids
    assert counting.characters < 2 * 50_000


@pytest.mark.parametrize("name", CHECKPOINTS)
@settings(max_examples=60, deadline=None)
@given(given=st.lists(texts | st.sampled_from(TRAPS), max_size=4), each=st.sampled_from([1, 2]))
def test_batches_spans_and_starts_are_those_of_the_whole_texts(
    name: str,
    given: list[str],
    each: int,
    colbert: Callable[..., ColBERT],
) -> None:
    tokenizer = colbert(name, query_length=8, document_length=11).tokenizer
    whole = copy(tokenizer)
    whole._seams = Seams(None)

    with mock.patch.multiple(beginnings, _EACH=each, _PART=8 * each):
        assert tokenizer.starts(given) == whole.starts(given)
        for kind in KINDS:
            found, expected = tokenizer._batch(given, kind), whole._batch(given, kind)
            for field in ("ids", "offsets", "attention", "scoring"):
                assert np.array_equal(getattr(found, field), getattr(expected, field))
            assert found.truncated == expected.truncated
            for text in given:
                spans, all_spans = tokenizer.spans(text, kind), whole.spans(text, kind)
                assert spans.tokens == all_spans.tokens
                assert spans.spans == all_spans.spans
                assert spans.roles == all_spans.roles
