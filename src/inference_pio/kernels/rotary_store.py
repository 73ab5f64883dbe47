"""One decode token a row: norm and rotate its queries and keys, and write its key and value into the caches."""

from __future__ import annotations

from typing import NamedTuple

import torch

from inference_pio.kernels.elementwise_backend import TRITON, choose_for
from inference_pio.kernels.rotary import naive_norm_rotate, norm_joined, norm_rotate


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
    turned, rows = positions.long(), torch.arange(len(qkv), device=qkv.device)
    query, key = norm_rotate(parts[0], parts[1], cos[turned][:, None], sin[turned][:, None], **norms)  # type: ignore[arg-type]
    places = (lengths - 1).long().expand(len(qkv))
    keys[rows, places], values[rows, places] = key[:, :, 0], parts[2][:, 0]
    if out is None:
        return query[:, :, 0]
    return out.copy_(query[:, :, 0])


class Turns(NamedTuple):
    """Where the host knows it: cosines [M, 1, R], sines with the first half of their columns negated, and the place
    behind which tokens end."""

    cos: torch.Tensor
    sin: torch.Tensor
    place: int


def turns_at(cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor) -> Turns:
    """Of tables [P, R] on a CPU, for tokens at `positions` [M], all of which are written behind `lengths` [1] - 1."""
    rows = slice(turn := int(positions), turn + 1) if len(positions) == 1 else positions.long()
    signed = sin[rows, None].clone()
    signed[..., : signed.shape[-1] // 2].neg_()
    return Turns(cos[rows, None], signed, int(lengths) - 1)


def rotate_and_store_at(
    qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, turns: Turns, *, heads: int, key_heads: int,
    query_norm: torch.Tensor | None = None, key_norm: torch.Tensor | None = None, eps: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """`rotate_and_store` on a CPU in few calls, half-split alone: queries and keys are turned as one tensor, and what
    is looked up at the first layer of a step serves all others."""
    cos, sin, place = turns
    parts = qkv.view(len(qkv), heads + 2 * key_heads, -1)
    both, turned = parts[:, : heads + key_heads], cos.shape[-1]
    if query_norm is not None and key_norm is not None:
        both = norm_joined(both, heads, query_norm, key_norm, eps)
    part = both if turned == both.shape[-1] else both[..., :turned]
    out = (part * cos).add_(part.roll(turned // 2, -1).mul_(sin))
    if part is not both:
        out = torch.cat([out, both[..., turned:]], -1)
    keys[:, place].copy_(out[:, heads:])
    values[:, place].copy_(parts[:, heads + key_heads :])
    return out[:, :heads]
