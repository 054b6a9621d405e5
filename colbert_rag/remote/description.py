"""What a server says about its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from colbert_rag.errors import ServerAnswerError
from colbert_rag.remote.answers import VERSIONS, member
from colbert_rag.remote.exchange import Plan
from colbert_rag.remote.replies import Request
from colbert_rag.remote.wire import MODELS
from colbert_rag.settings import Settings

_LONGEST_REASON = 300


def describe(where: str) -> Plan[Mapping[str, Any]]:
    """The description of the model at `where`.

    Raises:
        ServerAnswerError: there is no model.
    """
    answer = yield Request("GET", MODELS)
    models = member(answer, "data", list, where)
    if not models or not isinstance(models[0], Mapping):
        raise ServerAnswerError(f"{where} names no model. {VERSIONS}")
    return models[0]


def read_settings(description: Mapping[str, Any], where: str) -> Settings:
    """How the model was opened there; what this version does not know is left out.

    Raises:
        ServerAnswerError: no model can be opened so.
    """
    said = member(description, "settings", dict, where)
    own = {field.name for field in fields(Settings)} - {"token"}
    chosen = {name: value for name, value in said.items() if name in own}
    if isinstance(words := chosen.get("skiplist"), list):
        chosen["skiplist"] = tuple(words)
    try:
        return Settings(**chosen)
    except (TypeError, ValueError) as error:
        reason = str(error)[:_LONGEST_REASON]  # it quotes what was sent
        raise ServerAnswerError(
            f"{where} says how it opened its model, but {reason}. {VERSIONS}"
        ) from error
