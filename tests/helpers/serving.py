"""A server in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
LIMIT = 60
"""Seconds after which a test fails instead of waiting for ever."""

LIMITED = """
import dataclasses, sys
from colbert_rag.server import limits

@dataclasses.dataclass(frozen=True, kw_only=True)
class Limited(limits.Limits):
    {}

limits.Limits = Limited
from colbert_rag.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line with other limits."""


@dataclass(frozen=True)
class Running:
    """A server that listens.

    Attributes:
        url: Where.
        process: It.
        said: All that it has written to standard output before it listened.
        log: The file of its standard error.
    """

    url: str
    process: subprocess.Popen[str]
    said: str
    log: Path

    def client(self, **options: object) -> httpx.Client:
        """A client with connections of its own."""
        return httpx.Client(base_url=self.url, timeout=LIMIT, trust_env=False, **options)

    def stop(self) -> int:
        """Ask it to stop, and wait until it has: its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)

    def memory(self) -> int:
        """Bytes of memory that it holds."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def metric(self, name: str, key: str = "") -> float:
        """One of its counts, without labels."""
        with self.client() as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            text = client.get("/metrics", headers=headers).text
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def settled(self, key: str = "") -> None:
        """Wait until nothing runs or waits any more."""
        deadline = time.monotonic() + LIMIT
        while any(self.metric(f"colbert_rag_{it}", key) for it in ("running", "waiting")):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextmanager
def serving(
    folder: Path, *options: object, env: Mapping[str, str] | None = None, limits: str = ""
) -> Iterator[Running]:
    """Start `colbert-rag serve` on a free port, and stop it at the end.

    Args:
        folder: For its log.
        options: Of the command line; which model is among them.
        env: Beside the environment of the tests.
        limits: Fields of `Limits` that no option sets, as of a class, such as "seconds: float = 1".
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    exact = ("--port", "0", "--device", "cpu", "--dtype", "float32")
    started = ["-c", LIMITED.format(limits)] if limits else ["-m", "colbert_rag.cli"]
    command = [sys.executable, *started, "serve", *exact, *map(str, options)]
    # Tiny models are slower on many threads, and the machine may be shared.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    # A shell ignores it for what runs in the background, and a child would inherit that.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
            )
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert process.stdout is not None
    try:
        said = process.stdout.readline() + process.stdout.readline()
        assert said.startswith("Serving at http://"), log.read_text()
        running = Running(said.split()[2], process, said, log)
        yield running
        running.stop()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(LIMIT)
        process.stdout.close()
