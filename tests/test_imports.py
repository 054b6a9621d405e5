"""What opening and ranking import: torch, and nothing that waits for seconds beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = ("transformers", "scipy", "sympy", "triton", "torch._dynamo", "torch.distributed")

PROGRAM = """
import json, sys
import torch
torch_alone = set(sys.modules)
from colbert_rag import ColBERT
for folder in sys.argv[1:]:
    model = ColBERT.from_pretrained(folder, device="cpu", dtype="float32")
    assert len(model.rank("mars", ["a red planet", "bread"])) == 2
print(json.dumps(sorted(set(sys.modules) - torch_alone)))
"""


def imported(*folders: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, check=True
    )
    names: list[str] = json.loads(run.stdout)
    return names


def test_ranking_imports_no_framework_and_no_compiler(
    checkpoint: Callable[[str], Path],
) -> None:
    folders = [str(checkpoint(name)) for name in ("stanford-bert", "pylate-modernbert", "jina")]

    found = imported(*folders)

    assert [
        name for name in found if any(name == part or name.startswith(f"{part}.") for part in HEAVY)
    ] == []
    assert "colbert_rag.backbone.transformer" in found


def test_a_folder_is_opened_without_the_hubs_client(checkpoint: Callable[[str], Path]) -> None:
    found = imported(str(checkpoint("stanford-bert")))

    assert "huggingface_hub" not in found


@pytest.mark.parametrize("module", HEAVY)
def test_what_is_looked_for_exists(module: str) -> None:
    """A misspelt name would never be found."""
    run = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, check=False
    )

    assert run.returncode == 0
