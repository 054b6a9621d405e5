"""The inputs every parity test reads: the list of traps that published tokenizers set."""

from __future__ import annotations

import itertools

_VOCABULARY = "mars venus jupiter saturn is a red planet known for its rings and storms".split()

QUERIES = {
    "plain question": "Which planet is known as the Red Planet?",
    "one character": "a",
    "sixty repeated words": " ".join(["planet"] * 60),
    "accents": "Déjà vu: l'été à Zürich",
    "final sigma": "ΟΔΥΣΣΕΥΣ ΣΟΦΟΣ",
    "dotted capital i": "İstanbul and İzmir",
    "chinese and japanese": "東京 は red 行星",
    "emoji and unknown symbols": "red 🪐 planet ☃ ∮",
    "punctuation only": "?!... --",
    "contraction and parentheses": "what's the planet's (red) colour",
    "spaces inside": "red   planet\tmars\nvenus",
    "absent punctuation": "mars ~ venus ` saturn",
}

# Differences between references start here, so these have expectations of their own.
OUTER_SPACES = {
    "leading spaces": "  which planet is red",
    "trailing spaces": "which planet is red   ",
    "both": "\t which planet is red \n",
}

DOCUMENTS = {
    **QUERIES,
    "one hundred and twenty words": " ".join(itertools.islice(itertools.cycle(_VOCABULARY), 120)),
    "punctuation between words": "mars, the red (planet); is known: for its storms!",
    "empty": "",
    "one word": "mars",
    "another planet": "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
}

# A marker or special token typed by a user.
LITERALS = {
    "pylate query marker": "what is [Q] here",
    "pylate document marker": "what is [D] here",
    "mask": "the [MASK] planet",
    "separator": "mars [SEP] venus",
    "stanford query marker": "mars [unused0] venus",
    "stanford document marker": "[unused1] venus",
    "padding": "mars [PAD] venus",
}
