"""Norm and rotation of queries and keys in one launch. The plain truth is `kernels.rotary.naive_norm_rotate`."""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels.triton.launch import on_device, rotary_rows
from inference_pio.kernels.triton.rounding import held, rounded
from inference_pio.kernels.triton.row_support import supports_rotary
from inference_pio.kernels.triton.support import require


@triton.jit
def turned(
    x, weight, cos, sin, out, whole, eps, DTYPE: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr,
    HALF: tl.constexpr, REST: tl.constexpr, NORMED: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Norm and turn rows of one head: `x`, `cos`, `sin` and `out` point [ROWS, 1] at their first columns, `whole` is
    which rows there are; HALF and REST are blocks that hold half of the TURNED columns, and the columns after them."""
    places = tl.arange(0, HALF)[None, :]
    halved = whole & (places < TURNED // 2)
    rest = TURNED + tl.arange(0, REST)[None, :]
    beyond = whole & (rest < WIDTH)
    if PAIRS:
        both = tl.arange(0, 2 * HALF)[None, :]
        pairs = tl.load(x + both, mask=whole & (both < TURNED), other=0.0).to(tl.float32)
        one, other = tl.split(tl.reshape(pairs, [ROWS, HALF, 2]))
    else:
        one = tl.load(x + places, mask=halved, other=0.0).to(tl.float32)
        other = tl.load(x + TURNED // 2 + places, mask=halved, other=0.0).to(tl.float32)
    unturned = one
    if TURNED < WIDTH:
        unturned = tl.load(x + rest, mask=beyond, other=0.0).to(tl.float32)
    if NORMED:
        square = tl.sum(one * one, 1) + tl.sum(other * other, 1)
        if TURNED < WIDTH:
            square += tl.sum(unturned * unturned, 1)
        scale = tl.rsqrt(square / WIDTH + eps)[:, None]
        if PAIRS:
            both = tl.arange(0, 2 * HALF)
            factors = tl.load(weight + both, mask=both < TURNED, other=0.0).to(tl.float32)
            first, second = tl.split(tl.reshape(factors, [HALF, 2]))
            first, second = first[None, :], second[None, :]
        else:
            inner = places < TURNED // 2
            first = tl.load(weight + places, mask=inner, other=0.0).to(tl.float32)
            second = tl.load(weight + TURNED // 2 + places, mask=inner, other=0.0).to(tl.float32)
        one = rounded(rounded(one * scale, DTYPE) * first, DTYPE)
        other = rounded(rounded(other * scale, DTYPE) * second, DTYPE)
        if TURNED < WIDTH:
            last = tl.load(weight + rest, mask=rest < WIDTH, other=0.0).to(tl.float32)
            unturned = rounded(rounded(unturned * scale, DTYPE) * last, DTYPE)
    cos_one = tl.load(cos + places, mask=halved, other=0.0).to(tl.float32)
    sin_one = tl.load(sin + places, mask=halved, other=0.0).to(tl.float32)
    cos_other, sin_other = cos_one, sin_one
    if not PAIRS:
        cos_other = tl.load(cos + TURNED // 2 + places, mask=halved, other=0.0).to(tl.float32)
        sin_other = tl.load(sin + TURNED // 2 + places, mask=halved, other=0.0).to(tl.float32)
    left = rounded(one * cos_one, DTYPE) - rounded(other * sin_one, DTYPE)
    right = rounded(other * cos_other, DTYPE) + rounded(one * sin_other, DTYPE)
    tl.store(out + places, held(left, DTYPE), mask=halved)
    tl.store(out + TURNED // 2 + places, held(right, DTYPE), mask=halved)
    if TURNED < WIDTH:
        tl.store(out + rest, unturned.to(DTYPE), mask=beyond)


@triton.jit(do_not_specialize=["tokens", "heads", "key_heads"])
def norm_rotate_kernel(
    query, key, cos, sin, query_norm, key_norm, query_out, key_out,
    query_batch, query_token, query_head, key_batch, key_token, key_head, cos_batch, cos_token, sin_batch, sin_token,
    tokens, heads, key_heads, eps,
    WIDTH: tl.constexpr, TURNED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, QUERY_NORM: tl.constexpr,
    KEY_NORM: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    whole = place < tokens
    token = place.to(tl.int64)
    cos_here = cos + batch * cos_batch + token * cos_token
    sin_here = sin + batch * sin_batch + token * sin_token
    DTYPE: tl.constexpr = query_out.dtype.element_ty
    if head < heads:
        turned(
            query + batch * query_batch + token * query_token + head.to(tl.int64) * query_head, query_norm,
            cos_here, sin_here, query_out + (batch * tokens * heads + head) * WIDTH + token * (heads * WIDTH), whole,
            eps, DTYPE, WIDTH, TURNED, HALF, REST, QUERY_NORM, PAIRS, ROWS,
        )  # fmt: skip
    else:
        head -= heads
        turned(
            key + batch * key_batch + token * key_token + head.to(tl.int64) * key_head, key_norm,
            cos_here, sin_here, key_out + (batch * tokens * key_heads + head) * WIDTH + token * (key_heads * WIDTH),
            whole, eps, DTYPE, WIDTH, TURNED, HALF, REST, KEY_NORM, PAIRS, ROWS,
        )  # fmt: skip


def norm_rotate(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [B, S, Hq, D] and keys [B, S, Hk, D], normed and rotated: [B, Hq, S, D] and [B, Hk, S, D], views of what
    lies token by token, as the library's do: attention answers in that layout, and its output needs no copy.

    Raises InvalidSetting for tensors that `supports_rotary` refuses.
    """
    require(supports_rotary(query, key, cos, sin, (query_norm, key_norm)))
    batch, tokens, heads, width = query.shape
    key_heads = key.shape[2]
    query_out = query.new_empty(batch, tokens, heads, width)
    key_out = key.new_empty(batch, tokens, key_heads, width)
    if query.numel() or key.numel():
        rows = rotary_rows(tokens, batch * (heads + key_heads))
        with on_device(query):
            norm_rotate_kernel[(triton.cdiv(tokens, rows), heads + key_heads, batch)](
                query, key, cos, sin, query_norm, key_norm, query_out, key_out, *query.stride()[:3], *key.stride()[:3],
                *table_strides(cos), *table_strides(sin), tokens, heads, key_heads, eps, **blocks(width, cos.shape[-1]),
                QUERY_NORM=query_norm is not None, KEY_NORM=key_norm is not None, PAIRS=interleaved, ROWS=rows,
                num_warps=2 if rows > 4 else 1, enable_fp_fusion=False,
            )  # fmt: skip
    return query_out.transpose(1, 2), key_out.transpose(1, 2)


def blocks(width: int, turned_columns: int) -> dict[str, int]:
    """The sizes by which heads are cut: half of what turns, and what does not."""
    return {
        "WIDTH": width, "TURNED": turned_columns, "HALF": triton.next_power_of_2(max(turned_columns // 2, 1)),
        "REST": triton.next_power_of_2(max(width - turned_columns, 1)),
    }  # fmt: skip


def table_strides(table: torch.Tensor) -> tuple[int, int]:
    """Batch and token strides of `cos` or `sin`, of which one may serve all rows."""
    return (table.stride(0) if table.shape[0] > 1 else 0), table.stride(1)
