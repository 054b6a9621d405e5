"""What a test run ran on, in one line: numbers in a report mean little without it."""

from __future__ import annotations

import os

from benchmarks.machine import available_cpus, cpu_features, cpu_name


def machine() -> str:
    """Cores, processor, GPU, and what `dtype="auto"` means here."""
    import torch

    from colbert_rag.device import AUTO_DTYPE, resolve_device, resolve_dtype

    device = resolve_device(None)
    parts = [f"{len(available_cpus())} cores {cpu_name()}", " ".join(cpu_features())]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(device))
    try:
        auto = f"is {resolve_dtype('auto', device)}"
    except ValueError as error:  # or the summary of the whole run would be lost
        auto = f"fails: {error}"
    chosen = f", as {AUTO_DTYPE} says" if os.environ.get(AUTO_DTYPE) else ""
    return f"machine: {', '.join(filter(None, parts))}; dtype='auto' {auto}{chosen}"
