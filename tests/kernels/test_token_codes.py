"""Activations in eight bits against their definition: codes within half a step, whatever a token holds."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels import token_codes
from inference_pio.kernels.fp8 import FP8
from inference_pio.kernels.token_codes import choose_token_backend, code_tokens, naive_code_tokens

KINDS = [torch.int8, FP8]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_are_within_half_a_step_and_the_largest_is_used(kind: torch.dtype, dtype: torch.dtype) -> None:
    x = (seeded(19, 77) * torch.logspace(-3, 3, 19)[:, None]).to(dtype)
    codes, scale = code_tokens(x, kind)
    assert (codes.dtype, scale.dtype, codes.shape, scale.shape) == (kind, torch.float32, x.shape, (19,))
    error = (codes.float() * scale[:, None] - x.float()).abs()
    step = scale[:, None] * (0.5 if kind is torch.int8 else 2**-10)
    relative = 0 if kind is torch.int8 else 0.0626
    assert (error <= torch.maximum(x.float().abs() * relative, step * 1.0001)).all()
    assert (codes.float().abs().amax(1) == {torch.int8: 127, FP8: 448}[kind]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_nothing_stay_harmless_and_no_number_stays_none(kind: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [1e-44, 0.0]])
    codes, scale = code_tokens(x, kind)
    assert (codes[0].float().tolist(), scale[0]) == ([0.0, 0.0], 1)
    assert not scale[1].isfinite()
    assert not scale[2].isfinite()
    assert scale[3] > 0
    assert [part.shape for part in code_tokens(torch.empty(3, 0), kind)] == [(3, 0), (3,)]
    assert code_tokens(torch.empty(0, 4), kind)[0].shape == (0, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_the_same_codes(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = seeded(50, 33)
    whole = code_tokens(x, kind)
    monkeypatch.setattr(token_codes, "BLOCK_ELEMENTS", 100)
    for one, other, naive in zip(whole, code_tokens(x, kind), naive_code_tokens(x, kind), strict=True):
        assert torch.equal(one.float(), other.float())
        assert torch.equal(one.float(), naive.float())


def test_a_cpu_has_no_kernel_of_ours() -> None:
    assert choose_token_backend(torch.ones(2, 4), torch.int8) == "torch"
