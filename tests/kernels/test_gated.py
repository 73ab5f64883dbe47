"""The gate of an MLP on torch: the bits of the library, given apart or side by side."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from inference_pio.kernels.gated import choose_gated_backend, naive_silu_mul, silu_mul
from tests.kernels.test_rms_norm import DTYPES, drawn
from tests.kernels.ulps import same_bits, ulps_apart


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 96), (2, 5, 13), (3, 1), (0, 8)])
def test_it_has_the_librarys_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate, up = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=1)
    kept = gate.clone(), up.clone()
    assert same_bits(silu_mul(gate, up), ACT2FN["silu"](gate) * up)
    assert same_bits(gate, kept[0])
    assert same_bits(up, kept[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_and_up_may_lie_side_by_side(dtype: torch.dtype) -> None:
    both = drawn(2, 5, 26, dtype=dtype)
    wanted = silu_mul(both[..., :13].contiguous(), both[..., 13:].contiguous())
    assert silu_mul(both).shape == (2, 5, 13)
    assert ulps_apart(silu_mul(both), wanted) <= 2  # torch takes what fills no vector by another exponential


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_definition_differs_by_its_exponential_alone(dtype: torch.dtype) -> None:
    gate, up = drawn(4, 33, dtype=dtype), drawn(4, 33, dtype=dtype, seed=1)
    assert ulps_apart(naive_silu_mul(gate, up), silu_mul(gate, up)) <= (4 if dtype == torch.float32 else 1)
    assert ulps_apart(naive_silu_mul(torch.cat([gate, up], -1)), naive_silu_mul(gate, up)) == 0


def test_gradients_flow() -> None:
    gate, up = (drawn(3, 8, dtype=torch.float32, seed=seed).requires_grad_() for seed in range(2))
    ours = torch.autograd.grad(silu_mul(gate, up).sum(), (gate, up))
    theirs = torch.autograd.grad(naive_silu_mul(gate, up).sum(), (gate, up))
    torch.testing.assert_close(ours, theirs)


def test_the_backend_on_a_cpu_is_torch() -> None:
    assert choose_gated_backend(torch.zeros(2, 4)) == "torch"
