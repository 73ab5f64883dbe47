"""The operations as few kernels: near the library, interpreted here and on a GPU; what they do not serve, others do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.anatomy.decoder_norm import Norm, norm_of
from inference_pio.compat import has_triton
from tests import tiny
from tests.decoding.conftest import COMPOSED
from tests.decoding.test_step import both

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def near(name: str, dtype: torch.dtype, padded: int, device: str = "cpu") -> None:
    from inference_pio.decoding.fused import FusedOperations

    found, expected = both(name, dtype, padded, FusedOperations(), device)
    tolerance = 2e-5 if dtype == torch.float32 and device == "cpu" else 2e-3 if dtype == torch.float32 else 0.04
    assert (found - expected).abs().max().item() <= tolerance * expected.abs().max().item()


def kernels_used(name: str) -> set[str]:
    """The kernels of ours that one step of a tiny model launches."""
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.kernels.triton import experts, gemv, routing

    used: set[str] = set()
    kept = [(module, function, getattr(module, function)) for module, function in (
        (gemv, "gemv"), (routing, "route"), (experts, "expert_gate_up"), (experts, "expert_down"),
    )]  # fmt: skip
    for module, function, original in kept:
        setattr(module, function, lambda *given, f=function, o=original, **how: used.add(f) or o(*given, **how))
    try:
        both(name, torch.float32, 0, FusedOperations())
    finally:
        for module, function, original in kept:
            setattr(module, function, original)
    return used


ONE_OF_EACH_KIND = ("qwen3", "glm4_moe", "glm4_moe_lite")
IN_TURN = [pytest.param(name, marks=[] if name in ONE_OF_EACH_KIND else pytest.mark.slow) for name in COMPOSED]
"""The interpreter takes seconds a step; models of like parts are left to `make verify`."""


@needs_triton
@pytest.mark.parametrize("padded", [0, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", IN_TURN)
def test_it_is_near_the_library_in_the_interpreter(name: str, padded: int, interpreted: Callable[..., Any]) -> None:
    interpreted(near, name, torch.float32, padded)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSED)
def test_it_is_near_the_library_in_16_bits(name: str, interpreted: Callable[..., Any]) -> None:
    interpreted(near, name, torch.bfloat16, 0)


@needs_triton
@pytest.mark.slow
def test_it_is_our_kernels_that_compute(interpreted: Callable[..., Any]) -> None:
    assert interpreted(kernels_used, "llama") == {"gemv"}
    assert interpreted(kernels_used, "glm4_moe") == {"gemv", "route", "expert_gate_up", "expert_down"}


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPOSED)
def test_it_is_near_the_library_on_a_gpu(name: str, dtype: torch.dtype, padded: int) -> None:
    near(name, dtype, padded, "cuda")


def test_many_rows_are_one_product_of_torchs_where_weights_lie_side_by_side() -> None:
    from inference_pio.anatomy.merged_linears import merge
    from inference_pio.decoding.fused import FusedOperations
    from inference_pio.undo.journal import Journal

    model: Any = tiny.build("llama")
    mlp, norm, x = model.model.layers[0].mlp, norm_of(model.model.norm), torch.randn(9, tiny.HIDDEN)
    assert isinstance(norm, Norm)
    linears = (mlp.gate_proj, mlp.up_proj)
    with torch.no_grad():
        apart = FusedOperations().project(x, linears, norm=norm, gated=True)
        journal = Journal(model)
        with journal.step("merge"):
            merge(journal, linears)
        together = FusedOperations().project(x, linears, norm=norm, gated=True)
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
        behind = FusedOperations().project(together, (mlp.down_proj,), residual=x)
        torch.testing.assert_close(behind, x + mlp(norm.module(x)), rtol=1e-5, atol=1e-6)
