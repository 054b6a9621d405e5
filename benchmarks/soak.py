"""Everything at once, for minutes: is an answer wrong, a commit lost, a call stuck?

One process lives as long as the job, with sixteen threads that share a model and an index; three
others change documents of the same index. They are interrupted and killed at random moments, caches
are too small for the work, weights are unloaded, files replaced, and children forked beside working
threads. What every call gives is compared with what was computed before, or with a journal of what
was committed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import secrets
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

from benchmarks import checkpoints, corpora, soak_readers, soak_writers
from benchmarks.report import Plan, Table
from benchmarks.soak_truth import BOUND, OPTIONS, QUERIES, STUCK, Truth
from colbert_rag import ColBERT
from colbert_rag.index import LocalIndex

WRITERS = 3
TEXTS = 120
SETTLED = 60.0
"""Seconds after which memory must stay as it is."""

FINDINGS = ("wrong", "lost", "stuck")
SHOWN = 12
"""Findings that are shown; all of them are counted."""

SIGNALS = {"interrupt": (0.3, signal.SIGINT), "kill": (2.0, signal.SIGKILL)}
"""Seconds between two, on average; a kill is for a writer."""

SWITCHES = (*SIGNALS, "replace", "remove", "evict", "unload", "fork")
"""What `--without` leaves out."""


def run(plan: Plan) -> Iterator[Table]:
    """Soak, then judge.

    Raises:
        SystemExit: after the table, where anything was wrong, lost or stuck.
    """
    seed = secrets.randbelow(10**6) if plan.seed is None else plan.seed
    print(f"seed {seed}", flush=True)
    torch.set_num_threads(1)  # as in all processes: they are more than the CPUs
    checkpoint = checkpoints.build("tiny")
    tokenizer = checkpoints.open_tokenizer(checkpoint)
    texts = corpora.cut([8 + at % 40 for at in range(TEXTS)], tokenizer)
    with tempfile.TemporaryDirectory() as name:
        truth = Truth.of(checkpoint, Path(name), texts, corpora.questions(QUERIES))
        with LocalIndex(truth.index, ColBERT.from_pretrained(checkpoint, **OPTIONS)) as index:
            index.add(truth.base())
        soak = Soak(truth, seed, frozenset(plan.without))
        soak.go_on(plan.minutes * 60)
        table = judged(soak, plan, seed)
    yield table
    if any(row[kind] for row in table.rows for kind in FINDINGS):
        raise SystemExit(f"soak: found something, with seed {seed}")


@dataclass
class Soak:
    """The processes, and what is done to them.

    Attributes:
        done: How often each disturbance was made.
        memory: MiB of the long-lived process, at each second.
    """

    truth: Truth
    seed: int
    without: frozenset[str]
    done: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    findings: list[dict[str, str]] = field(default_factory=list)

    def go_on(self, seconds: float) -> None:
        """Start, disturb, and stop."""
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([soak_readers.__name__, soak_writers.__name__])
        stop, beats = processes.RawValue("b", 0), processes.RawArray("q", WRITERS)
        shared = (self.truth, self.seed, self.without, stop, beats)
        starts = {"reader": partial(_started, processes, soak_readers.read, *shared)} | {
            f"w{number}": partial(_started, processes, soak_writers.write, number, *shared)
            for number in range(WRITERS)
        }
        running = {role: start() for role, start in starts.items()}
        while not all(self._begun(role, process) for role, process in running.items()):
            time.sleep(0.05)  # seconds, for imports
        rng = random.Random(self.seed)
        due = {name: rng.expovariate(1 / every) for name, (every, _) in SIGNALS.items()}
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            time.sleep(0.05)
            self._sample(running["reader"], now)
            self._disturb(rng, due, now, running)
            for role, process in running.items():
                if process.exitcode is not None:
                    self._mourn(role, process)
                    running[role] = starts[role]()
        stop.value = 1
        for role, process in running.items():
            process.join(BOUND + 5)
            if process.exitcode is None:
                self._find("stuck", role, "had not ended after it was asked to")
                process.kill()
                process.join()
            elif process.exitcode:
                self._mourn(role, process)

    def _sample(self, process: ForkServerProcess, now: float) -> None:
        if len(self.memory) <= now:
            status = Path(f"/proc/{process.pid}/status")
            if status.exists() and "VmRSS:" in (text := status.read_text()):
                self.memory.append(int(text.split("VmRSS:")[1].split()[0]) / 2**10)

    def _disturb(
        self,
        rng: random.Random,
        due: dict[str, float],
        now: float,
        running: dict[str, ForkServerProcess],
    ) -> None:
        for name, (every, number) in SIGNALS.items():
            if now < due[name] or name in self.without:
                continue
            due[name] = now + rng.expovariate(1 / every)
            victims = [role for role in running if role != "reader" or name == "interrupt"]
            role = rng.choice(victims)
            process = running[role]
            # Only when it has begun to count: an interrupt of its imports is no finding.
            if process.exitcode is None and self._begun(role, process):
                assert process.pid is not None
                os.kill(process.pid, number)
                self.done[name] += 1

    def _begun(self, role: str, process: ForkServerProcess) -> bool:
        """Whether it counts; one that ended at once is told as any other end."""
        return self.truth.counts(role, process.pid).exists() or process.exitcode is not None

    def _mourn(self, role: str, process: ForkServerProcess) -> None:
        # One that was stuck has said so itself.
        if process.exitcode not in (-signal.SIGKILL, STUCK):
            self._find("wrong", role, f"the process ended with {process.exitcode}")

    def _find(self, kind: str, role: str, what: str) -> None:
        self.findings.append({"kind": kind, "call": "process", "role": role, "what": what})


def _started(
    processes: ForkServerContext, work: Callable[..., None], *arguments: object
) -> ForkServerProcess:
    process = processes.Process(target=work, args=arguments, daemon=False)
    process.start()
    return process


def judged(soak: Soak, plan: Plan, seed: int) -> Table:
    """All counts, the memory curve, and what was found."""
    table = Table(
        "soak",
        f"Everything at once for {plan.minutes:g} minutes: {soak_readers.THREADS} threads and "
        f"{WRITERS} writing processes, seed {seed}",
    )
    findings = soak.findings + [
        json.loads(line)
        for path in sorted(soak.truth.folder.glob("*.events"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    findings += [
        {"kind": "lost", "call": "at the end", "role": "index", "what": what}
        for what in soak_writers.left(soak.truth, WRITERS)
    ]
    counts: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = {}
    for path in soak.truth.folder.glob("*.counts"):
        found = json.loads(path.read_text(encoding="utf-8"))
        for call, kind, count in found["counts"]:
            counts[call, kind] += count
        for call, seconds in found["slowest"].items():
            slowest[call] = max(slowest.get(call, 0.0), seconds)
    # Findings are written at once, counts each second: a killed process may have lost the last.
    kinds = Counter((finding["call"], finding["kind"]) for finding in findings)
    calls = [*soak_readers.WEIGHTS, *soak_writers.WEIGHTS]
    calls += sorted({call for call, _ in kinds} - {*calls})
    for call in calls:
        table.rows.append(
            {
                "call": call,
                "calls": counts[call, "calls"],
                **{kind: kinds[call, kind] for kind in FINDINGS},
                "refused": counts[call, "refused"],
                "interrupted": counts[call, "interrupted"],
                "slowest, s": slowest.get(call),
            }
        )
    numbers = [key for key in table.rows[0] if key not in ("call", "slowest, s")]
    total = {key: sum(int(str(row[key])) for row in table.rows) for key in numbers}
    table.rows.append({"call": "all", **total, "slowest, s": max(slowest.values(), default=None)})
    table.notes = [*_notes(soak), *_shown(findings)]
    return table


def _notes(soak: Soak) -> Iterator[str]:
    done = ", ".join(f"{count:,} x {name}" for name, count in sorted(soak.done.items()))
    yield f"Signals: {done or 'none'}. Left out: {', '.join(sorted(soak.without)) or 'nothing'}."
    yield (
        f"refused: another writer was at work for 10 s. stuck: no end after {BOUND:g} s. wrong: a "
        "score off by more than 1e-5 for each vector of the query, or anything else than the truth."
    )
    later = soak.memory[int(SETTLED) :]
    if later:
        third = max(len(later) // 3, 1)
        first, last = (sum(part) / len(part) for part in (later[:third], later[-third:]))
        yield (
            f"Memory of the process with {soak_readers.THREADS} threads after the first minute: "
            f"{min(later):.0f} to {max(later):.0f} MiB, a ratio of {max(later) / min(later):.3f}; "
            f"its last third took {last / first:.3f} times its first."
        )
    minutes = [soak.memory[at : at + 60] for at in range(0, len(soak.memory), 60)]
    curve = [f"{sum(part) / len(part):.0f}" for part in minutes]
    yield f"Its memory, the mean of each minute, MiB: {', '.join(curve)}."


def _shown(findings: Sequence[dict[str, str]]) -> Iterator[str]:
    """Each kind of finding with how often it came."""
    first: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        # What differs between two of a kind comes after the place, or is a number.
        what = re.sub(r"\d[\d.e-]*", "~", finding["what"])[:60]
        first.setdefault((finding["kind"], finding["call"], what), []).append(finding["what"])
    most = sorted(first.items(), key=lambda item: -len(item[1]))
    for (kind, call, _), whats in most[:SHOWN]:
        yield f"{len(whats):,} x {kind}, {call}: {' '.join(whats[0].split())[:240]}"
    if len(most) > SHOWN:
        yield f"... and {len(most) - SHOWN} kinds more."
