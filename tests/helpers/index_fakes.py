"""A model for index tests that is quick, deterministic and open to inspection."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from colbert_rag.embeddings import TokenEmbeddings
from colbert_rag.settings import Settings


class WordEncoder:
    """One unit vector per word, drawn from the word itself, behind a first row like [CLS]."""

    def __init__(
        self,
        dim: int = 16,
        *,
        checkpoint: str = "tests/words",
        fingerprint: str = "a" * 64,
        **options: object,
    ) -> None:
        self.settings = Settings(checkpoint=checkpoint, **options)
        self.dim = dim
        self.device = "cpu"
        self.fingerprint = fingerprint
        self.encoded: list[str] = []

    def encode_queries(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        return TokenEmbeddings.from_list([self._rows(text) for text in texts], dim=self.dim)

    def encode_documents(
        self, texts: Sequence[str], *, show_progress: bool = False
    ) -> TokenEmbeddings:
        self.encoded += texts
        return TokenEmbeddings.from_list([self._rows(text) for text in texts], dim=self.dim)

    def _rows(self, text: str) -> Tensor:
        rows = [_draw(word, self.dim) for word in ["[CLS]", *text.split()]]
        # A little of the text in every row, so that equal words in two texts are not exact ties.
        mixed = torch.stack(rows) + 0.1 * _draw(text, self.dim)
        return torch.nn.functional.normalize(mixed, dim=-1)


def _draw(word: str, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
    return torch.nn.functional.normalize(torch.randn(dim, generator=generator), dim=-1)


def naive_maxsim(query: Tensor, document: Tensor) -> float:
    """The definition of MaxSim, one product at a time, in double precision."""
    return sum(
        max(float(torch.dot(row, other)) for other in document.double()) for row in query.double()
    )


WORDS = "mars venus saturn earth moon ring storm dust ice orbit comet crater".split()


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Distinct texts of three to nine words."""
    generator = torch.Generator().manual_seed(seed)
    return [f"{_sentence(generator)} {number}" for number in range(count)]


def _sentence(generator: torch.Generator) -> str:
    length = int(torch.randint(3, 10, (), generator=generator))
    chosen = torch.randint(len(WORDS), (length,), generator=generator).tolist()
    return " ".join(WORDS[at] for at in chosen)
