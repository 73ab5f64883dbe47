"""The fused kernels against attention as it is defined, on awkward shapes."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.attention import KERNELS, naive_attention

SHAPES = [(1, 1, 1, 1, 1, 8), (2, 4, 2, 7, 7, 16), (1, 6, 3, 1, 33, 64), (1, 4, 4, 129, 129, 40), (3, 8, 2, 5, 17, 24)]


def tensors(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    batch, heads, key_heads, queries, keys, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return tuple(torch.randn(batch, *size, width, generator=generator).to(device, dtype) for size in sizes)


@pytest.mark.parametrize("shape", SHAPES)
def test_naive_attention_is_the_definition_in_float64(shape: tuple[int, ...]) -> None:
    query, key, value = tensors(shape, "cpu", torch.float64)
    groups = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            keys, values = key[batch, head // groups], value[batch, head // groups]
            for position, row in enumerate(query[batch, head]):
                weights = torch.exp(keys @ row / row.shape[0] ** 0.5)
                out[batch, head, position] = (weights / weights.sum()) @ values
    torch.testing.assert_close(naive_attention(query, key, value).double(), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masking", ["none", "causal", "boolean", "additive"])
def test_fused_attention_is_exact_up_to_rounding(shape: tuple[int, ...], masking: str) -> None:
    query, key, value = tensors(shape, "cpu", torch.float32)
    if masking == "causal" and query.shape[2] != key.shape[2]:
        return
    mask = _mask(masking, query, key)
    causal = masking == "causal"
    got = KERNELS["fused"](query, key, value, mask, causal=causal, scale=0.3)
    torch.testing.assert_close(
        got, naive_attention(query, key, value, mask, causal=causal, scale=0.3), rtol=1e-4, atol=1e-5
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["fused", "flash", "efficient", "cudnn"])
@pytest.mark.parametrize("masking", ["none", "causal", "boolean", "additive"])
@pytest.mark.parametrize(
    "shape", [(2, 4, 2, 37, 37, 64), (1, 32, 8, 1, 513, 128), (1, 8, 4, 5, 300, 64), (1, 6, 6, 256, 256, 128)]
)
def test_gpu_kernels_are_exact_up_to_rounding(kernel: str, masking: str, shape: tuple[int, ...]) -> None:
    query, key, value = tensors(shape, "cuda", torch.bfloat16)
    if (masking == "causal" and query.shape[2] != key.shape[2]) or (
        kernel == "flash" and masking in ("boolean", "additive")
    ):
        return
    mask = _mask(masking, query, key)
    causal = masking == "causal"
    got = KERNELS[kernel](query, key, value, mask, causal=causal).float()
    torch.testing.assert_close(got, naive_attention(query, key, value, mask, causal=causal), rtol=2e-2, atol=2e-2)


def _mask(masking: str, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    if masking in ("none", "causal"):
        return None
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(query.shape[0], 1, query.shape[2], key.shape[2], generator=generator).to(query.device) > 0.3
    seen[..., 0] = True
    if masking == "boolean":
        return seen
    return torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(~seen, -1e4)
