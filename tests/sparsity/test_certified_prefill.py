"""Certified prefill: both backends are near exact attention by what they may drop, and count what they left out."""

from __future__ import annotations

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.kernels.attention import naive_attention
from inference_pio.sparsity.certified_prefill import certified_prefill

EPS = 0.05


def _tensors(starts: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries that all look at the first keys that they see: most other tiles do not matter."""
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 400, 64, generator=chance) for heads in (4, 2, 2))
    query[..., 0] = 8.0
    for row, start in enumerate([0, 0] if starts is None else starts.tolist()):
        key[row, :, start : start + 4, 0] = 20.0
    return query, key, value


def check(padding: tuple[int, ...] | None, backend: str) -> None:
    starts = None if padding is None else torch.tensor(padding, dtype=torch.int32)
    query, key, value = _tensors(starts)
    if backend == "triton":
        query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    attended = certified_prefill(query, key, value, EPS, starts=starts)
    assert attended.backend.name == backend
    kept, visible = attended.sizes()
    assert 0 < kept < 0.8 * visible
    places = torch.arange(400)
    mask = (places <= places[:, None])[None] & (places >= torch.tensor(padding or (0, 0))[:, None, None])
    exact = naive_attention(query, key, value, mask[:, None]).nan_to_num(0.0)
    bound = 2 * EPS * float(value.float().abs().max()) + 0.03
    assert float((attended.out.float() - exact).abs().max()) <= bound


@pytest.mark.parametrize("padding", [None, (0, 150)])
def test_as_it_is_defined(padding) -> None:
    check(padding, "gathered")


@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
@pytest.mark.parametrize("padding", [None, (0, 150)])
def test_by_the_kernel_in_the_interpreter(padding, interpreted) -> None:
    interpreted(check, padding, "triton")
