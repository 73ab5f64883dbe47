"""Few rows go to our kernel where it serves them, more to torch's; both give what the definition says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from inference_pio.compat import has_triton
from inference_pio.kernels import few_rows
from inference_pio.kernels.few_rows import TORCH, TRITON, choose_few_rows_backend, linear, serves_few_rows
from inference_pio.kernels.gemv import naive_gemv
from tests.kernels.triton.conftest import interpreted

__all__ = ["interpreted"]
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SHAPES = [(77,), (1, 77), (8, 77), (2, 3, 77), (1, 1, 1, 77)]


def given(shape: tuple[int, ...], biased: bool, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Any:
    chance = torch.Generator().manual_seed(len(shape))
    x, weight, bias = (torch.randn(size, generator=chance).to(device, dtype) for size in (shape, (13, 77), (13,)))
    return x, weight, bias if biased else None


def near(shape: tuple[int, ...], biased: bool, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> None:
    x, weight, bias = given(shape, biased, device, dtype)
    with pytest.MonkeyPatch.context() as patch:
        if device == "cpu":  # the interpreter stands in for a GPU
            patch.setattr(few_rows, "choose_few_rows_backend", lambda *given: TRITON if serves_few_rows(*given) else "")
        out = linear(x, weight, bias)
    wanted = naive_gemv(x.reshape(-1, 77), [weight], biases=None if bias is None else [bias], rounded=False)
    assert out.shape == (*shape[:-1], 13)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), wanted.view(*shape[:-1], 13), rtol=8e-3, atol=2e-2)


def served(shape: tuple[int, ...]) -> bool:
    return serves_few_rows(*given(shape, True))


@needs_triton
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_definition_in_the_interpreter(shape: tuple[int, ...], interpreted: Callable[..., Any]) -> None:
    interpreted(near, shape, len(shape) % 2 == 0)


@needs_triton
def test_up_to_eight_rows_are_served(interpreted: Callable[..., Any]) -> None:
    assert interpreted(served, (2, 4, 77))
    assert not interpreted(served, (9, 77))
    assert not interpreted(served, (0, 77))


@pytest.mark.parametrize("shape", [*SHAPES, (9, 77), (0, 77)])
def test_here_it_is_torchs_product(shape: tuple[int, ...]) -> None:
    for biased in (False, True):
        x, weight, bias = given(shape, biased)
        assert choose_few_rows_backend(x, weight, bias) == TORCH
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_what_does_not_fit_is_refused_by_torch() -> None:
    x, weight, _ = given((1, 77), False)
    for wrong in (weight[:, :5], weight.float()):
        assert not serves_few_rows(x, wrong)
        with pytest.raises(RuntimeError):
            linear(x, wrong)
    assert not serves_few_rows(x, weight, torch.ones(3).bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (9, 77)])
def test_it_is_the_definition_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = given(shape, True, "cuda", dtype)
    assert choose_few_rows_backend(x, weight, bias) == (TORCH if shape == (9, 77) else TRITON)
    near(shape, True, "cuda", dtype)
