"""What a type checker tells a user of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")  # in the group `lint`; the jobs of CI that only test lack it

ROOT = Path(__file__).parents[1]
STRICT = ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir=.mypy_cache/user"]
"""As in a project of a user's: none of our settings, and only errors in the file itself."""


@pytest.mark.slow
def test_mypy_finds_the_mistakes_of_a_user_and_no_others() -> None:
    command = [sys.executable, "-m", "mypy", *STRICT, "tests/typing/user.py"]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.stdout.startswith("Success: no issues found in 1 source file"), run.stdout
