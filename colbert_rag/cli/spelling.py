"""Messages of the library in the words of the command line: options for arguments of Python."""

from __future__ import annotations

import re
from dataclasses import fields

from colbert_rag.settings import Settings

NOT_OFFERED = {"attend_to_expansion", "skiplist", "document_cache"}
"""Arguments of the library that the command line does not offer."""

SPELLINGS = {
    option.name: f"--{option.name.replace('_', '-')}"
    for option in fields(Settings)
    if option.name not in NOT_OFFERED
} | {
    "checkpoint": "--model",
    "raw_token_embeddings": "--raw",
    "token": "HF_TOKEN in the environment",
    "token_pooling": "--token-pooling",
}
"""What a user types for each argument of the library."""

# A name with a value, or alone if it cannot be a word of English, or first in "device is 'x'".
# Not what is quoted or part of a path: those words are the user's.
_ALONE = "|".join(name for name in SPELLINGS if "_" in name)
_ARGUMENT = re.compile(
    rf"""(?<![\w'"/.-])(?:(?P<given>{"|".join(SPELLINGS)})"""
    r"""=(?P<value>True|False|None|\d+(?:\.\d+)?|'[^']*'|)"""
    rf"""|(?P<alone>{_ALONE})(?![\w'"/]|\.\w))|^(?P<first>{"|".join(SPELLINGS)})(?= is )"""
)


def in_options(message: str) -> str:
    """A message of the library, with the options to type where it names arguments of Python."""
    return _ARGUMENT.sub(_option, message)


def _option(argument: re.Match[str]) -> str:
    option = SPELLINGS[argument["given"] or argument["alone"] or argument["first"]]
    match argument["value"]:
        case None | "" | "True":
            return option
        case "False":
            return f"--no-{option[2:]}"
        case "None":
            return f"no {option}"
        case value:
            return f"{option} {value.strip(chr(39))}"
