"""Which kernels sparse attention runs on is told with its reason, and sizes are sums."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.triton import support
from inference_pio.sparsity.backend import GATHERED, TRITON, Attended, Backend, choose_backend


def tensors(width=64, keys=300, dtype=torch.bfloat16):  # type: ignore[no-untyped-def]
    return torch.zeros(1, 4, 200, width, dtype=dtype), *torch.zeros(2, 1, 2, keys, width, dtype=dtype)


@pytest.fixture
def gpu_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "has_triton", lambda: True)
    monkeypatch.setattr(support, "_device", lambda device: None)


def test_a_cpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "has_triton", lambda: True)
    told = choose_backend(*tensors(), "mean", 128, 64)
    assert told == Backend(GATHERED, "it needs an NVIDIA GPU, and the tensors are on cpu")


@pytest.mark.usefixtures("gpu_everywhere")
def test_what_the_kernels_serve_is_theirs() -> None:
    for key_block in (64, 128):
        assert choose_backend(*tensors(), "mean", 128, key_block) == Backend(TRITON)
    for scorer in ("mean", "bounds", "both"):
        assert choose_backend(*tensors(), scorer, 1, 64) == Backend(TRITON)


@pytest.mark.usefixtures("gpu_everywhere")
@pytest.mark.parametrize(
    ("scorer", "blocks", "sizes", "reason"),
    [
        ("antidiagonal", (128, 64), {}, "score blocks by means, and not by 'antidiagonal'"),
        ("mean", (64, 64), {}, "works on blocks of 128 queries"),
        ("mean", (128, 256), {}, "not on 128 and 256"),
        ("mean", (128, 64), {"keys": 64 * 4096 + 1}, "up to 4096 blocks, and there are 4097"),
        ("mean", (128, 64), {"width": 80}, "heads are 80 wide"),
        ("mean", (128, 64), {"dtype": torch.float32}, "bfloat16 or float16"),
    ],
)
def test_what_they_do_not_serve_has_its_reason(scorer, blocks, sizes, reason) -> None:
    told = choose_backend(*tensors(**sizes), scorer, *blocks)
    assert told.name == GATHERED
    assert reason in told.reason


def test_sizes_are_sums_over_all_heads() -> None:
    attended = Attended(torch.zeros(1), torch.tensor([[2, 3], [4, 5]]), 40, Backend(TRITON))
    assert attended.sizes() == (14, 40)
