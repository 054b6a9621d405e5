"""The one way anything here is timed: interleaved repetitions, each with its CPU time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import available_cpus

LEAST_SECONDS = 0.2
"""A repetition of a shorter job calls it until this long has passed: CPU clocks tick in 10 ms."""

LOST = 0.97
"""A repetition that got less than this share of the CPU time of its job's best one lost the rest
to somebody else."""

OTHERS = 0.1
"""CPUs' worth of other processes' work on our CPUs that disturbs a repetition."""

LEAST_KEPT = 3
"""Below this many undisturbed repetitions, all are kept, and the count says so."""


@dataclass(frozen=True, slots=True)
class Repetition:
    """One measurement.

    Attributes:
        seconds: Wall time of one call.
        busy: CPU time over wall time, of this process and its finished children: at most threads.
        others: The same for everybody else on our CPUs; None where the system does not say.
    """

    seconds: float
    busy: float
    others: float | None


@dataclass(frozen=True, slots=True)
class Timing:
    """All repetitions of one job.

    A job with serial parts cannot keep all threads busy, so that the best repetition of the same
    job, and not the number of threads, is what `busy` is held against. A job that was disturbed
    throughout shows in its `others`.

    Attributes:
        repetitions: In the order they were made.
        on_device: An accelerator did the work, and CPU time says nothing about disturbance.
    """

    repetitions: tuple[Repetition, ...]
    on_device: bool = False

    @property
    def undisturbed(self) -> tuple[Repetition, ...]:
        """Repetitions that had the CPU to themselves."""
        if self.on_device:
            return self.repetitions
        best = max(repetition.busy for repetition in self.repetitions)
        return tuple(
            repetition
            for repetition in self.repetitions
            if repetition.busy >= LOST * best and (repetition.others or 0) <= OTHERS
        )

    @property
    def kept(self) -> tuple[Repetition, ...]:
        """Repetitions that count: the undisturbed ones, where they are enough."""
        undisturbed = self.undisturbed
        return undisturbed if len(undisturbed) >= LEAST_KEPT else self.repetitions

    @property
    def seconds(self) -> float:
        """Median wall time of one call."""
        return statistics.median(repetition.seconds for repetition in self.kept)

    @property
    def best(self) -> float:
        """Shortest wall time of one call."""
        return min(repetition.seconds for repetition in self.kept)

    @property
    def busy(self) -> float:
        """Median CPU time over wall time."""
        return statistics.median(repetition.busy for repetition in self.kept)

    @property
    def disturbed(self) -> str:
        """How many repetitions were disturbed, and whether they were left out."""
        count = len(self.repetitions) - len(self.undisturbed)
        fate = " (kept)" if count and len(self.kept) == len(self.repetitions) else ""
        return f"{count} of {len(self.repetitions)}{fate}"


def interleave(
    jobs: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    least_seconds: float = LEAST_SECONDS,
    finish: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time jobs in turn, A B C A B C, so that a slow minute of the machine meets all of them.

    Args:
        jobs: What to call, by name. The caller has called each once before, on the same shapes.
        repeats: Repetitions of each.
        least_seconds: Shorter jobs are called more than once per repetition.
        finish: Waits for an accelerator; called before and after each repetition.
    """
    found: dict[str, list[Repetition]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            found[name].append(_repeat(job, least_seconds, finish or (lambda: None)))
    return {
        name: Timing(tuple(repetitions), on_device=finish is not None)
        for name, repetitions in found.items()
    }


def _repeat(
    job: Callable[[], object], least_seconds: float, finish: Callable[[], object]
) -> Repetition:
    calls = 0
    finish()
    all_before, own_before, start = _all_cpu(), _own_cpu(), time.perf_counter()
    while calls == 0 or time.perf_counter() - start < least_seconds:
        job()
        finish()
        calls += 1
    wall = time.perf_counter() - start
    own, all_after = _own_cpu() - own_before, _all_cpu()
    others = None
    if all_before is not None and all_after is not None:
        others = max(all_after - all_before - own, 0.0) / wall
    return Repetition(wall / calls, own / wall, others)


def _own_cpu() -> float:
    """CPU seconds of this process, all its threads, and its finished children."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _all_cpu() -> float | None:
    """CPU seconds anybody spent on our CPUs, time stolen by a hypervisor included."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    ours = {f"cpu{number}" for number in available_cpus()}
    ticks = 0
    for line in path.read_text().splitlines():
        name, *fields = line.split()
        if name in ours:
            user, nice, system, _idle, _wait, hard, soft, stolen = map(int, fields[:8])
            ticks += user + nice + system + hard + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
