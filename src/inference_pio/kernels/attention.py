"""Exact attention: the plain truth first, then torch's fused kernels called by name, without process-wide switches."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from inference_pio.compat import attention_operator

Attend = Callable[..., torch.Tensor]
FLASH, CUDNN, EFFICIENT = (attention_operator(name) for name in ("flash", "cudnn", "efficient"))


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
    shape = query.shape
    rows = query if shape[2] > 1 else _pack_groups(query, key, mask)
    if rows.is_cuda:
        key, value = _share_heads(rows, key, value, mask)
        if mask is not None and mask.is_floating_point():
            mask = _as_bias(mask, rows, padded=False)
    grouped = key.shape[1] != rows.shape[1]
    out = F.scaled_dot_product_attention(
        rows, key, value, mask, dropout_p=dropout, is_causal=causal and rows is query, scale=scale, enable_gqa=grouped
    )
    return out if rows is query else out.reshape(*shape[:-1], value.shape[-1])


def flash_attention(query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0):
    """torch's FlashAttention-2 for CUDA: no mask, half precision, key heads shared without a copy.

    If `causal`, the last query stands at the last key.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return FLASH(query, key, value, dropout, causal, return_debug_mask=False, scale=scale)[0]


def cudnn_attention(query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0):
    """cuDNN's fused attention for CUDA, with or without a mask."""
    bias = None if mask is None else _as_bias(mask, query)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return CUDNN(query, key, value, bias, needs_grad, dropout, causal, return_debug_mask=False, scale=scale)[0]


def efficient_attention(query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0):
    """torch's memory-efficient attention for CUDA, with or without a mask; key heads are repeated for many queries."""
    rows, shape = _pack_groups(query, key, mask), query.shape
    groups = rows.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    bias = _as_bias(mask, rows)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (rows, key, value))
    out = EFFICIENT(rows, key, value, bias, needs_grad, dropout, causal and rows is query, scale=scale)[0]
    return out.reshape(*shape[:-1], value.shape[-1])


KERNELS: dict[str, Attend] = {
    "fused": fused_attention,
    "flash": flash_attention,
    "cudnn": cudnn_attention,
    "efficient": efficient_attention,
}


def _pack_groups(query, key, mask):
    """One query a head: the heads that share keys become queries of one head, so that no key is read or kept twice.

    On two CPU cores, 16 heads over 4 of 8,192 keys: 124 -> 24 ms in bfloat16, 33 -> 16 in float32.
    """
    batch, heads, queries, width = query.shape
    if queries > 1 or heads == key.shape[1] or (mask is not None and (mask.dim() != 4 or mask.shape[1] != 1)):
        return query
    return query.reshape(batch, key.shape[1], heads // key.shape[1], width)


def _share_heads(query, key, value, mask):
    """Repeat key heads where the fused kernels would leave their fast path for grouped heads (a mask on CUDA)."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or (mask is None and key.shape[-1] == value.shape[-1] <= 256):
        return key, value
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _as_bias(mask, query, *, padded=True):
    """A boolean or additive mask in the queries' dtype, expanded and, if `padded`, aligned as the kernels ask."""
    if mask is None:
        return None
    shape = (query.shape[0], query.shape[1], query.shape[2], mask.shape[-1])
    return _cast_once(mask, query.dtype, padded).expand(shape)


_CAST = "_inference_pio_cast"


def _cast_once(mask, dtype, padded):
    """The additive form of a mask, kept on it for the layers that follow; made anew if the mask was written to."""
    version = None if torch.compiler.is_compiling() or mask.is_inference() else mask._version
    kept = getattr(mask, _CAST, None) if version is not None else None
    if kept is not None and kept[0] == (dtype, padded, version):
        return kept[1]
    lowest = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        bias = torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), lowest)
    else:
        bias = mask if mask.dtype == dtype else mask.clamp(min=lowest).to(dtype)  # float32's lowest would be -inf
    width = mask.shape[-1]
    if padded:  # the kernels read rows aligned to 16 elements
        bias = F.pad(bias, (0, -width % 16))[..., :width] if width % 16 else bias.contiguous()
    if version is not None and bias is not mask:
        setattr(mask, _CAST, ((dtype, padded, version), bias))
    return bias
