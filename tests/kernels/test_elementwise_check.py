"""The check of the fused kernels passes where they are right, and names the one that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from inference_pio.kernels import elementwise_check as room
from inference_pio.kernels.elementwise_check import why_elementwise_fails

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    why_elementwise_fails.cache_clear()
    yield
    why_elementwise_fails.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_kernels_pass(dtype: torch.dtype) -> None:
    assert why_elementwise_fails(CPU, dtype, (64, 100)) is None


def _off(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*given: Any) -> Any:
        out = kernel(*given)
        if isinstance(out, tuple):
            return out[0] * (1 + 2**-5), *out[1:]
        return out * (1 + 2**-5)

    return wrong


@pytest.mark.parametrize(
    ("kernel", "said"),
    [("add_rms_norm", "norms of rows of 64"), ("silu_mul", "gate"), ("norm_rotate", "rotation of 64")],
)
def test_a_wrong_kernel_is_named(kernel: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, kernel, _off(getattr(room, kernel)))
    assert said in (why_elementwise_fails(CPU, torch.bfloat16, (64,)) or "")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_the_kernels_pass(dtype: torch.dtype) -> None:
    assert why_elementwise_fails(torch.device("cuda", 0), dtype, (128, 2560, 4096)) is None
