"""Numbers and types in a sentence, in the grammar of English."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things: `1 document`, `2,000 documents`.

    Args:
        number: How many.
        noun: What one of them is called.
        plural: What several are; "" adds an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def kind_of(value: object) -> str:
    """The type of a value with its article: `an int`, `a list`."""
    name = type(value).__name__
    # Not "u", which begins uint8 and UUID as "you" does.
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
