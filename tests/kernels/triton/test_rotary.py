"""The kernel of norm and rotation against the plain truth: interpreted, compiled, and on a GPU bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels import rotary as plain
from tests.kernels.test_rms_norm import DTYPES, drawn
from tests.kernels.test_rotary import SHAPES, Shape, inputs
from tests.kernels.triton.compiling import MACHINES, Compiler
from tests.kernels.ulps import same_bits, ulps_apart

needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
INTERPRETED = [replace(shape, tokens=min(shape.tokens, 5)) for shape in SHAPES]
"""A program turns four tokens of a few heads: five are one whole program and one that ends early, as 33 are."""


def check(shape: Shape, dtype: torch.dtype, interleaved: bool, device: str = "cpu") -> None:
    """Rotation has torch's bits; norms of ones may be a step off, and then what is rotated is close."""
    from inference_pio.kernels.triton.rms_norm import rms_norm
    from inference_pio.kernels.triton.rotary import norm_rotate

    query, key, cos, sin = (tensor.to(device) for tensor in inputs(shape, dtype))
    for apart in (False, True):
        if apart:
            query, key = (torch.cat([x, x], -1)[..., : shape.width] for x in (query, key))
        got = norm_rotate(query, key, cos, sin, interleaved=interleaved)
        wanted = plain.norm_rotate(query, key, cos, sin, interleaved=interleaved)
        assert all(same_bits(*pair) for pair in zip(got, wanted, strict=True))
    weights = [drawn(shape.width, dtype=dtype, seed=seed).to(device) for seed in (2, 3)]
    _check_norms(query, key, torch.ones_like(cos), torch.zeros_like(sin), torch.ones_like(weights[0]), interleaved)
    how = {"query_norm": weights[0], "key_norm": weights[1], "eps": 1e-5, "interleaved": interleaved}
    got = norm_rotate(query, key, cos, sin, **how)  # type: ignore[arg-type]
    query, key = rms_norm(query, weights[0], 1e-5), rms_norm(key, weights[1], 1e-5)
    wanted = plain.norm_rotate(query, key, cos, sin, interleaved=interleaved)
    for one, other in zip(got, wanted, strict=True):  # both sum up in float32, in orders of their own
        # 10 of 16.8 million lay 16 steps off on a GPU, where what is rotated nearly cancels
        torch.testing.assert_close(one, other, rtol=4 * torch.finfo(dtype).eps, atol=24 * torch.finfo(dtype).eps)


def _check_norms(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, ones: torch.Tensor, interleaved: bool
) -> None:
    """Turned by nothing, and with a weight of ones, the norm itself is seen: at most a step from torch's."""
    from inference_pio.kernels.triton.rotary import norm_rotate

    got = norm_rotate(query, key, cos, sin, query_norm=ones, key_norm=ones, eps=1e-5, interleaved=interleaved)
    norms = [plain.rms_norm(x, ones, 1e-5) for x in (query, key)]
    wanted = plain.norm_rotate(norms[0], norms[1], cos, sin, interleaved=interleaved)
    for one, other in zip(got, wanted, strict=True):
        assert ulps_apart(one, other) <= 1 + 3 * (ones.dtype == torch.float32)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", INTERPRETED, ids=str)
def test_it_rounds_as_the_library_does_in_the_interpreter(
    shape: Shape, interleaved: bool, dtype: torch.dtype, interpreted: Callable[..., None]
) -> None:
    interpreted(check, shape, dtype, interleaved)


@needs_triton
def test_what_it_cannot_serve_is_refused() -> None:
    from inference_pio.kernels.triton.rotary import norm_rotate

    with pytest.raises(InvalidSetting, match="columns turned like that"):
        norm_rotate(*inputs(Shape(width=8, turned=10), torch.float32))


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "shape", [Shape(1, 1, 32, 8, 128, 128), Shape(1, 4096, 32, 8, 128, 128), Shape(1, 4096, 96, 8, 128, 64)], ids=str
)
def test_it_compiles_to_wide_loads_without_spilling(
    capability: int, shape: Shape, interleaved: bool, compiler: Compiler
) -> None:
    from inference_pio.kernels.triton.rotary import norm_rotate, norm_rotate_kernel

    compiler.for_machine(capability, norm_rotate_kernel)
    sizes = ((shape.heads, shape.width), (shape.key_heads, shape.width))
    query, key = (torch.empty(1, shape.tokens, *size, dtype=torch.bfloat16) for size in sizes)
    cos, sin = torch.empty(2, 1, shape.tokens, shape.turned, dtype=torch.bfloat16)
    weight = torch.empty(shape.width, dtype=torch.bfloat16)
    norm_rotate(query, key, cos, sin, query_norm=weight, key_norm=weight, eps=1e-6, interleaved=interleaved)
    (code,) = compiler.found
    code.assert_it_fits(MACHINES[capability])
    if shape.tokens > 1:
        assert code.counts["LDG 128"] >= 8, code
        assert code.counts["STG 128"] == 8, code  # all that is written
        assert code.counts["LDG U16"] <= 4, code  # the weights of the norms, a number a thread
    else:
        assert not code.counts["LDG U16"], code


@needs_triton
@pytest.mark.parametrize("interleaved", [False, True])
def test_products_in_float32_are_rounded_before_they_are_added(interleaved: bool, compiler: Compiler) -> None:
    from inference_pio.kernels.triton.rotary import norm_rotate, norm_rotate_kernel

    compiler.for_machine(90, norm_rotate_kernel)
    norm_rotate(*inputs(Shape(), torch.float32), interleaved=interleaved)
    (code,) = compiler.found
    assert not code.counts["FFMA"], code


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "shape",
    [*SHAPES, Shape(1, 4097, 32, 8, 128, 128), Shape(2, 1000, 12, 2, 128, 64, True), Shape(3, 1, 20, 1, 64, 64)],
    ids=str,
)
def test_gpu_it_rounds_as_the_library_does(shape: Shape, interleaved: bool, dtype: torch.dtype) -> None:
    check(shape, dtype, interleaved, "cuda")
