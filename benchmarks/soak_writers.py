"""The processes of the job `soak` that are killed: each changes documents of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, MutableSequence
from ctypes import c_byte
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak_truth import (
    BASE,
    BUSY_TIMEOUT,
    OPTIONS,
    OWN,
    LostError,
    Record,
    Truth,
    chosen,
    quiet,
)
from colbert_rag import ColBERT
from colbert_rag.errors import IndexBusyError, IndexCorruptError, IndexStorageError
from colbert_rag.index import Changes, Document, LocalIndex

WEIGHTS = {
    "add": 5.0,
    "update": 2.0,
    "edit metadata": 2.0,
    "delete": 2.0,
    "delete by filter": 1.0,
    "sync": 1.0,
    "beat": 3.0,
    "compact": 0.2,
    "optimize": 0.3,
    "verify": 0.5,
    "reopen": 1.0,
    "compare": 2.0,
    "replace": 0.5,
    "remove": 0.5,
}

State = tuple[int, int] | None
"""Text and turn of a document; None is no document."""


class Journal:
    """What a writer has begun and what it has finished, in a file that a kill does not touch."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process left; each number may be in one of several states."""
        self.possible: dict[int, set[State]] = {number: {None} for number in range(OWN)}
        self.turn = 0
        if path.exists():
            for line in path.read_text().splitlines():
                self._replay(json.loads(line))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _replay(self, entry: Mapping[str, Any]) -> None:
        self.turn = max(self.turn, entry["turn"])
        for number, state in entry["states"].items():
            before: set[State] = set() if entry["done"] else self.possible[int(number)]
            self.possible[int(number)] = before | {state and (state[0], state[1])}

    def note(self, states: Mapping[int, State], *, done: bool) -> None:
        """Write down what is about to be, or what is."""
        entry = {"turn": self.turn, "states": states, "done": done}
        os.write(self._file, f"{json.dumps(entry)}\n".encode())
        self._replay(json.loads(json.dumps(entry)))

    def known(self) -> dict[int, tuple[int, int]]:
        """The documents there are; all is settled between calls."""
        states = {number: next(iter(some)) for number, some in self.possible.items()}
        return {number: state for number, state in states.items() if state is not None}


class Writer:
    """The calls of one process."""

    def __init__(
        self, truth: Truth, number: int, beats: MutableSequence[int], rng: random.Random
    ) -> None:
        """Go on where the last process of this number ended."""
        self.truth = truth
        self.number = number
        self.source = f"w{number}"
        self.beats = beats
        self.rng = rng
        self.model = ColBERT.from_pretrained(truth.checkpoint, **OPTIONS)
        self.journal = Journal(truth.folder / f"{self.source}.journal")
        self.index = self._opened(truth.index)
        self.calls: Mapping[str, Callable[[], None]] = {
            "add": self.add,
            "update": partial(self.update, texts=True),
            "edit metadata": partial(self.update, texts=False),
            "delete": self.delete,
            "delete by filter": self.delete_by_filter,
            "sync": self.sync,
            "beat": self.beat,
            "compact": self.compact,
            "optimize": self.optimize,
            "verify": self.verify,
            "reopen": self.reopen,
            "compare": self.compare,
            "replace": partial(self.swap, by_new=True),
            "remove": partial(self.swap, by_new=False),
        }

    def _opened(self, path: Path) -> LocalIndex:
        return LocalIndex(path, self.model, busy_timeout=BUSY_TIMEOUT)

    def _drawn(self) -> int:
        return self.rng.randrange(BASE, len(self.truth.texts))

    def _document(self, number: int, state: tuple[int, int]) -> Document:
        return self.truth.document(self.source, number, *state)

    def _changed(self, states: Mapping[int, State], change: Callable[[], object]) -> object:
        """Do it, between two entries of the journal."""
        self.journal.note(states, done=False)
        result = change()
        self.journal.note(states, done=True)
        return result

    def add(self) -> None:
        """New documents, known ones with other texts, and identical ones."""
        numbers = self.rng.sample(range(OWN), self.rng.randint(1, 8))
        known = self.journal.known()
        self.journal.turn += 1
        states = {
            number: known[number]
            if number in known and self.rng.random() < 0.3
            else (self._drawn(), self.journal.turn)
            for number in numbers
        }
        documents = [self._document(number, state) for number, state in states.items()]
        size = self.rng.randint(1, 4)
        changes = self._changed(states, lambda: self.index.add(documents, batch_size=size))
        same = sum(known.get(number) == state for number, state in states.items())
        new = sum(number not in known for number in states)
        assert changes == Changes(new, len(states) - new - same, same), f"{changes}"

    def update(self, *, texts: bool) -> None:
        """Documents that are there, with other texts or other metadata alone."""
        known = self.journal.known()
        self.journal.turn += 1
        states = {
            number: (self._drawn() if texts else known[number][0], self.journal.turn)
            for number in self._picked(known)
        }
        documents = [self._document(number, state) for number, state in states.items()]
        changes = self._changed(states, lambda: self.index.update(documents))
        assert changes == Changes(updated=len(states)), f"{changes}"

    def _picked(self, known: Mapping[int, object]) -> list[int]:
        return self.rng.sample(sorted(known), min(len(known), self.rng.randint(1, 5)))

    def delete(self) -> None:
        """Known and unknown ids."""
        numbers = self.rng.sample(range(OWN), self.rng.randint(1, 5))
        ids = [f"{self.source}-{number}" for number in numbers]
        there = sum(number in self.journal.known() for number in numbers)
        removed = self._changed(dict.fromkeys(numbers), lambda: self.index.delete(ids))
        assert removed == there, f"{removed} removed, of {there}"

    def delete_by_filter(self) -> None:
        """By metadata."""
        start = self.rng.randrange(OWN)
        numbers = [number for number in self.journal.known() if start <= number < start + 4]
        filter = {"source": self.source, "n": {"$gte": start, "$lt": start + 4}}
        removed = self._changed(dict.fromkeys(numbers), lambda: self.index.delete(filter=filter))
        assert removed == len(numbers), f"{removed} removed, of {len(numbers)}"

    def sync(self) -> None:
        """Some new and old documents, and none beside them."""
        known = self.journal.known()
        self.journal.turn += 1
        kept = {number: known[number] for number in known if self.rng.random() < 0.6}
        fresh = self.rng.sample(range(OWN), 4)
        kept |= {number: (self._drawn(), self.journal.turn) for number in fresh}
        documents = [self._document(number, state) for number, state in kept.items()]
        states: dict[int, State] = {number: kept.get(number) for number in {*known, *kept}}
        changes = self._changed(states, lambda: self.index.sync(documents, batch_size=3))
        assert isinstance(changes, Changes)
        assert changes.removed == len(known.keys() - kept.keys()), f"{changes}"

    def beat(self) -> None:
        """Let readers know which commit they must see."""
        self.journal.turn += 1
        self.journal.note({}, done=True)
        self.index.add([self.truth.document(f"beat{self.number}", 0, BASE, self.journal.turn)])
        self.beats[self.number] = self.journal.turn

    def compact(self) -> None:
        """Of what the deletions left."""
        self.index.compact()

    def optimize(self) -> None:
        """Make the level, or bring it up to date."""
        self.index.optimize()

    def verify(self) -> None:
        """The whole file."""
        self.index.verify()

    def reopen(self) -> None:
        """Another handle."""
        # Opened first: an interrupt must not leave a closed one behind.
        before, self.index = self.index, self._opened(self.truth.index)
        before.close()

    def compare(self) -> None:
        """What the index holds with what it must hold; afterwards it is known exactly."""
        found = held(self.truth, self.index)
        own = {number: found.get((self.source, number)) for number in range(OWN)}
        self.journal_agrees(own)

    def journal_agrees(self, own: Mapping[int, State]) -> None:
        """Settle the journal by what is there, and raise where that cannot be."""
        odd = {n: (own[n], some) for n, some in self.journal.possible.items() if own[n] not in some}
        self.journal.note(own, done=True)
        if odd:
            raise LostError(f"{self.source}: found, and what could be: {odd}")

    def swap(self, *, by_new: bool) -> None:
        """A file that is replaced or removed while it is open: refused with words, or safe."""
        folder = self.truth.folder / f"{self.source}-swap"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path, other = folder / "live", folder / "new"
        old = [self.truth.document("old", at, at) for at in range(self.rng.randint(1, 30))]
        new = [self.truth.document("new", at, at) for at in range(self.rng.randint(1, 30))]
        with self._opened(other) as index:
            index.add(new)
        added = self.truth.document("added", 0, BASE)
        with self._opened(path) as live:
            live.add(old)
            other.replace(path) if by_new else path.unlink()
            try:
                done = live.add([added]).added == 1
            except (IndexStorageError, IndexCorruptError, IndexBusyError):
                done = False
            content = new if by_new else old
            if self.rng.random() < 0.5:
                self._check_swapped(path, content, added if done else None)
        self._check_swapped(path, content, added if done else None)

    def _check_swapped(self, path: Path, content: list[Document], added: Document | None) -> None:
        """That a file holds what was put there, and what was said to have been added."""
        if not path.exists():
            found = []
            content = []
        else:
            try:
                with self._opened(path) as index:
                    index.verify()
                    found = list(index)
            except IndexStorageError:
                return  # refused with words
            except IndexCorruptError as error:
                raise LostError(
                    f"a file that was put in place whole is refused: {error}"
                ) from error
        if added is not None and added not in found:
            raise LostError(
                "an add was said to have been stored, and is not in the file of that name"
            )
        found = [document for document in found if document.id != "added-0"]
        if found != content:
            raise LostError(
                f"{len(found)} documents, expected the {len(content)} that were put there"
            )


def held(truth: Truth, index: LocalIndex) -> dict[tuple[str, int], tuple[int, int]]:
    """Everything that an index holds, by source and number; nothing may be there twice."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for document in index:
        text = truth.check_document(document)
        source, number, turn = (document.metadata[key] for key in ("source", "n", "turn"))
        before = found.get((source, number))
        # What another process replaces while we read comes again, further down, in its new state.
        assert before is None or before[1] < turn, f"{document.id} is there twice"
        found[source, number] = text, turn
    missing = [at for at in range(BASE) if ("base", at) not in found]
    if missing:
        raise LostError(f"base documents {missing[:5]} are gone")
    return found


def write(
    number: int,
    truth: Truth,
    seed: int,
    without: frozenset[str],
    stop: c_byte,
    beats: MutableSequence[int],
) -> None:
    """Change at random until `stop`."""
    quiet()
    torch.set_num_threads(1)
    record = Record(truth, f"w{number}")
    writer = Writer(truth, number, beats, random.Random(f"{seed}/{os.getpid()}/{number}"))
    weights = {name: weight for name, weight in WEIGHTS.items() if name not in without}
    settled = False  # a process that was killed has left its last call open
    while not stop.value:
        if not settled:
            settled = record.call("compare", writer.compare)
            if not settled:
                record.call("reopen", writer.reopen)
            continue
        name = chosen(writer.rng, weights)
        settled = record.call(name, writer.calls[name], (IndexBusyError,))
    writer.index.close()
    record.save()


def left(truth: Truth, writers: int) -> Iterator[str]:
    """What is wrong with the index at the end, by a process that took no part."""
    with LocalIndex(truth.index) as index:
        index.verify()
        found = held(truth, index)
    for number in range(writers):
        journal = Journal(truth.folder / f"w{number}.journal")
        for at, some in journal.possible.items():
            if found.get((f"w{number}", at)) not in some:
                yield f"w{number}-{at} is {found.get((f'w{number}', at))}, expected one of {some}"
