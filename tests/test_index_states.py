"""`LocalIndex` against a dictionary, through whatever order of calls hypothesis thinks of.

COLBERT_RAG_STATES=5000 tries that many sequences, other ones each time; `make test` a fixed few.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from colbert_rag.errors import IndexStorageError
from colbert_rag.index import Changes, Document, LocalIndex, copy_index
from colbert_rag.index.local.level import effort
from tests.helpers.index_fakes import WORDS, WordEncoder, naive_maxsim

EXAMPLES = int(os.environ.get("COLBERT_RAG_STATES", "0"))
IDS = "abcdef"
SOURCES = ("s0", "s1", "s2")
TEXTS = [" ".join(WORDS[at : at + 1 + at % 4]) for at in range(6)] + [""]
QUERIES = ("mars storm", "earth", "ring of ice")
ENCODER = WordEncoder(dim=8)

FILTERS = (
    ({"source": "s0"}, lambda metadata: metadata["source"] == "s0"),
    ({"n": {"$gte": 2}}, lambda metadata: metadata.get("n") is not None and metadata["n"] >= 2),
    ({"$not": {"source": "s1"}}, lambda metadata: metadata["source"] != "s1"),
    ({"n": {"$in": [0, 3]}}, lambda metadata: metadata.get("n") in (0, 3)),
)

documents = st.builds(
    Document,
    st.sampled_from(IDS),
    st.sampled_from(TEXTS),
    st.fixed_dictionaries(
        {"source": st.sampled_from(SOURCES)},
        optional={"n": st.one_of(st.integers(0, 3), st.none()), "ä": st.just(["ü", {}])},
    ),
)
lists = st.lists(documents, max_size=6)
which = st.integers(0, 1)
"""Two handles on one file; either may be used at any step."""


@pytest.fixture(autouse=True, scope="module")
def by_level() -> Iterator[None]:
    """Where a search may use the level it does, though that saves nothing with so few documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effort, "_WORTH", 0)
        yield


@functools.cache
def vectors(text: str) -> torch.Tensor:
    """As they are stored: none of a text without words."""
    rows = ENCODER.encode_documents([text])[0].to(torch.float16)
    return rows if text else rows[:0]


@functools.cache
def score(query: str, text: str) -> float:
    return naive_maxsim(ENCODER.encode_queries([query])[0], vectors(text).float())


class States(RuleBasedStateMachine):
    """The index, and `held`: what must be in it, in order of insertion."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.files = itertools.count()
        self.held: dict[str, Document] = {}

    @initialize()
    def start(self) -> None:
        self.path = self.new_path()
        self.handles = [self.opened(), self.opened()]

    def new_path(self) -> Path:
        return self.folder / f"{next(self.files)}"

    def opened(self) -> LocalIndex:
        return LocalIndex(self.path, WordEncoder(dim=8), busy_timeout=0.1)

    def teardown(self) -> None:
        for handle in getattr(self, "handles", []):
            handle.close()
        shutil.rmtree(self.folder)

    # The dictionary

    def stored(self, given: Iterable[Document]) -> Changes:
        """Store documents in the dictionary."""
        changes = Changes()
        for document in given:
            before = self.held.get(document.id)
            if before is None:
                changes += Changes(added=1)
            elif before == document:
                changes += Changes(unchanged=1)
            else:
                changes += Changes(updated=1)
            if before is not None and before.text != document.text:
                del self.held[document.id]  # it counts as inserted anew
            self.held[document.id] = document
        return changes

    def removed(self, ids: Iterable[str]) -> int:
        return sum(self.held.pop(name, None) is not None for name in set(ids))

    # What changes both

    @rule(at=which, given=lists, size=st.integers(1, 3))
    def add(self, at: int, given: list[Document], size: int) -> None:
        changes = self.handles[at].add(given, batch_size=size)

        assert changes == self.stored(given)

    @rule(at=which, given=lists, size=st.integers(1, 3))
    def add_and_fail(self, at: int, given: list[Document], size: int) -> None:
        def failing() -> Iterator[Document]:
            yield from given
            raise EOFError

        with pytest.raises(EOFError):
            self.handles[at].add(failing(), batch_size=size)

        for batch in whole_batches(given, size):
            self.stored(batch)

    @rule(at=which, given=lists)
    def add_encoded(self, at: int, given: list[Document]) -> None:
        given = list({document.id: document for document in given}.values())
        encoded = ENCODER.encode_documents([document.text for document in given])

        changes = self.handles[at].add_encoded(given, encoded)

        assert changes == self.stored(given)

    @rule(at=which, given=lists)
    def update(self, at: int, given: list[Document]) -> None:
        if all(document.id in self.held for document in given):
            assert self.handles[at].update(given) == self.stored(given)
        else:
            with pytest.raises(KeyError):
                self.handles[at].update(given)

    @precondition(lambda self: self.held)
    @rule(at=which, data=st.data())
    def edit_metadata(self, at: int, data: st.DataObject) -> None:
        before = data.draw(st.sampled_from(list(self.held.values())))
        after = replace(before, metadata=data.draw(documents).metadata)

        assert self.handles[at].update([after]) == self.stored([after])

    @rule(at=which, ids=st.lists(st.sampled_from(IDS), max_size=4))
    def delete(self, at: int, ids: list[str]) -> None:
        assert self.handles[at].delete(ids) == self.removed(ids)

    @rule(at=which, chosen=st.sampled_from(FILTERS))
    def delete_by_filter(self, at: int, chosen: tuple) -> None:
        filter, passes = chosen
        gone = [document.id for document in self.held.values() if passes(document.metadata)]

        assert self.handles[at].delete(filter=filter) == self.removed(gone)

    @rule(at=which, given=lists, named=st.lists(st.sampled_from(SOURCES), max_size=2))
    def sync(self, at: int, given: list[Document], named: list[str]) -> None:
        changes = self.handles[at].sync(given, sources=named, batch_size=2)

        expected = self.stored(given)
        sources = {*named, *(document.metadata["source"] for document in given)}
        kept = {document.id for document in given}
        gone = [
            document.id
            for document in self.held.values()
            if document.metadata["source"] in sources and document.id not in kept
        ]
        assert changes == expected + Changes(removed=self.removed(gone))

    # What changes neither

    @rule(at=which)
    def reopen(self, at: int) -> None:
        self.handles[at].close()
        self.handles[at] = self.opened()

    @rule(at=which)
    def through_a_pickle(self, at: int) -> None:
        again = pickle.loads(pickle.dumps(self.handles[at]))
        self.handles[at].close()
        self.handles[at] = again

    @rule(at=which)
    def compact(self, at: int) -> None:
        self.handles[at].compact()

    @rule(at=which)
    def optimize(self, at: int) -> None:
        self.handles[at].optimize()

    @rule(at=which)
    def verify(self, at: int) -> None:
        self.handles[at].verify()

    @rule(at=which, size=st.integers(1, 3))
    def go_on_with_a_copy(self, at: int, size: int) -> None:
        source, before = self.handles[at], self.handles
        self.path = self.new_path()
        with LocalIndex(self.path, like=source.info) as target:
            assert copy_index(source, target, batch_size=size) == Changes(added=len(self.held))
        self.handles = [self.opened(), self.opened()]
        for handle in before:
            handle.close()

    @rule(given=lists)
    def refuse_to_write_where_only_reading_was_asked_for(self, given: list[Document]) -> None:
        with LocalIndex(self.path, WordEncoder(dim=8), read_only=True) as index:
            with pytest.raises(IndexStorageError):
                index.add(given)
            assert list(index) == list(self.held.values())

    # What is compared

    @rule(
        at=which,
        query=st.sampled_from(QUERIES),
        k=st.integers(1, 9),
        chosen=st.one_of(st.none(), st.sampled_from(FILTERS)),
    )
    def search(self, at: int, query: str, k: int, chosen: tuple | None) -> None:
        self.check_search(self.handles[at], query, k, *(chosen or (None, lambda metadata: True)))

    def check_search(
        self, index: LocalIndex, query: str, k: int, filter: dict | None, passes: Callable
    ) -> None:
        passing = [
            document
            for document in self.held.values()
            if document.text and passes(document.metadata)
        ]
        # A stable sort: equal texts keep the order of insertion.
        passing.sort(key=lambda document: -score(query, document.text))

        hits = index.search(query, k, filter)

        assert [hit.document for hit in hits] == passing[:k]
        for hit in hits:
            assert abs(hit.score - score(query, hit.text)) < 1e-5 * hit.query_rows
        # By its level, if there is one: of so few documents all are scored.
        by_level = index.search(query, k, filter, exact=False)
        assert [hit.score for hit in by_level] == pytest.approx(
            [hit.score for hit in hits], abs=1e-4
        )
        for hit in by_level:
            assert hit.document in passing
            assert abs(hit.score - score(query, hit.text)) < 1e-5 * hit.query_rows

    @rule(at=which, ids=st.lists(st.sampled_from(IDS), max_size=4))
    def get(self, at: int, ids: list[str]) -> None:
        index = self.handles[at]
        if all(name in self.held for name in ids):
            assert index.get(ids) == [self.held[name] for name in ids]
            found = index.embeddings(ids)
            assert len(found) == len(ids)
            for name, rows in zip(ids, found, strict=True):
                assert torch.equal(rows, vectors(self.held[name].text))
        else:
            with pytest.raises(KeyError):
                index.get(ids)
            with pytest.raises(KeyError):
                index.embeddings(ids)

    @rule(at=which)
    def vectors_by_text(self, at: int) -> None:
        found = self.handles[at].embeddings_for(TEXTS)

        assert found.keys() == {document.text for document in self.held.values()} - {""}
        assert all(torch.equal(rows, vectors(text)) for text, rows in found.items())

    @precondition(lambda self: hasattr(self, "handles"))
    @invariant()
    def both_handles_show_the_same(self) -> None:
        for index in self.handles:
            assert list(index) == list(self.held.values())
            assert index.count() == len(self.held)
            # What a handle holds in memory must follow each change, also one by the other handle.
            self.check_search(index, QUERIES[0], 3, *FILTERS[1])
        stats = self.handles[0].stats()
        tokens = sum(len(vectors(document.text)) for document in self.held.values())
        assert (stats.documents, stats.tokens) == (len(self.held), tokens)


def whole_batches(given: list[Document], size: int) -> Iterator[list[Document]]:
    """Documents that are committed before the next is asked for: full batches, and those that
    end where an id comes again."""
    batch: list[Document] = []
    for document in given:
        if document.id in {one.id for one in batch}:
            yield batch
            batch = []
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []


States.TestCase.settings = settings(
    max_examples=EXAMPLES or 25,
    stateful_step_count=40 if EXAMPLES else 20,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestStates = States.TestCase
