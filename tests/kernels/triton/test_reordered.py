"""The reordering RMSNorm against the plain truth: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels import rms_norm as plain
from tests.kernels.test_reordered import drawn
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SHAPES = [(1, 64), (3, 7), (2, 24), (0, 8), (5, 1), (1, 2560)]


def check(shape: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    """The bits of the norm's own kernel, whose sum has the same order, in another order of columns."""
    from inference_pio.kernels.triton.reordered import reordered_norm
    from inference_pio.kernels.triton.rms_norm import rms_norm

    x, order, weight = (tensor.to(device) for tensor in drawn(*shape, dtype))
    wider = torch.cat([x, x], 1)[:, : shape[1]]
    for given in (x, wider):
        found = reordered_norm(given, order, weight, 1e-6)
        assert torch.equal(found, rms_norm(given, weight, 1e-6)[:, order.long()])
    torch.testing.assert_close(found, plain.naive_rms_norm(x, weight, 1e-6)[:, order.long()], rtol=2e-2, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_norm_in_another_order_in_the_interpreter(
    shape: tuple[int, int], dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, dtype)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton import reordered as room

    x = torch.zeros(2, 8)
    with pytest.raises(InvalidSetting, match="does not serve here"):
        room.reordered_norm(x, torch.arange(8, dtype=torch.int32), torch.ones(8, dtype=torch.float64), 1e-6)


def refuse_orders() -> None:
    from inference_pio.kernels.triton.reordered import reordered_norm

    for order in (torch.arange(7, dtype=torch.int32), torch.arange(8)):
        with pytest.raises(InvalidSetting, match="rows of 8 have a weight and an order"):
            reordered_norm(torch.zeros(2, 8), order, torch.ones(8), 1e-6)


@needs_triton
def test_orders_of_another_kind_are_refused(interpreted: Callable[..., None]) -> None:
    interpreted(refuse_orders)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [512, 2560, 5120])
def test_it_compiles_to_wide_stores_without_spilling(capability: int, width: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.reordered import reordered_norm, reordered_norm_kernel

    compiler.for_machine(capability, reordered_norm_kernel)
    x, weight = torch.zeros(2, width, dtype=torch.bfloat16), torch.ones(width, dtype=torch.bfloat16)
    reordered_norm(x, torch.arange(width, dtype=torch.int32), weight, 1e-6)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["STG 128"] >= 1, code


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 4096), (3, 16384)], ids=str)
def test_gpu_it_is_the_norm_in_another_order(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check(shape, dtype, "cuda")
