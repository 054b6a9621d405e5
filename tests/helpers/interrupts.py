"""Ctrl-C at any line of a call."""

from __future__ import annotations

import dis
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Container, Iterator
from types import CodeType, FrameType
from typing import Any


class Interrupted:
    """Raises KeyboardInterrupt at one line of some files, counted from the start of a call."""

    def __init__(self, at: int, files: Container[str]) -> None:
        self.left, self.files = at, files

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line" and not leaves_a_block(frame):
            self.left -= 1
            if self.left == -1:
                raise KeyboardInterrupt
        return self


def leaves_a_block(frame: FrameType) -> bool:
    """Whether the next instructions call `__exit__(None, None, None)`.

    A tracer is asked before them, but Python looks for signals only after a call: none falls there.
    """
    return frame.f_lasti in exits(frame.f_code)


@functools.cache
def exits(code: CodeType) -> set[int]:
    """Where blocks of `with` are left without an error."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "NOP"]
    found: set[int] = set()
    for place, three in enumerate(zip(steps, steps[1:], steps[2:], strict=False)):
        if all(step.opname == "LOAD_CONST" and step.argval is None for step in three):
            found.add(three[0].offset)
            # With `return`, the value is first put out of the way.
            if place and steps[place - 1].opname == "SWAP":
                found.add(steps[place - 1].offset)
    return found


def at_every_line(call: Callable[[], object], files: Container[str]) -> Iterator[KeyboardInterrupt]:
    """Run a call again and again, interrupted one line of `files` later each time, to its end."""
    for at in itertools.count():
        before = sys.gettrace()
        sys.settrace(Interrupted(at, files))
        try:
            call()
        except KeyboardInterrupt as error:
            sys.settrace(before)
            yield error
        else:
            sys.settrace(before)
            return


def elsewhere(call: Callable[[], object]) -> object:
    """What a call gives in another thread; one that hangs fails."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(10)
    assert found, "the call hangs in another thread"
    return found[0]
