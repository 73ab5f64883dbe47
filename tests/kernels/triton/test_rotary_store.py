"""The kernel that rotates and stores one token a row against its definition: interpreted, compiled, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from tests.kernels.test_rms_norm import DTYPES
from tests.kernels.test_rotary_store import CASES, assert_it_is_its_definition, inputs
from tests.kernels.triton.compiling import MACHINES, Compiler

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")


def check(case: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> None:
    from inference_pio.kernels.triton.rotary_store import rotate_and_store

    assert_it_is_its_definition(rotate_and_store, case, dtype, device)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_its_definition_in_the_interpreter(
    case: dict[str, Any], dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, case, dtype)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton.rotary_store import rotate_and_store

    tensors, how = inputs()
    tensors[5] = tensors[5].long()
    with pytest.raises(InvalidSetting, match="positions and lengths are int32"):
        rotate_and_store(*tensors, **how)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [128, 64])
def test_it_compiles_without_spilling(capability: int, turned: int, interleaved: bool, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.rotary_store import rotate_and_store, rotate_and_store_kernel

    compiler.for_machine(capability, rotate_and_store_kernel)
    case = {"rows": 2, "heads": 32, "key_heads": 8, "width": 128, "turned": turned, "normed": True}
    tensors, how = inputs(**case, interleaved=interleaved, dtype=torch.bfloat16)  # type: ignore[arg-type]
    tensors[1], tensors[2] = torch.zeros(2, 2, 64, 8, 128, dtype=torch.bfloat16)
    rotate_and_store(*tensors, **how)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    assert turned == 64 or not code.counts["LDG U16"], code  # halves of 32 are a number a thread


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES, {"heads": 32, "key_heads": 8, "width": 128, "turned": 128, "normed": True}])
def test_gpu_it_is_its_definition(case: dict[str, Any], dtype: torch.dtype) -> None:
    check(case, dtype, "cuda")


@pytest.mark.gpu
def test_gpu_one_recorded_graph_serves_every_length() -> None:
    from inference_pio.kernels.triton.rotary_store import rotate_and_store

    tensors, how = inputs(rows=1, device="cuda")
    out = torch.empty(1, 3, 16, device="cuda")
    rotate_and_store(*tensors, **how, out=out)  # compiles, which no graph may do
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rotate_and_store(*tensors, **how, out=out)
    for length in (1, 4, 9):
        tensors[6].fill_(length)
        tensors[5].fill_(length - 1)
        tensors[1].zero_()
        graph.replay()
        assert tensors[1].abs().sum((2, 3)).nonzero().tolist() == [[0, length - 1]]
        wanted, how = inputs(rows=1, device="cuda")
        wanted[5:] = tensors[5:]
        assert torch.equal(out, rotate_and_store(*wanted, **how))
