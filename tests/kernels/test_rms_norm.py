"""RMSNorm on torch: the bits of the library, on awkward shapes, in every dtype."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from inference_pio.kernels.rms_norm import add_rms_norm, choose_rms_norm_backend, naive_rms_norm, rms_norm
from tests.kernels.ulps import same_bits, ulps_apart

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 64), (2, 5, 24), (3, 7), (1, 1, 2560), (0, 8), (2, 3, 4, 1)]


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def library(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    norm = LlamaRMSNorm(x.shape[-1], eps)
    norm.weight = torch.nn.Parameter(weight)
    with torch.no_grad():
        return norm(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_has_the_librarys_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = drawn(*shape, dtype=dtype), drawn(shape[-1], dtype=dtype, seed=1)
    for eps in (1e-6, 1e-2):
        assert same_bits(rms_norm(x, weight, eps), library(x, weight, eps))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_definition_differs_by_the_order_of_its_sum_alone(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, ones = drawn(*shape, dtype=dtype), torch.ones(shape[-1], dtype=dtype)
    limit = 4 if dtype == torch.float32 else 1
    assert ulps_apart(naive_rms_norm(x, ones, 1e-6), library(x, ones, 1e-6)) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_addition_before_it_is_rounded_first(dtype: torch.dtype) -> None:
    x, residual, weight = (drawn(2, 5, 24, dtype=dtype, seed=seed) for seed in range(3))
    normed, summed = add_rms_norm(x, residual, weight[0, 0], 1e-6)
    assert same_bits(summed, residual + x)
    assert same_bits(normed, library(residual + x, weight[0, 0], 1e-6))


def test_rows_may_lie_apart_and_the_weight_may_be_wider() -> None:
    x = drawn(2, 5, 30, dtype=torch.bfloat16)[..., :24]
    weight = drawn(24, dtype=torch.float32)
    assert rms_norm(x, weight, 1e-6).dtype == torch.float32
    assert same_bits(rms_norm(x, weight, 1e-6), library(x, weight, 1e-6))


def test_its_inputs_stay_as_they_are_and_gradients_flow() -> None:
    x, weight = drawn(3, 8, dtype=torch.float32), drawn(8, dtype=torch.float32, seed=1)
    kept = x.clone()
    x.requires_grad_()
    weight.requires_grad_()
    ours = torch.autograd.grad(rms_norm(x, weight, 1e-6).square().sum(), (x, weight))
    theirs = torch.autograd.grad(naive_rms_norm(x, weight, 1e-6).square().sum(), (x, weight))
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(x, kept)


def test_the_backend_on_a_cpu_is_torch() -> None:
    assert choose_rms_norm_backend(torch.zeros(2, 3), torch.zeros(3)) == "torch"
