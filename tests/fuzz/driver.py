"""Runs the inputs of a target in a process that can be killed, and says what each one took."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SECONDS, MEBIBYTES = 2.0, 300.0
STUCK = 30.0
"""Seconds after which an input counts as one that never ends."""

ROOM = 4 * 2**30
"""Bytes of address space beyond the idle process, so that no input takes the machine with it."""

MACHINERY = {"__init__", "__main__", "driver"}


def targets() -> list[str]:
    """Every target there is."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in MACHINERY)


def load(name: str) -> ModuleType:
    """A target as its module; a name with a dot is that of a module elsewhere."""
    return import_module(name if "." in name else f"{__package__}.{name}")


def case(target: ModuleType, seed: int, number: int) -> object:
    """Input `number` of `seed`; below zero, a kept one."""
    if number < 0:
        return target.CORPUS[-number - 1]
    return target.draw(random.Random(f"{seed}/{number}"))


@dataclass(frozen=True)
class Outcome:
    """What one input did.

    Attributes:
        seconds: The better of two tries where the first was too slow.
        mebibytes: The most it held above what the process held before.
        defect: In a line, without what differs between inputs of the same defect; "" is none.
        account: The input, and the traceback.
    """

    number: int
    seconds: float = 0.0
    mebibytes: float = 0.0
    defect: str = ""
    account: str = ""


@dataclass
class Report:
    """All inputs of one target."""

    target: str
    seed: int
    inputs: int = 0
    slowest: float = 0.0
    most: float = 0.0
    defects: list[Outcome] = field(default_factory=list)

    def note(self, outcome: Outcome) -> None:
        self.inputs += 1
        self.slowest = max(self.slowest, outcome.seconds)
        self.most = max(self.most, outcome.mebibytes)
        if outcome.defect:
            self.defects.append(outcome)


def numbers(name: str) -> Iterator[int]:
    """The kept inputs first, then new ones without end."""
    yield from range(-1, -len(load(name).CORPUS) - 1, -1)
    number = 0
    while True:
        yield number
        number += 1


def fuzz(
    name: str,
    seed: int,
    chosen: Iterable[int],
    *,
    seconds: float = float("inf"),
    stuck: float = STUCK,
) -> Report:
    """Run inputs of one target until there are no more of them, or `seconds` have passed."""
    report = Report(name, seed)
    with contextlib.closing(Worker(name, stuck)) as worker:
        end = time.monotonic() + seconds  # imports do not count
        for number in chosen:
            if time.monotonic() > end:
                break
            report.note(worker.run(seed, number))
    return report


class Worker:
    """The process that runs the inputs of one target, begun anew when one killed it."""

    def __init__(self, name: str, stuck: float = STUCK) -> None:
        self._name = name
        self._stuck = stuck
        self._start()

    def _start(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=_work, args=(self._name, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # prepared; an EOFError here is a target that cannot be prepared

    def run(self, seed: int, number: int) -> Outcome:
        self._pipe.send((seed, number))
        try:
            if self._pipe.poll(self._stuck):
                return self._pipe.recv()
            defect = f"no end after {self._stuck:g} s"
        except EOFError:
            self._process.join()
            defect = f"the process died with {self._process.exitcode}"
        self._process.kill()
        self.close()
        self._start()
        account = f"{case(load(self._name), seed, number)!r}\n{defect}"
        return Outcome(number, seconds=self._stuck, defect=defect, account=account)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(self._stuck)
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _work(name: str, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends us
    target = load(name)
    target.prepare()
    _limit_memory()
    pipe.send("prepared")
    while (asked := pipe.recv()) is not None:
        pipe.send(_tried(target, *asked))


def _tried(target: ModuleType, seed: int, number: int) -> Outcome:
    chosen = case(target, seed, number)
    outcome = _measured(target, chosen, number)
    limit = getattr(target, "SECONDS", SECONDS)
    if outcome.seconds > limit:  # twice, because the machine may have been busy
        again = _measured(target, chosen, number)
        outcome = min(outcome, again, key=lambda one: one.seconds)
    defect = outcome.defect
    if not defect and outcome.seconds > limit:
        defect = f"took more than {limit:g} s"
    most = getattr(target, "MEBIBYTES", MEBIBYTES)
    if not defect and outcome.mebibytes > most:
        defect = f"took more than {most:g} MiB"
    account = f"{chosen!r}\n{outcome.account}" if defect else ""
    return Outcome(number, outcome.seconds, outcome.mebibytes, defect, account)


def _measured(target: ModuleType, chosen: object, number: int) -> Outcome:
    defect = account = ""
    with tempfile.TemporaryDirectory() as folder:
        held = _held_from_now()
        start = time.perf_counter()
        try:
            target.run(chosen, Path(folder))
        except BaseException as error:  # also SystemExit, which no input may raise
            defect, account = _in_a_line(error), traceback.format_exc()
        seconds = time.perf_counter() - start
        mebibytes = (_peak() - held) / 2**10
    return Outcome(number, seconds, mebibytes, defect, account)


def _in_a_line(error: BaseException) -> str:
    """Type, place and message without its numbers and names: the same for the same defect."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    message = re.sub(r"/\S+|'[^']*'|\"[^\"]*\"|[-+.\w]*\d[-+.\w]*", "~", str(error).split("\n")[0])
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__} at {place}: {message[:100]}"


# Memory, in KiB. Linux can begin a new peak; elsewhere only what exceeds every earlier one shows.

_STATUS = Path("/proc/self/status")


def _held_from_now() -> int:
    if not _STATUS.exists():
        return _peak()
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    if _STATUS.exists():
        return int(_STATUS.read_text().split("VmHWM:")[1].split()[0])
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used // 2**10 if sys.platform == "darwin" else used


def _limit_memory() -> None:
    if _STATUS.exists():
        import resource

        size = int(_STATUS.read_text().split("VmSize:")[1].split()[0]) * 2**10
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
