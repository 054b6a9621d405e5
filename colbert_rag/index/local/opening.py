"""What an index that is opened is: what its file says, or what a new one is made for."""

from __future__ import annotations

from colbert_rag.codings import DEFAULT, Coding, coding_named
from colbert_rag.errors import IndexMismatchError
from colbert_rag.index.info import IndexInfo, resolve_info
from colbert_rag.index.local.database import Database
from colbert_rag.model import Model


def resolved(
    database: Database,
    colbert: Model | None,
    like: IndexInfo | None,
    token_pooling: float | None,
    coding: Coding | None,
) -> IndexInfo:
    """What the file records; a new one is made for the model that is given.

    Raises:
        IndexMismatchError: the file says something else than the caller.
    """
    new = None
    if colbert is not None or like is not None:
        new = resolve_info(None, colbert, like, token_pooling, database.path)
    stored = database.begin(new, coding or coding_named(DEFAULT))
    if coding is not None and coding is not database.coding:
        raise IndexMismatchError(
            f"{database.path} was made with vectors={database.coding.name!r}, found "
            f"vectors={coding.name!r}. Leave it out to follow the index, or convert the index: "
            f"colbert-rag index --convert {coding.name} --to {database.path}"
        )
    return resolve_info(stored, colbert, like, token_pooling, database.path)
