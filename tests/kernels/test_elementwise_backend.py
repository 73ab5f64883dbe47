"""Triton serves on an NVIDIA GPU of sm_80 or newer, in the dtypes it knows; torch everywhere else."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.elementwise_backend import choose_elementwise_backend, choose_for
from inference_pio.kernels.triton import support

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    choose_elementwise_backend.cache_clear()


@pytest.mark.parametrize(("missing", "wanted"), [(None, "triton"), ("it is too old", "torch")])
def test_a_gpu_has_triton_if_it_can_run_it(missing: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "has_triton", lambda: True)
    monkeypatch.setattr(support, "_device", lambda device: missing)
    assert choose_elementwise_backend(GPU, torch.bfloat16) == wanted
    assert choose_elementwise_backend(GPU, torch.float64) == "torch"
    assert choose_elementwise_backend(CPU, torch.bfloat16) == "torch"
    choose_elementwise_backend.cache_clear()


def test_without_triton_there_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "has_triton", lambda: False)
    assert choose_elementwise_backend(GPU, torch.bfloat16) == "torch"
    choose_elementwise_backend.cache_clear()


def test_a_call_on_a_cpu_goes_to_torch() -> None:
    assert choose_for(torch.zeros(3), None) == "torch"


@pytest.mark.gpu
def test_gpu_a_call_that_wants_gradients_or_mixes_dtypes_goes_to_torch() -> None:
    x = torch.zeros(3, device="cuda")
    assert choose_for(x, x) == "triton"
    assert choose_for(x, x.half()) == "torch"
    assert choose_for(torch.zeros(3, 3, device="cuda").T) == "torch"
    assert choose_for(x, x.clone().requires_grad_()) == "torch"
    with torch.no_grad():
        assert choose_for(x, x.clone().requires_grad_()) == "triton"
