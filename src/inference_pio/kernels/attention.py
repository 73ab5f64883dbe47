"""Exact attention: the plain truth first, then torch's fused kernels called by name, without process-wide switches."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Attend = Callable[..., torch.Tensor]


def naive_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention in float32 from its definition; `[B, H, S, D]`, key and value with H or fewer heads."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = (
        query.float(),
        key.float().repeat_interleave(groups, 1),
        value.float().repeat_interleave(groups, 1),
    )
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ value


def fused_attention(query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0):
    """torch's own choice among its fused kernels; on the CPU its flash kernel wherever the shapes allow."""
    key, value = _share_heads(query, key, value, mask)
    grouped = key.shape[1] != query.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def flash_attention(query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0):
    """torch's FlashAttention-2 for CUDA: no mask, half precision, key heads shared without a copy."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    operator = torch.ops.aten._scaled_dot_product_flash_attention
    return operator(query, key, value, dropout, causal, return_debug_mask=False, scale=scale)[0]


def cudnn_attention(query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0):
    """cuDNN's fused attention for CUDA, with or without a mask."""
    bias = _as_bias(mask, query)
    operator = torch.ops.aten._scaled_dot_product_cudnn_attention
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return operator(query, key, value, bias, needs_grad, dropout, causal, return_debug_mask=False, scale=scale)[0]


def efficient_attention(query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0):
    """torch's memory-efficient attention for CUDA, with or without a mask; key heads are repeated."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    bias = _as_bias(mask, query)
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return operator(query, key, value, bias, needs_grad, dropout, causal, scale=scale)[0]


KERNELS: dict[str, Attend] = {
    "fused": fused_attention,
    "flash": flash_attention,
    "cudnn": cudnn_attention,
    "efficient": efficient_attention,
}


def _share_heads(query, key, value, mask):
    """Repeat key heads where the fused kernels would leave their fast path for grouped heads (a mask on CUDA)."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or (mask is None and key.shape[-1] == value.shape[-1] <= 256) or not query.is_cuda:
        return key, value
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _as_bias(mask, query):
    """A boolean mask as an additive one, expanded and aligned as the kernels ask."""
    if mask is None:
        return None
    shape = (query.shape[0], query.shape[1], mask.shape[-2], mask.shape[-1])
    if mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=mask.device)
        mask = torch.where(mask, zero, torch.finfo(query.dtype).min)
    width = mask.shape[-1]
    padded = F.pad(mask.to(query.dtype), (0, -width % 16))  # the kernels read rows aligned to 16 elements
    return padded[..., :width].expand(shape)
