"""What a forked child comes to, in bounded time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
beside_threads = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)

HUNG = -1
"""What `in_child` gives for a child that had not ended."""


def in_child(check: Callable[[], object], limit: float = 30.0) -> int:
    """Fork; 0 where `check()` is true in the child, 1 where it is not, 2 where it raises."""
    child = os.fork()
    if not child:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return ended(child, limit)


def ended(child: int, limit: float = 30.0) -> int:
    """Wait for a child, and kill it where it hangs."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return HUNG
