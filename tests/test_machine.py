"""The line at the end of a test run that says what it ran on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from colbert_rag.device import AUTO_DTYPE
from tests.helpers.machine import machine

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        pytest.param({"avx2": True, "avx512_bf16": True}, "bfloat16", id="bfloat16 in hardware"),
        pytest.param({"avx2": True, "avx512_bf16": False}, "float32", id="without"),
    ],
)
def test_the_line_says_what_auto_means_here(
    features: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(AUTO_DTYPE, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    line = machine()

    assert line.endswith(f"; dtype='auto' is {expected}")
    assert "avx2" in line
    assert ("avx512_bf16" in line) is features["avx512_bf16"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("float32", "dtype='auto' is float32, as COLBERT_RAG_AUTO_DTYPE says"),
        ("bfloat16", "dtype='auto' is bfloat16, as COLBERT_RAG_AUTO_DTYPE says"),
        ("float8", "dtype='auto' fails: the environment variable COLBERT_RAG_AUTO_DTYPE is"),
    ],
)
def test_the_line_says_that_the_environment_decided(
    chosen: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AUTO_DTYPE, chosen)

    assert expected in machine()


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--quiet", "--quiet --quiet --numprocesses 2"])
def test_the_line_stands_once_under_every_run(options: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", *options.split(), "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "tests/test_machine.py", "-k", "auto_means_here"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.count("\nmachine: ") == 1
