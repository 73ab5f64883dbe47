"""The backends by name: what they lack is told in words, and each runs the phases that it does not lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from inference_pio.kernels.attention_backends import BACKENDS, HeadShape, capability_of, lacks, run
from inference_pio.kernels.attention_check import PROBLEMS, why_it_fails
from inference_pio.kernels.attention_choice import CAUSAL, FLEX, FUSED, TRITON, Phase

CPU = torch.device("cpu")
SHAPE = HeadShape(8, 4, 64, 64)
WIDTHS = {128: HeadShape(32, 8, 128, 128), 24: HeadShape(4, 2, 24, 24), 256: HeadShape(20, 20, 256, 256)}


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in (FUSED, FLEX)])
@pytest.mark.parametrize("phase", Phase)
def test_on_a_cpu_torch_chooses_and_the_others_say_what_they_want(backend: str, phase: Phase) -> None:
    assert lacks(FUSED, phase, SHAPE, torch.float32, CPU) is None
    reason = lacks(backend, phase, SHAPE, torch.bfloat16, CPU)
    assert reason is not None
    assert "NVIDIA GPU" in reason or "no other mask" in reason


def test_a_compiler_is_asked_for_before_flex_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in str(lacks(FLEX, Phase.PREFILL, SHAPE, torch.float32, CPU))
    monkeypatch.setenv("CXX", "sh")
    assert lacks(FLEX, Phase.PREFILL, SHAPE, torch.float32, CPU) is None
    assert "causal prefill alone" in str(lacks(FLEX, Phase.DECODE, SHAPE, torch.float32, CPU))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("phase", Phase)
def test_what_torch_chooses_is_right_in_every_phase(phase: Phase, width: int, dtype: torch.dtype) -> None:
    assert why_it_fails(FUSED, phase, WIDTHS[width], dtype, CPU) is None


@pytest.mark.parametrize("heads", [1, 8])
def test_one_query_over_shared_heads_reads_no_key_twice(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads that share keys become queries of one head, unless each has a mask of its own."""
    query, key, value = torch.randn(2, 8, 1, 64), torch.randn(2, 2, 33, 64), torch.randn(2, 2, 33, 64)
    mask = torch.rand(2, heads, 1, 33) > 0.3
    mask[..., 0] = True
    repeated = (tensor.repeat_interleave(4, 1) for tensor in (key, value))
    expected = run(FUSED, Phase.MASKED_DECODE, query, *repeated, mask=mask)
    attend, shapes = F.scaled_dot_product_attention, []

    def watched(*given: torch.Tensor, **how: Any) -> torch.Tensor:
        shapes.append([tuple(tensor.shape) for tensor in given[:2]])
        return attend(*given, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    got = run(FUSED, Phase.MASKED_DECODE, query, key, value, mask=mask)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert shapes == [[(2, 2, 4, 64) if heads == 1 else (2, 8, 1, 64), (2, 2, 33, 64)]]


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what torch itself loads to compile
@pytest.mark.parametrize("phase", sorted(CAUSAL))
def test_compiled_flex_attention_is_right_on_a_cpu(phase: Phase) -> None:
    if (reason := lacks(FLEX, phase, SHAPE, torch.float32, CPU)) is not None:
        pytest.skip(reason)
    assert why_it_fails(FLEX, phase, SHAPE, torch.float32, CPU) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", WIDTHS.values(), ids=str)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != FLEX])
def test_gpu_backends_are_right_wherever_they_do_not_say_what_they_lack(
    backend: str, shape: HeadShape, dtype: torch.dtype
) -> None:
    device = torch.device("cuda", 0)
    for phase in PROBLEMS:
        if lacks(backend, phase, shape, dtype, device) is None:
            reason = why_it_fails(backend, phase, shape, dtype, device)
            may_not = backend == "cudnn" and shape.head_dim > 128  # newer ones alone have a kernel for these
            assert reason is None or may_not, (phase, reason)


@pytest.mark.gpu
def test_gpu_triton_serves_every_phase_but_decoding_with_a_mask() -> None:
    device = torch.device("cuda", 0)
    assert capability_of(device) >= 80
    served = {phase for phase in Phase if lacks(TRITON, phase, SHAPE, torch.bfloat16, device) is None}
    assert served == set(Phase) - {Phase.MASKED_DECODE}
