"""The Triton path of a fixed pattern, lists at prefill and pages at decode, against its definition."""

from __future__ import annotations

import pytest

from inference_pio.compat import triton_interprets
from inference_pio.kernels.fixed_attention import triton_decode, triton_prefill
from inference_pio.kernels.fixed_pattern import FixedPattern, naive_fixed_pattern_attention
from tests.kernels.test_fixed_attention import tensors_of
from tests.kernels.triton.conftest import Interpreted


def through_triton(queries: int, keys: int, width: int, pattern: FixedPattern) -> float:
    """How far the Triton path is from the definition: in a process where kernels are interpreted, or on a GPU."""
    device = "cpu" if triton_interprets() else "cuda"
    tensors = [tensor.bfloat16() for tensor in tensors_of(queries, keys, batch=1, widths=(width, width))]
    attend = triton_decode if queries == 1 else triton_prefill
    got = attend(*(tensor.to(device) for tensor in tensors), pattern).float().cpu()
    expected = naive_fixed_pattern_attention(*tensors, pattern).transpose(1, 2)
    return float((got - expected).abs().max())


@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (1, 300), (150, 420), (60, 200)])
@pytest.mark.parametrize("width", [64, 128])
def test_the_triton_kernels_give_the_attention_of_the_pattern(
    interpreted: Interpreted,
    queries: int,
    keys: int,
    width: int,
) -> None:
    assert interpreted(through_triton, queries, keys, width, FixedPattern(64, 64)) < 2e-2


def test_columns_reach_the_triton_kernels(interpreted: Interpreted) -> None:
    assert interpreted(through_triton, 400, 700, 64, FixedPattern(0, 64, stride=192)) < 2e-2
    assert interpreted(through_triton, 1, 700, 64, FixedPattern(0, 64, stride=192)) < 2e-2
    assert interpreted(through_triton, 300, 300, 256, FixedPattern(0, 64)) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (1, 300), (150, 420), (60, 200), (3000, 4000)])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_gpu_the_triton_kernels_give_the_attention_of_the_pattern(queries: int, keys: int, width: int) -> None:
    """Parts of prompts, into parts of outputs: on Hopper by warps that take roles, but for heads of 256."""
    assert through_triton(queries, keys, width, FixedPattern(64, 64)) < 2e-2
    assert through_triton(queries, keys, width, FixedPattern(0, 64, stride=192)) < 2e-2
