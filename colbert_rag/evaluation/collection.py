"""A judged collection: documents, queries, and which of them belong together."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from colbert_rag.errors import EvaluationError, ReadingError
from colbert_rag.evaluation.files import (
    CORPUS,
    QUERIES,
    read_corpus,
    read_judgements,
    read_queries,
)

SHOWN_IDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCollection:
    """What systems are measured on.

    Attributes:
        name: What it is called.
        judgements: Grade by document id, for each query that counts: those that are judged, have a
            text, and have at least one relevant document.
        queries: Text by query id; empty where nothing but finished runs is compared.
        documents: Text by document id; empty likewise.
        notes: What was left out, and why.
    """

    name: str
    judgements: Mapping[str, Mapping[str, int]]
    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        judgements: Mapping[str, Mapping[str, int]],
        queries: Mapping[str, str] | None = None,
        documents: Mapping[str, str] | None = None,
    ) -> JudgedCollection:
        """Put the parts together, and see whether they belong together.

        Args:
            name: What it is called.
            judgements: Grade by document id, by query id; above 0 is relevant.
            queries: Text by query id; those that are not judged are left out.
            documents: Text by document id.

        Raises:
            EvaluationError: no query or no document of the judgements is in the other parts, or
                no document is relevant.
        """
        queries, documents = queries or {}, documents or {}
        notes = []
        relevant = {
            query: any(grade > 0 for grade in judgements[query].values()) for query in judgements
        }
        counted = [query for query in judgements if relevant[query]]
        if not counted:
            raise EvaluationError(
                f"{name}: no document is judged relevant, which is a grade of 1 or more"
            )
        if len(counted) < len(judgements):
            notes.append(
                f"{len(judgements) - len(counted):,} of {len(judgements):,} judged queries have no "
                "relevant document and are left out: no system can answer them"
            )
        if queries:
            asked = [query for query in counted if query in queries]
            if not asked:
                raise EvaluationError(
                    f"{name}: none of the {len(counted):,} judged queries is among the "
                    f"{len(queries):,} queries: judged are {some(counted)}, the queries are "
                    f"{some(queries)}. Are these the judgements of these queries?"
                )
            if len(asked) < len(counted):
                gone = [query for query in counted if query not in queries]
                notes.append(
                    f"{len(gone):,} judged queries have no text and are left out, such as "
                    f"{some(gone)}"
                )
            counted = asked
        if documents:
            notes += _missing_documents(name, judgements, counted, documents)
        return cls(
            name=name,
            judgements={query: judgements[query] for query in counted},
            queries={query: queries[query] for query in counted} if queries else {},
            documents=documents,
            notes=tuple(notes),
        )

    @classmethod
    def read(cls, folder: str | Path, *, split: str = "test") -> JudgedCollection:
        """A folder in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`.

        Args:
            folder: Where they are.
            split: Which judgements; a lone `qrels.tsv` in the folder is taken instead, if there is
                no folder `qrels`.

        Raises:
            EvaluationError: the parts do not belong together.
            ReadingError: a file is missing, or is not what it should be.
        """
        folder = Path(folder)
        layout = (
            f"a collection is a folder with {CORPUS}, {QUERIES} and qrels/{split}.tsv, as BEIR has "
            "them. Other names can be given one by one"
        )
        if folder.is_file():
            raise ReadingError(f"{folder} is a file, expected a folder: {layout}")
        qrels = folder / "qrels" / f"{split}.tsv"
        if not qrels.parent.is_dir():
            qrels = folder / "qrels.tsv"
        for path in (folder / CORPUS, folder / QUERIES, qrels):
            if not path.is_file():
                raise ReadingError(f"{path} is missing: {layout}")
        return cls.of(
            folder.resolve().name,
            read_judgements(qrels),
            read_queries(folder / QUERIES),
            read_corpus(folder / CORPUS),
        )

    def sample(self, count: int, *, seed: int = 0) -> JudgedCollection:
        """The same collection with some of its queries, chosen at random.

        The first ones of a file would be a poor choice: files are often in the order of topics.
        """
        if count >= len(self.judgements):
            return self
        chosen = set(random.Random(seed).sample(sorted(self.judgements), count))
        return replace(
            self,
            judgements={
                query: self.judgements[query] for query in self.judgements if query in chosen
            },
            queries={query: self.queries[query] for query in self.queries if query in chosen},
            notes=(
                *self.notes,
                f"{count:,} of {len(self.judgements):,} queries, chosen at random (seed {seed})",
            ),
        )

    def needs_texts(self, system: str) -> None:
        """Refuse to run a system where there is nothing but judgements.

        Raises:
            EvaluationError: queries or documents are missing.
        """
        if not self.queries or not self.documents:
            raise EvaluationError(
                f"{system} needs the texts of queries and documents, and {self.name} has "
                "judgements alone: only finished runs can be compared with them"
            )


def some(names: Iterable[str]) -> str:
    """The first of some ids, as an example."""
    shown: list[str] = []
    for name in names:
        if len(shown) == SHOWN_IDS:
            return ", ".join([*shown, "..."])
        shown.append(repr(name))
    return ", ".join(shown)


def _missing_documents(
    name: str,
    judgements: Mapping[str, Mapping[str, int]],
    queries: Iterable[str],
    documents: Mapping[str, str],
) -> list[str]:
    relevant = dict.fromkeys(
        document for query in queries for document, grade in judgements[query].items() if grade > 0
    )
    gone = [document for document in relevant if document not in documents]
    if len(gone) == len(relevant):
        raise EvaluationError(
            f"{name}: none of the {len(relevant):,} relevant documents is in the corpus: judged "
            f"are {some(relevant)}, the corpus has {some(documents)}. Are these the judgements of "
            "this corpus?"
        )
    if not gone:
        return []
    return [
        f"{len(gone):,} of {len(relevant):,} relevant documents are not in the corpus, such as "
        f"{some(gone)}: nothing can find them, and they count as missed"
    ]
