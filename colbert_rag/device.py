"""Which device a model runs on, and in which float type."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import torch

from colbert_rag.settings import Settings

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Processor features that multiply bfloat16 in hardware, on x86 and on ARM."""

AUTO_DTYPE = "COLBERT_RAG_AUTO_DTYPE"
"""Environment variable that says what `dtype="auto"` means, instead of what the device is best at:
for processes that must agree to the last digit, and to test one machine's answers on another."""


def resolve_device(device: str | None) -> str:
    """The device to run on: the caller's, else CUDA, else MPS, else the CPU.

    Raises:
        ValueError: the device is not one torch knows, or is not there.
    """
    if device is None:
        if torch.cuda.is_available():
            return f"cuda:{torch.cuda.current_device()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, expected for example 'cpu' or 'cuda:0'") from error
    present: dict[str, bool] = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(wanted.type, False):
        have = [name for name, there in present.items() if there]
        raise ValueError(
            f"device is {device!r}, which this machine or this build of torch does not have. "
            f"There is: {', '.join(have)}"
        )
    if str(wanted) == "cuda":
        # "cuda" and "cuda:0" are one device, and must share one model.
        return f"cuda:{torch.cuda.current_device()}"
    return str(wanted)


def resolve_dtype(dtype: str, device: str) -> str:
    """The float type to compute in; "auto" is the fastest one the device computes natively.

    Raises:
        ValueError: the environment variable `COLBERT_RAG_AUTO_DTYPE` names no float type.
    """
    if dtype != "auto":
        return dtype
    chosen = os.environ.get(AUTO_DTYPE)
    if not chosen:
        return "bfloat16" if computes_bfloat16(device) else "float32"
    if chosen not in TORCH_DTYPES:
        raise ValueError(
            f"the environment variable {AUTO_DTYPE} is {chosen!r}, expected one of "
            f"{', '.join(TORCH_DTYPES)}"
        )
    return chosen


def resolved(settings: Settings) -> Settings:
    """The same settings with device and dtype decided, so that equal choices are equal values.

    Raises:
        ValueError: the device is not there.
    """
    device = resolve_device(settings.device)
    return replace(settings, device=device, dtype=resolve_dtype(settings.dtype, device))


def computes_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware, and faster than float32.

    On x86 without it, oneDNN emulates bfloat16 and is slower than float32, while
    `torch.ops.mkldnn._is_mkldnn_bf16_supported()` still says yes.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if kind == "cpu":
        features = torch.cpu.get_capabilities()
        has = any(features.get(name, False) for name in NATIVE_BFLOAT16)
        return has and not _halves_bfloat16(features)
    return False


def _halves_bfloat16(features: Mapping[str, object]) -> bool:
    """Whether vectors of bfloat16 are multiplied more slowly than those of float32.

    Intel's processors with AMX (from Sapphire Rapids on, the first with avx512_fp16) leave bfloat16
    to it; where a virtual machine hides AMX, what is left reaches 170 GFLOP/s, and float32 320.
    AMD's AVX-512 multiplies bfloat16 twice as fast as float32.
    """
    intel = "AMD" not in str(features.get("cpu_name", ""))
    return bool(intel and features.get("avx512_fp16") and not features.get("amx_bf16"))


def trim_heap() -> None:
    """Give memory that was freed back to the system, where the C library can be asked to.

    glibc keeps what torch frees on a CPU, in pieces that fit batches of another shape badly:
    encoding 5,000 documents took 280 MiB more than its tensors (benchmarks/NOTES.md).
    """
    with suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
