"""Causal attention alone, bfloat16: torch's kernels by name, FlexAttention, and what flash_attention chooses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_pio.kernels.triton.launch import FlashLaunch

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
ROWS = 32
BLOCK = 128
TOLERANCE = 1e-2
"""Relative error of bfloat16 outputs; two right kernels lie under 5e-3."""


def _sdpa(name: str, *, share: bool) -> Callable[[int, torch.device, bool], Attend]:
    """`share`: the kernel reads each key head for its group; else the heads are repeated, inside the timed call."""

    def make(length: int, device: torch.device, smoke: bool) -> Attend:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = getattr(SDPBackend, name)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            groups = query.shape[1] // key.shape[1]
            if not share:
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=share)

        return attend

    return make


def _flex(length: int, device: torch.device, smoke: bool) -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    mask = causal_blocks(length, device)
    # uncompiled it materializes the scores, and is for trying out only; a smoke run is content with that
    run = flex_attention if smoke else torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda query, key, value: run(query, key, value, block_mask=mask, enable_gqa=True)


def causal_blocks(length: int, device: torch.device) -> Any:
    """FlexAttention's causal mask; long ones by definition, since the library's own way fills length x length first."""
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    if length % BLOCK:
        return create_block_mask(causal, None, None, length, length, device=str(device))
    rows = torch.arange(length // BLOCK, dtype=torch.int32, device=device)
    partial = rows[None, None, :, None].repeat(1, 1, 1, len(rows))  # the first entry counts: the block on the diagonal
    full = rows[None, None, None].repeat(1, 1, len(rows), 1)  # as many as the row's number: all to the left of it
    ones = torch.ones_like(rows)[None, None]
    return BlockMask.from_kv_blocks(ones, partial, rows[None, None].clone(), full, BLOCK_SIZE=BLOCK, mask_mod=causal)


def _pio(length: int, device: torch.device, smoke: bool) -> Attend:
    from inference_pio.kernels.attention_backends import HeadShape, run
    from inference_pio.kernels.attention_choice import Phase
    from inference_pio.kernels.attention_serving import choose_serving

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = HeadShape(query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
        serving, _ = choose_serving(shape, query.dtype, device, (Phase.PREFILL,))
        return run(serving.backend(Phase.PREFILL, key.shape[2]), Phase.PREFILL, query, key, value)

    return attend


def _triton(launch: FlashLaunch | None = None) -> Callable[[int, torch.device, bool], Attend]:
    def make(length: int, device: torch.device, smoke: bool) -> Attend:
        from inference_pio.kernels.triton.flash import flash_attention

        return lambda query, key, value: flash_attention(query, key, value, launch=launch)

    return make


TRITON = {
    "triton-128x64-alone": FlashLaunch(128, 64, 8, 3, described=True),
    "triton-128x128": FlashLaunch(128, 128, 8, 2, described=True),
    "triton-128x128-deep": FlashLaunch(128, 128, 8, 3, described=True),
    "triton-pointers": FlashLaunch(128, 64, 8, 2),
}
"""Launches worth timing beside the one that is chosen: one program a multiprocessor, wider steps, no copy engine."""


ARMS: dict[str, tuple[str, Callable[[int, torch.device, bool], Attend]]] = {
    "cudnn": ("SDPA cuDNN", _sdpa("CUDNN_ATTENTION", share=True)),
    "flash": ("SDPA flash", _sdpa("FLASH_ATTENTION", share=True)),
    "efficient": ("SDPA efficient (heads repeated)", _sdpa("EFFICIENT_ATTENTION", share=False)),
    "math": ("SDPA math", _sdpa("MATH", share=True)),
    "flex": ("FlexAttention, compiled", _flex),
    "pio": ("inference-pio flash_attention", _pio),
    "triton": ("inference-pio, its Triton kernel", _triton()),
    **{name: (f"the same, launched as {name.removeprefix('triton-')}", _triton(how)) for name, how in TRITON.items()},
}


def inputs(length: int, heads: int, key_heads: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(length)
    shapes = ((1, heads, length, width), (1, key_heads, length, width), (1, key_heads, length, width))
    drawn = [torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for shape in shapes]
    drawn[0].mul_(2.0)  # peaked: with flat scores a missing mask would hardly show at long lengths
    return drawn[0], drawn[1], drawn[2]


def error_of(out: Tensor, query: Tensor, key: Tensor, value: Tensor) -> float:
    """Relative error of some rows of the output, first and last among them, against float32 by definition."""
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    rows = torch.linspace(0, length - 1, min(ROWS, length), device=query.device).long()
    off, whole = 0.0, 0.0
    for head in range(key.shape[1]):
        heads = slice(head * groups, (head + 1) * groups)
        scores = query[0, heads][:, rows].float() @ key[0, head].float().T / math.sqrt(query.shape[-1])
        seen = torch.arange(length, device=query.device) <= rows[:, None]
        wanted = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ value[0, head].float()
        off += float((out[0, heads][:, rows].float() - wanted).square().sum())
        whole += float(wanted.square().sum())
    return math.sqrt(off / whole)


def flops(length: int, heads: int, width: int) -> float:
    """Two products over the causal half."""
    return 2.0 * length * length * heads * width
