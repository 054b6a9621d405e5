"""What the processes of the job `soak` compare with, and how they count."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from colbert_rag import ColBERT
from colbert_rag.index import Document, Hit
from colbert_rag.settings import ModelOptions

BOUND = 60.0
"""Seconds after which a call counts as stuck: a writer waits at most 10 for another one."""

BUSY_TIMEOUT = 10.0
TOLERANCE = 1e-5
"""For a similarity, in float32; a score is a sum of them."""

BASE, OWN, QUERIES = 60, 40, 6
"""Documents that nobody changes, documents of each writer at most, queries."""

CACHE_BYTES = 32 * 2**10
"""About a fifth of what all texts would take, so that the document cache is always evicting."""

OPTIONS: ModelOptions = {"device": "cpu", "dtype": "float32", "document_cache": CACHE_BYTES}


STUCK = 70
"""Exit status of a process that ended itself because a call was stuck."""


class LostError(AssertionError):
    """Something that was committed is not there, or not as of the last commit."""


class StuckError(Exception):
    """Something that does not end."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Answers by one thread of one process, before anything else runs.

    Attributes:
        checkpoint: Of the shared model.
        folder: Where index, journals and counts lie.
        texts: All texts that any document has.
        scores: `(queries, texts)`, by the definition of MaxSim, in double precision.
        stored: The same of vectors in float16, as an index keeps them.
        vectors: Of each text, float32, by a model without a cache that saw one text at a time.
        asked: Vectors of each query.
    """

    checkpoint: Path
    folder: Path
    texts: list[str]
    queries: list[str]
    scores: npt.NDArray[np.float64]
    stored: npt.NDArray[np.float64]
    vectors: list[npt.NDArray[np.float32]]
    asked: list[npt.NDArray[np.float32]]

    @classmethod
    def of(cls, checkpoint: Path, folder: Path, texts: list[str], queries: list[str]) -> Truth:
        """Compute it."""
        model = ColBERT.from_pretrained(checkpoint, **OPTIONS | {"document_cache": None})
        vectors = [model.encode_documents([text])[0].numpy() for text in texts]
        asked = [model.encode_queries([query])[0].numpy() for query in queries]
        halves = [rows.astype(np.float16) for rows in vectors]
        scores, stored = (
            [[_maxsim(query, rows) for rows in documents] for query in asked]
            for documents in (vectors, halves)
        )
        return cls(
            checkpoint,
            folder,
            texts,
            queries,
            np.array(scores),
            np.array(stored),
            vectors,
            asked,
        )

    @property
    def index(self) -> Path:
        """The file that all processes share."""
        return self.folder / "shared.sqlite"

    def counts(self, role: str, process: int | None) -> Path:
        """Where a process keeps its counts, once it has begun."""
        return self.folder / f"{role}-{process}.counts"

    def document(self, source: str, number: int, text: int, turn: int = 0) -> Document:
        """A document whose metadata say everything about it."""
        metadata = {"source": source, "n": number, "text": text, "turn": turn}
        return Document(f"{source}-{number}", self.texts[text], metadata)

    def base(self) -> list[Document]:
        """The documents that nobody changes."""
        return [self.document("base", at, at) for at in range(BASE)]

    def check_document(self, document: Document) -> int:
        """That text and metadata belong together; gives the number of the text."""
        source, number, text, turn = (
            document.metadata[key] for key in ("source", "n", "text", "turn")
        )
        assert document == self.document(source, number, text, turn), (
            f"a mixed document: {document}"
        )
        return text

    def close(self, query: int, found: Sequence[float], expected: Sequence[float]) -> None:
        """That scores are the expected ones."""
        off = np.abs(np.array(found) - np.array(expected)).max(initial=0.0)
        most = TOLERANCE * len(self.asked[query])
        assert len(found) == len(expected), f"{len(found)} scores for {len(expected)} texts"
        assert off <= most, f"a score is off by {off:.2g}"

    def check_hits(self, query: int, hits: Sequence[Hit], k: int, *, base_only: bool) -> None:
        """That hits are whole, scored right, in order, and that no base document is missing."""
        texts = [self.check_document(hit.document) for hit in hits]
        found = [hit.score for hit in hits]
        self.close(query, found, [self.stored[query][text] for text in texts])
        ids = {hit.id for hit in hits}
        assert len(ids) == len(hits), f"a document twice among {sorted(hit.id for hit in hits)}"
        assert found == sorted(found, reverse=True), "not in order"
        assert not base_only or all(hit.metadata["source"] == "base" for hit in hits), "the filter"
        if len(hits) < k:
            least = -np.inf
            assert not base_only or len(hits) == BASE or k <= BASE, f"{len(hits)} base documents"
        else:
            least = found[-1] + TOLERANCE * len(self.asked[query])
        missing = [
            at for at in range(BASE) if self.stored[query][at] > least and f"base-{at}" not in ids
        ]
        if missing and k:
            raise LostError(f"base documents {missing[:5]} are not found")


def _maxsim(query: npt.NDArray[Any], rows: npt.NDArray[Any]) -> float:
    return float((query.astype(np.float64) @ rows.astype(np.float64).T).max(axis=1).sum())


class Record:
    """What one process did: counts by call, kept in a file that survives it, and a watchdog."""

    def __init__(self, truth: Truth, role: str) -> None:
        """Begin to count and to watch."""
        self._counts_file = truth.counts(role, os.getpid())
        events = self._counts_file.with_suffix(".events")
        self._events = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._stacks = self._counts_file.with_suffix(".stacks").open("w")
        self._role = role
        self._counts: Counter[tuple[str, str]] = Counter()
        self._slowest: dict[str, float] = {}
        self._running: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._armed = False
        signal.signal(signal.SIGINT, self._interrupt)
        self.save()
        threading.Thread(target=self._watch, daemon=True).start()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # Only inside a call: an interrupt of our own bookkeeping would be no finding.
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt

    def call(
        self, name: str, job: Callable[[], object], refused: tuple[type[Exception], ...] = ()
    ) -> bool:
        """Run and judge one call, which SIGINT may break off; whether it came to its end."""
        main = threading.current_thread() is threading.main_thread()
        me, start = threading.get_ident(), time.monotonic()
        self._running[me] = (name, start)
        outcome = "calls"
        try:
            try:
                self._armed = self._armed or main
                job()
            finally:
                if main:
                    self._armed = False
        except refused:
            outcome = "refused"
        except KeyboardInterrupt:
            outcome = "interrupted"
        except LostError as error:
            outcome = self.event("lost", name, str(error))
        except StuckError as error:
            outcome = self.event("stuck", name, str(error))
        except Exception as error:
            *_, last = traceback.extract_tb(error.__traceback__)
            place = f"{Path(last.filename).name}:{last.lineno}"
            outcome = self.event("wrong", name, f"{type(error).__name__} at {place}: {error}")
        finally:
            del self._running[me]
        with self._lock:
            self._counts[name, "calls"] += 1
            if outcome != "calls":
                self._counts[name, outcome] += 1
            self._slowest[name] = max(self._slowest.get(name, 0.0), time.monotonic() - start)
        return outcome == "calls"

    def event(self, kind: str, name: str, what: str) -> str:
        """Note a finding, at once and for good."""
        line = json.dumps({"kind": kind, "call": name, "role": self._role, "what": what[:500]})
        os.write(self._events, f"{line}\n".encode())
        return kind

    def save(self) -> None:
        """Write the counts."""
        with self._lock:
            counts = [[*key, count] for key, count in self._counts.items()]
            found = {"counts": counts, "slowest": self._slowest}
            draft = self._counts_file.with_suffix(".draft")
            draft.write_text(json.dumps(found), encoding="utf-8")
            draft.replace(self._counts_file)

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            self.save()
            now = time.monotonic()
            for name, start in list(self._running.values()):
                if now - start > BOUND:
                    faulthandler.dump_traceback(self._stacks, all_threads=True)
                    self.event("stuck", name, f"{name} had not ended after {BOUND:g} s")
                    os._exit(STUCK)


def chosen(rng: random.Random, weights: Mapping[str, float]) -> str:
    """One of the calls."""
    return rng.choices(list(weights), list(weights.values()))[0]


def quiet() -> None:
    """Print nothing of an interrupt in a destructor, nor of what a killed process left."""
    sys.unraisablehook = lambda _: None
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore of the system
