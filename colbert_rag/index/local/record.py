"""What an index file says of itself: which model made it, and how its vectors are stored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from colbert_rag.codings import CODINGS, FLOAT16, Coding
from colbert_rag.errors import ColBERTRagError
from colbert_rag.index.info import IndexInfo
from colbert_rag.index.local.translation import corrupt

# Beside the model, and only where it is not float16: a process of a version before there were
# others looks at this record before each transaction, and would go on reading and writing float16.
_VECTORS = "vectors"


@dataclass(frozen=True, slots=True)
class Record:
    """One setting of the file, with a checksum in another.

    Attributes:
        info: Which model made the index.
        coding: How its vectors are stored.
    """

    info: IndexInfo
    coding: Coding

    @property
    def text(self) -> str:
        """As it stands in the file."""
        coding = {} if self.coding is FLOAT16 else {_VECTORS: self.coding.name}
        return json.dumps(self.info.to_json() | coding)

    @property
    def settings(self) -> list[tuple[str, str]]:
        """The settings to write."""
        return [("model", self.text), ("checksum", _checksum(self.text))]

    @classmethod
    def of(cls, settings: Mapping[str, str], path: str) -> Record:
        """Read it from the settings of the index at `path`.

        Raises:
            IndexCorruptError: it is not what was written.
        """
        try:
            text = settings["model"]
            if _checksum(text) != settings["checksum"]:
                raise corrupt(path, "its record of which model made it is not what was written")
            values = json.loads(text)
            coding = CODINGS[values.pop(_VECTORS, FLOAT16.name)]
            return cls(IndexInfo.from_json(values, path), coding)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ColBERTRagError):
                raise
            raise corrupt(path, f"its settings are unreadable: {error!r}") from error


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
