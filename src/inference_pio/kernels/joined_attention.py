"""Causal attention behind keys from before as two calls without a mask, over those and over its own square, joined."""

from __future__ import annotations

import torch

from inference_pio.kernels.elementwise_backend import TRITON, choose_for

STEP = 1024
"""cuDNN builds a plan for each new shape, which takes 40 ms: a thousand queries over all layers do not win that back.
So only lengths that are whole multiples are joined, which the pieces of prompts have in common."""


def pays(queries: int, keys: int) -> bool:
    """Whether so many queries, the last of which stands at the last key, are worth two calls and a join.

    >>> pays(2048, 32768), pays(2048, 2048), pays(2048, 32700), pays(500, 32768)
    (True, False, False, False)
    """
    return queries < keys and queries % STEP == 0 and keys % STEP == 0


def naive_join(
    out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Attention `[B, H, S, D]` over two sets of keys from that over each, with the logs `[B, H, S]` of their sums."""
    logs = torch.stack([lse, other_lse]).float()
    shares = torch.exp(logs - torch.logsumexp(logs, 0)).unsqueeze(-1)
    return (shares * torch.stack([out, other]).float()).sum(0)


def join(out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor) -> torch.Tensor:
    """`naive_join`, written to `out`, in its dtype."""
    if choose_for(out, other) == TRITON:
        from inference_pio.kernels.triton.joined import join as fused

        return fused(out, lse, other, other_lse)
    share = torch.sigmoid(other_lse.float() - lse.float()).unsqueeze(-1)
    return out.copy_(torch.lerp(out.float(), other.float(), share))


def joined_attention(query, key, value, *, scale=None):
    """Attention `[B, H, S, D]` of the last S of the keys' tokens; of more queries than one, and keys from before."""
    before = key.shape[2] - query.shape[2]
    out, lse = _attend(query, key[:, :, before:], value[:, :, before:], True, scale)
    return join(out, lse, *_attend(query, key[:, :, :before], value[:, :, :before], False, scale))


def _attend(query, key, value, causal, scale):
    """Attention and the natural log of its sums, by cuDNN; on a CPU by torch's flash kernel."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.is_cuda:
        operator = torch.ops.aten._scaled_dot_product_cudnn_attention
        out, lse = operator(query, key, value, None, True, 0.0, causal, return_debug_mask=False, scale=scale)[:2]
    else:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = operator(query, key, value, 0.0, causal, scale=scale)
    return out, lse.reshape(query.shape[:3])
