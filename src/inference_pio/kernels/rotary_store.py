"""One decode token a row: norm and rotate its queries and keys, and write its key and value into the caches."""

from __future__ import annotations

import torch

from inference_pio.kernels.elementwise_backend import TRITON, choose_for
from inference_pio.kernels.rotary import naive_norm_rotate, norm_rotate


def naive_rotate_and_store(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    *,
    heads: int,
    key_heads: int,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
) -> torch.Tensor:
    """Row by row from the definition."""
    out = qkv.new_empty(len(qkv), heads, keys.shape[-1])
    for row in range(len(qkv)):
        parts = qkv[row].view(1, 1, heads + 2 * key_heads, -1).split([heads, key_heads, key_heads], dim=2)
        turn, place = int(positions[row]), int(lengths[row if lengths.numel() > 1 else 0]) - 1
        query, key = naive_norm_rotate(
            parts[0], parts[1], cos[None, turn : turn + 1], sin[None, turn : turn + 1],
            query_norm=query_norm, key_norm=key_norm, eps=eps, interleaved=interleaved,
        )  # fmt: skip
        out[row], keys[row, place], values[row, place] = query[0, :, 0], key[0, :, 0], parts[2][0, 0]
    return out


def choose_rotary_store_backend(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
) -> str:
    """ "triton" where its kernel serves these tensors, else "torch"."""
    return choose_for(qkv, keys, values, cos, sin, query_norm, key_norm)


def rotate_and_store(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    *,
    heads: int,
    key_heads: int,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of `qkv` [M, (Hq + 2 Hk) D], a token a row, the queries [M, Hq, D], normed and rotated by row `positions[m]` of
    the tables `cos` and `sin` [P, R]; its key, treated alike, and its value go to token `lengths[m] - 1` of `keys` and
    `values` [M, capacity, Hk, D]. `positions` int32 [M] and `lengths` int32 [1] or [M] are read on the device.
    """
    norms = {"query_norm": query_norm, "key_norm": key_norm, "eps": eps, "interleaved": interleaved}
    if choose_rotary_store_backend(qkv, keys, values, cos, sin, query_norm, key_norm) == TRITON:
        from inference_pio.kernels.triton.rotary_store import rotate_and_store as fused

        counted = {"heads": heads, "key_heads": key_heads, "out": out}
        return fused(qkv, keys, values, cos, sin, positions, lengths, **counted, **norms)  # type: ignore[arg-type]
    parts = qkv.view(len(qkv), 1, heads + 2 * key_heads, -1).split([heads, key_heads, key_heads], dim=2)
    turns, rows = positions.long(), torch.arange(len(qkv), device=qkv.device)
    query, key = norm_rotate(parts[0], parts[1], cos[turns][:, None], sin[turns][:, None], **norms)  # type: ignore[arg-type]
    places = (lengths - 1).long().expand(len(qkv))
    keys[rows, places], values[rows, places] = key[:, :, 0], parts[2][:, 0]
    if out is None:
        return query[:, :, 0]
    return out.copy_(query[:, :, 0])
