"""The passages and queries of `benchmarks.scale`: real token vectors, and others made of them.

Real token vectors (`offline-minilm`, all four English collections, brought to 96 dimensions by the
principal directions of a sample) come first. A passage beyond them is *made*: the beginning of one
real passage and the end of another of the same collection, cut at random, each vector turned by
noise so that its cosine with the original is about .95.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import corpora
from benchmarks.checkpoints import CACHE
from benchmarks.rankers import minilm
from colbert_rag import TokenEmbeddings
from colbert_rag.index import Document

DIM, ROWS, CHUNK = 96, 32, 2_000
NOISE = 0.33
"""Length of the noise beside a unit vector: a cosine of 1 / sqrt(1 + NOISE ** 2) = .95."""

QUERIES = 100


@dataclass(frozen=True, eq=False, slots=True)
class Pool:
    """All real passages, in an order that mixes the collections.

    Attributes:
        passages: Their vectors, float16.
        texts: Their texts.
        of: `(passages,)`: the number of the collection of each.
        queries: `(QUERIES, ROWS, DIM)`, float32: real queries, their rows repeated with noise.
    """

    passages: TokenEmbeddings
    texts: list[str]
    of: np.ndarray
    queries: Tensor

    def chunk(self, number: int) -> tuple[list[Document], TokenEmbeddings]:
        """Passages `number * CHUNK` and on."""
        random = np.random.default_rng(number)
        real, first = len(self.texts), number * CHUNK
        names = range(first, first + CHUNK)
        spans = [
            [(name, 0, int(self.passages.lengths[name]))] if name < real else self._cut(random)
            for name in names
        ]
        offsets = self.passages.offsets
        rows, lengths, turned = [], [], []
        for name, parts in zip(names, spans, strict=True):
            picked = [torch.arange(a, b) + int(offsets[at]) for at, a, b in parts]
            rows += picked
            lengths.append(sum(map(len, picked)))
            turned.append(name >= real)
        values = self.passages.values[torch.cat(rows)].float()
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(number))
        amount = NOISE * torch.tensor(turned).repeat_interleave(torch.tensor(lengths)).float()
        values = normalize(values + amount[:, None] * normalize(noise, dim=1), dim=1)
        documents = [
            Document(f"p{name}", f"{self.texts[parts[0][0]]} ({name})", {"n": name % 100})
            for name, parts in zip(names, spans, strict=True)
        ]
        return documents, TokenEmbeddings.from_lengths(values.half(), lengths)

    def _cut(self, random: np.random.Generator) -> list[tuple[int, int, int]]:
        first = int(random.integers(len(self.texts)))
        alike = np.flatnonzero(self.of == self.of[first])
        second, where = int(random.choice(alike)), random.random()
        lengths = self.passages.lengths
        end = max(1, round(where * int(lengths[first])))
        begin = min(round(where * int(lengths[second])), int(lengths[second]) - 1)
        return [(first, 0, end), (second, begin, int(lengths[second]))]


def encoded(name: str) -> tuple[TokenEmbeddings, TokenEmbeddings]:
    """Vectors of a collection's passages and queries, encoded once."""
    files = [CACHE / "vectors" / f"{name}.{kind}.safetensors" for kind in ("docs", "queries")]
    if not all(file.exists() for file in files):
        model = minilm()
        found = corpora.collection(name)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        model.encode_queries(list(found.queries.values())).save(files[1])
        vectors = model.encode_documents(list(found.documents.values()), show_progress=True)
        vectors.to(dtype=torch.float16).save(files[0])
    documents, queries = map(TokenEmbeddings.load, files)
    return documents, queries


def narrowed(collections: list[tuple[TokenEmbeddings, TokenEmbeddings]]) -> list[list[Tensor]]:
    """All of them at 96 dimensions, by the principal directions of passages, not centred."""
    random = np.random.default_rng(0)
    sample = torch.cat(
        [
            documents.values[torch.from_numpy(random.choice(len(documents.values), 50_000))].float()
            for documents, _ in collections
        ]
    )
    _, directions = torch.linalg.eigh(sample.T @ sample)
    onto = directions[:, -DIM:].contiguous()
    return [
        [
            torch.cat([normalize(part.float() @ onto, dim=1).half() for part in rows.split(2**17)])
            for rows in (documents.values, queries.values)
        ]
        for documents, queries in collections
    ]


def pool(names: tuple[str, ...]) -> Pool:
    """All passages and some queries of these collections."""
    collections = [encoded(name) for name in names]
    values = narrowed(collections)
    lengths = torch.cat([documents.lengths for documents, _ in collections])
    whole = TokenEmbeddings.from_lengths(torch.cat([rows for rows, _ in values]), lengths)
    texts = [text for name in names for text in corpora.collection(name).documents.values()]
    of = np.repeat(np.arange(len(names)), [len(documents) for documents, _ in collections])
    order = np.random.default_rng(1).permutation(np.flatnonzero(whole.lengths.numpy() > 0))
    generator = torch.Generator().manual_seed(2)
    queries = []
    each = QUERIES // len(names)
    for (_, rows), (_, held) in zip(values, collections, strict=True):
        texts_of = TokenEmbeddings(rows.float(), held.offsets)
        step = len(texts_of) // each
        for at in range(each):
            query = texts_of[at * step]
            again = query[torch.arange(ROWS) % len(query)]
            noise = NOISE * normalize(torch.randn(ROWS, DIM, generator=generator), dim=1)
            noise[: len(query)] = 0
            queries.append(normalize(again + noise, dim=1))
    return Pool(whole[order.tolist()], [texts[at] for at in order], of[order], torch.stack(queries))
