"""What a number was measured on: threads, versions, hardware, date."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "triton",
    "sentence-transformers",
    "rerankers",
    "llama-index-postprocessor-colbert-rerank",
    "maxsim-cpu",
)
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What decides a processor's speed, among what torch knows of it."""

ROOT = Path(__file__).resolve().parents[1]


def available_cpus() -> list[int]:
    """The CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def restart_with(threads: int) -> None:
    """Give every library the same number of threads, by starting this command again if need be.

    Libraries read these variables when they are loaded, some of them before any code of ours runs.
    """
    wanted = dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"TOKENIZERS_PARALLELISM": "true"}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def pin(threads: int) -> None:
    """Keep to as many CPUs as there are threads, where the system can."""
    cpus = available_cpus()
    if hasattr(os, "sched_setaffinity") and threads < len(cpus):
        os.sched_setaffinity(0, cpus[-threads:])


def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(threads: int) -> dict[str, str]:
    """Everything needed to judge or repeat a measurement."""
    import torch

    import colbert_rag

    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "threads": str(threads),
        "cpu": f"{cpu_name()}, {len(available_cpus())} usable CPUs, {', '.join(cpu_features())}",
        "memory": f"{_memory_bytes() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "colbert_rag": colbert_rag.__version__,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return found | {name: installed(name) or "not installed" for name in PACKAGES}


def _commit() -> str:
    """The commit measured, and whether the tree had other changes; a copy may lack git."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def cpu_features() -> list[str]:
    """Those of `FEATURES` that the processor has."""
    import torch

    # Not in every torch that a GPU machine brings.
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return [name for name in FEATURES if found.get(name)]


def cpu_name() -> str:
    """What the processor calls itself."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown CPU"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
