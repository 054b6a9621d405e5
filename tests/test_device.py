"""Which device and which float type: decided by what the machine has."""

from __future__ import annotations

import pytest
import torch

from colbert_rag.device import AUTO_DTYPE, computes_bfloat16, resolve_device, resolve_dtype


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda:99'.*There is: cpu"):
        resolve_device("cuda:99")


def test_a_device_torch_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="device is 'gpu', expected for example 'cpu'"):
        resolve_device("gpu")


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_a_processor_with_bfloat16_uses_it(monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    monkeypatch.delenv(AUTO_DTYPE, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})

    assert resolve_dtype("auto", "cpu") == "bfloat16"


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        # As torch.cpu.get_capabilities() gave them on two machines, and with AMX not hidden.
        pytest.param({"cpu_name": "Intel Xeon", "avx512_fp16": True}, "float32", id="hidden AMX"),
        pytest.param(
            {"cpu_name": "Intel Xeon", "avx512_fp16": True, "amx_bf16": True}, "bfloat16", id="AMX"
        ),
        pytest.param({"cpu_name": "AMD EPYC", "avx512_fp16": False}, "bfloat16", id="EPYC"),
        pytest.param({"cpu_name": "AMD EPYC", "avx512_fp16": True}, "bfloat16", id="later EPYC"),
        pytest.param({"cpu_name": "Intel Xeon"}, "bfloat16", id="Cooper Lake"),
    ],
)
def test_bfloat16_is_used_where_it_is_faster(
    features: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(AUTO_DTYPE, raising=False)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": True, **features}
    )

    assert resolve_dtype("auto", "cpu") == expected


def test_emulated_bfloat16_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # AVX-512 without bf16: oneDNN emulates it, slower than float32 (measured 92 to 108 GFLOP/s).
    monkeypatch.delenv(AUTO_DTYPE, raising=False)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False}
    )

    assert resolve_dtype("auto", "cpu") == "float32"


def test_a_chosen_type_is_kept() -> None:
    assert resolve_dtype("float16", "cpu") == "float16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_environment_decides_what_auto_means(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setenv(AUTO_DTYPE, dtype)

    assert resolve_dtype("auto", "cpu") == dtype
    assert resolve_dtype("float16", "cpu") == "float16"


def test_an_environment_that_names_no_float_type_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(AUTO_DTYPE, "bf16")

    with pytest.raises(ValueError, match="COLBERT_RAG_AUTO_DTYPE is 'bf16', expected one of"):
        resolve_dtype("auto", "cpu")


def test_mps_computes_in_float32() -> None:
    assert not computes_bfloat16("mps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_without_a_number_is_the_current_device() -> None:
    assert resolve_device("cuda") == resolve_device(None) == "cuda:0"
