"""Prefill that leaves out what provably does not matter: by our kernel where it serves, else as it is defined."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_pio.kernels.block_choice import seen_blocks
from inference_pio.kernels.certified_attention import certified_attention
from inference_pio.kernels.triton.attention_support import supports
from inference_pio.sparsity.backend import GATHERED, TRITON, Attended, Backend


def certified_prefill(
    query: Tensor, key: Tensor, value: Tensor, eps: float, *, query_block: int = 128, key_block: int = 64,
    scale: float | None = None, starts: Tensor | None = None,
) -> Attended:  # fmt: skip
    """Causal attention of `[B, H, S, D]` over `[B, key heads, L, D]` that drops at most `eps` of the attention of every
    row; the tiles that it counts are the backend's own. Nothing waits for the device."""
    served = supports(query, key, value)
    if not served:
        out, kept, visible = certified_attention(
            query, key, value, eps=eps, query_block=query_block, key_block=key_block, scale=scale, starts=starts
        )
        return Attended(out, kept, visible, Backend(GATHERED, served.said))
    from inference_pio.kernels.triton.flash import flash_attention, launch_for

    launch = launch_for(key, value, padded=starts is not None, certified=True)
    skipped = torch.zeros(1, dtype=torch.int32, device=query.device)
    out = flash_attention(
        query, key, value, scale=scale, starts=starts, certified=eps, skipped=skipped, launch=launch
    )  # fmt: skip
    sizes = (query.shape[2], key.shape[2], launch.query_block, launch.key_block)
    seen = seen_blocks(*sizes, starts=starts, device=query.device)
    visible = seen.sum() * query.shape[1] * (query.shape[0] // seen.shape[0])
    return Attended(out, visible - skipped[0], visible, Backend(TRITON))
