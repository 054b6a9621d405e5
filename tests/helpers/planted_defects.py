"""A fuzz target whose every input is another defect, by its place in the corpus."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

SECONDS = 0.6
MEBIBYTES = 50
CORPUS = ("sound", "raises", "exits", "slow", "large", "dies", "endless", "leaves a file")


def prepare() -> None:
    pass


def draw(rng: random.Random) -> str:
    return rng.choice(("sound", "raises"))


def run(case: str, folder: Path) -> None:
    assert list(folder.iterdir()) == []
    match case:
        case "raises":
            raise KeyError(f"no {random.random()}")
        case "exits":
            sys.exit(3)
        case "slow":
            time.sleep(0.8)
        case "large":
            assert len(b"\1" * (100 * 2**20)) > 0
        case "dies":
            os._exit(7)
        case "endless":
            time.sleep(60)
        case "leaves a file":
            (folder / "left").write_bytes(b"x")
