"""The kernel that makes weights of half a byte whole again: interpreted against the plain truth, compiled, on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels import int4
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
SHAPES = [(3, 32, 32), (1, 640, 64), (5, 2048, 128), (7, 4224, 32)]


def check(shape: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.dequantize_groups import dequantize_groups

    rows, columns, group = shape
    weight = torch.randn(rows + 2, columns, generator=torch.Generator().manual_seed(columns)).to(device)
    codes, grids = int4.quantize_groups(weight, group)
    words, mine = int4.words_of(codes)[1:-1], grids[:, 1:-1]  # rows of a larger matrix
    found = dequantize_groups(words, mine, dtype)
    wanted = int4.dequantize_groups(codes[1:-1], mine, dtype)
    # a product and a sum are one rounding on a GPU, as in torch.addcmul
    torch.testing.assert_close(found, wanted, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-6)
    assert found.shape == (rows, columns)


@needs_triton
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_what_codes_stand_for_in_the_interpreter(
    shape: tuple[int, int, int], interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, torch.float32)


@needs_triton
def test_other_layouts_are_refused() -> None:
    from inference_pio.kernels.triton.dequantize_groups import dequantize_groups

    codes, grids = int4.quantize_groups(torch.randn(4, 64), 32)
    with pytest.raises(InvalidSetting, match=r"are no words \[N, K / 8\]"):
        dequantize_groups(codes, grids, torch.float32)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("columns", [2560, 9728])
def test_it_compiles_to_wide_stores_without_spilling(capability: int, columns: int, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.dequantize_groups import dequantize_groups, dequantize_groups_kernel

    compiler.for_machine(capability, dequantize_groups_kernel)
    words = torch.empty(70_000, columns // 8, dtype=torch.int32)
    dequantize_groups(words, torch.empty(columns // 128, 70_000, 2, dtype=torch.bfloat16), torch.bfloat16)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert code.counts["STG 128"] == 2, code
    assert not code.counts["STG U16"] + code.counts["I2F"], code


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (9728, 2560, 128)])
def test_gpu_weights_are_what_codes_stand_for(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(shape, dtype, "cuda")


@pytest.mark.gpu
def test_gpu_a_layer_multiplies_with_it() -> None:
    from inference_pio.formats.int4 import Int4Linear

    layer = torch.nn.Linear(256, 48)
    packed = Int4Linear.from_linear(layer, 64)
    weight, bias = packed.dequantize(), layer.bias.detach().clone()
    kept = packed.state_dict()["weight_int4"].clone()
    moved = packed.cuda()
    assert moved.weight_int4.dtype is torch.int32
    assert torch.equal(moved.dequantize().cpu(), weight)
    for rows in (1, 3, 20):  # few are multiplied with codes, many with weights
        x = torch.randn(rows, 256)
        wanted = torch.nn.functional.linear(x, weight, bias)
        with torch.no_grad():
            torch.testing.assert_close(moved(x.cuda()).cpu(), wanted, rtol=1e-4, atol=1e-4)
    other = Int4Linear.from_linear(torch.nn.Linear(256, 48), 64)
    on_gpu = {name: tensor.cuda() for name, tensor in moved.state_dict().items()}
    other.load_state_dict(on_gpu)  # codes of one device go into a layer on another
    assert torch.equal(other.dequantize(), weight)
    again = Int4Linear.from_linear(torch.nn.Linear(256, 48), 64).cuda()
    again.load_state_dict({name: tensor.cpu() for name, tensor in on_gpu.items()})
    assert again.weight_int4.dtype is torch.int32
    assert torch.equal(again.dequantize().cpu(), weight)
    assert torch.equal(moved.cpu().state_dict()["weight_int4"], kept)
