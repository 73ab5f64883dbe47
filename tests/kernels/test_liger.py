"""Our elementwise kernels against those of others (Liger), where both are installed and a GPU is there."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from inference_pio.kernels.gated import silu_mul
from inference_pio.kernels.rms_norm import rms_norm
from inference_pio.kernels.rotary import norm_rotate

pytestmark = pytest.mark.gpu
STEPS = 4
"""Of bfloat16, that two ways to sum may lie apart."""


def liger(module: str, function: str) -> Any:
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed: there is nothing to compare with")
    return getattr(importlib.import_module(f"liger_kernel.ops.{module}"), function).apply


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(len(shape)), device="cuda").bfloat16()


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    near = STEPS * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(found.float(), wanted.float(), rtol=near, atol=near)


@torch.no_grad()
@pytest.mark.parametrize("width", [64, 2560, 5120])
def test_gpu_norms_agree(width: int) -> None:
    x, weight = drawn(3, 17, width), drawn(width)
    theirs = liger("rms_norm", "LigerRMSNormFunction")(x.clone(), weight, 1e-6, 0.0, "llama", False, None)
    assert_near(rms_norm(x, weight, 1e-6), theirs)


@torch.no_grad()
@pytest.mark.parametrize("width", [96, 9728])
def test_gpu_gates_agree(width: int) -> None:
    gate, up = drawn(3, 17, width), drawn(1, 3, 17, width)[0]
    assert_near(silu_mul(gate, up), liger("swiglu", "LigerSiLUMulFunction")(gate.clone(), up.clone()))


@torch.no_grad()
@pytest.mark.parametrize("heads", [(4, 4), (32, 8)], ids=str)
def test_gpu_rotations_agree(heads: tuple[int, int]) -> None:
    query, key = (drawn(2, 33, count, 128) for count in heads)
    angle = torch.rand(1, 33, 64, device="cuda").repeat(1, 1, 2) * 6
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    ours = norm_rotate(query, key, cos, sin)
    copies = [one.transpose(1, 2).clone() for one in (query, key)]
    theirs = liger("rope", "LigerRopeFunction")(*copies, cos, sin)
    for mine, other in zip(ours, theirs, strict=True):
        assert_near(mine, other)
