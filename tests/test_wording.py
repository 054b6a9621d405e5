"""Numbers and types in a sentence."""

import uuid

import pytest

from colbert_rag.wording import counted, kind_of


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (0, ("document",), "0 documents"),
        (1, ("document",), "1 document"),
        (2000, ("document",), "2,000 documents"),
        (1, ("query", "queries"), "1 query"),
        (3, ("query", "queries"), "3 queries"),
    ],
)
def test_one_thing_is_singular_and_none_is_not(number: int, words, said: str) -> None:
    assert counted(number, *words) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "an int"),
        (object(), "an object"),
        ("x", "a str"),
        (None, "a NoneType"),
        (uuid.UUID(int=1), "a UUID"),
    ],
)
def test_the_article_of_a_type_is_that_of_its_sound(value: object, said: str) -> None:
    assert kind_of(value) == said
