"""One decode token a row: norm and rotate its queries and keys, store its key and value; one launch for all heads.

Where to turn and where to write is read on the device, so one recorded graph serves every length. The plain truth is
`kernels.rotary_store.naive_rotate_and_store`.
"""

from __future__ import annotations

import torch

import triton
import triton.language as tl
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.rotary import blocks, turned
from inference_pio.kernels.triton.row_support import supports_rotary_store
from inference_pio.kernels.triton.support import require


@triton.jit(do_not_specialize=["heads", "key_heads"])
def rotate_and_store_kernel(
    qkv, keys, values, cos, sin, positions, lengths, query_norm, key_norm, out,
    qkv_row, key_row, key_token, key_head, value_row, value_token, value_head, cos_row, sin_row, out_row, out_head,
    length_step, heads, key_heads, eps,
    WIDTH: tl.constexpr, TURNED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, BLOCK: tl.constexpr,
    QUERY_NORM: tl.constexpr, KEY_NORM: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    turn = tl.load(positions + row).to(tl.int64)
    token = tl.load(lengths + row * length_step).to(tl.int64) - 1
    here, whole = tl.zeros([1, 1], tl.int64), tl.full([1, 1], True, tl.int1)
    source = qkv + row * qkv_row + part * WIDTH
    cos_here, sin_here = cos + turn * cos_row + here, sin + turn * sin_row + here
    DTYPE: tl.constexpr = out.dtype.element_ty
    if part < heads:
        turned(
            source + here, query_norm, cos_here, sin_here, out + row * out_row + part * out_head + here, whole, eps,
            DTYPE, WIDTH, TURNED, HALF, REST, QUERY_NORM, PAIRS, 1,
        )  # fmt: skip
    elif part < heads + key_heads:
        place = row * key_row + token * key_token + (part - heads) * key_head
        turned(
            source + here, key_norm, cos_here, sin_here, keys + place + here, whole, eps,
            DTYPE, WIDTH, TURNED, HALF, REST, KEY_NORM, PAIRS, 1,
        )  # fmt: skip
    else:
        place = row * value_row + token * value_token + (part - heads - key_heads) * value_head
        columns = tl.arange(0, BLOCK)
        tl.store(values + place + columns, tl.load(source + columns, mask=columns < WIDTH), mask=columns < WIDTH)


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
    """The queries [M, Hq, D] of `qkv` [M, (Hq + 2 Hk) D]; its keys and values are written at token `lengths[m] - 1`.

    Nothing is allocated where `out` is given; nothing waits for the device. Raises InvalidSetting for tensors that
    `supports_rotary_store` refuses.
    """
    require(supports_rotary_store(qkv, keys, values, cos, sin, positions, lengths, heads, (query_norm, key_norm)))
    rows, width = len(qkv), keys.shape[-1]
    out = qkv.new_empty(rows, heads, width) if out is None else out
    with on_device(qkv):
        rotate_and_store_kernel[(heads + 2 * key_heads, rows)](
            qkv, keys, values, cos, sin, positions, lengths, query_norm, key_norm, out, qkv.stride(0),
            *keys.stride()[:3], *values.stride()[:3], cos.stride(0), sin.stride(0), out.stride(0), out.stride(1),
            int(lengths.numel() > 1), heads, key_heads, eps, **blocks(width, cos.shape[-1]),
            BLOCK=triton.next_power_of_2(width), QUERY_NORM=query_norm is not None, KEY_NORM=key_norm is not None,
            PAIRS=interleaved, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return out
