"""The RMSNorm kernel against the plain truth: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels import rms_norm as plain
from tests.kernels.test_rms_norm import DTYPES, drawn
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.ulps import same_bits, ulps_apart

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


@dataclass(frozen=True)
class Case:
    """Rows, and how much wider the tensor is that they are cut from."""

    shape: tuple[int, ...]
    cut: int = 0


CASES = [Case((1, 1, 64)), Case((2, 5, 24), cut=6), Case((3, 7)), Case((1, 1, 2560)), Case((0, 8)), Case((2, 3, 2, 1))]


def check(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """With a weight of ones the norm itself is seen: at most one step from torch's, whose sum has another order."""
    from inference_pio.kernels.triton.rms_norm import add_rms_norm, rms_norm

    width = case.shape[-1]
    wider = (*case.shape[:-1], width + case.cut)
    x, residual = (drawn(*wider, dtype=dtype, seed=seed).to(device)[..., :width] for seed in (0, 1))
    weight = drawn(width, dtype=dtype, seed=2).to(device)
    ones = torch.ones_like(weight)
    assert ulps_apart(rms_norm(x, ones, 1e-6), plain.rms_norm(x, ones, 1e-6)) <= 1 + 3 * (dtype == torch.float32)
    assert same_bits(rms_norm(x, weight, 1e-6), weight * rms_norm(x, ones, 1e-6))
    normed, summed = add_rms_norm(x, residual, weight, 1e-6)
    assert same_bits(summed, residual + x)
    assert same_bits(normed, rms_norm(residual + x, weight, 1e-6))


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_rounds_as_the_library_does_in_the_interpreter(
    case: Case, dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, case, dtype)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton import rms_norm as room

    x = torch.zeros(2, 8)
    with pytest.raises(InvalidSetting, match="does not serve here"):
        room.rms_norm(x, torch.ones(8, dtype=torch.float64), 1e-6)
    with pytest.raises(InvalidSetting, match="are not added here"):
        room.add_rms_norm(x, torch.zeros(1, 8), torch.ones(8), 1e-6)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [512, 2560, 5120])
@pytest.mark.parametrize("adds", [False, True])
def test_it_compiles_to_wide_loads_without_spilling(
    capability: int, width: int, adds: bool, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton.rms_norm import add_rms_norm, rms_norm, rms_norm_kernel

    compiler.for_machine(capability, rms_norm_kernel)
    x, weight = torch.zeros(2, width, dtype=torch.bfloat16), torch.ones(width, dtype=torch.bfloat16)
    if adds:
        add_rms_norm(x, x.clone(), weight, 1e-6)
    else:
        rms_norm(x, weight, 1e-6)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["LDG 128"] >= 2 + adds, code
    assert code.counts["STG 128"] >= 1 + adds, code
    assert not code.counts["LDG U16"] + code.counts["LDG"], code


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES, Case((4, 1024, 2560)), Case((1, 512), cut=64), Case((3, 16384))], ids=str)
def test_gpu_it_rounds_as_the_library_does(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "cuda")
