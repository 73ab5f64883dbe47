"""Causal attention of a prompt, bfloat16: torch's kernels by name, FlexAttention, and what flash_attention chooses."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.arms import tuned
from benchmarks.arms.problem import Inputs, KernelArm, Make, Problem, Run, Unavailable
from benchmarks.suites import Suite

ROWS = 32
BLOCK = 128
MOST_IN_GRAPH = 4096
"""Up to here calling from Python costs as much as the kernel."""


def sdpa(name: str, *, share: bool) -> Make:
    """`share`: the kernel reads each key head for its group; else the heads are repeated, inside the timed call."""

    def make(problem: Problem, device: torch.device, smoke: bool) -> Run:
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


def _flex(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from torch.nn.attention.flex_attention import flex_attention

    mask = causal_blocks(problem["length"], device)
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


def _pio(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from benchmarks.arms import library

    heads = problem["heads"]
    attend = library.optimized(*heads, device).attention
    return lambda query, key, value: attend(query, key, value, None).transpose(1, 2)


def _triton(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from inference_pio.kernels.triton.flash import flash_attention

    return flash_attention


def _triton_best(problem: Problem, device: torch.device, smoke: bool) -> Run:
    """As `tune-flash` found it best on this device."""
    from inference_pio.kernels.triton.flash import flash_attention
    from inference_pio.kernels.triton.flash_launch import FlashLaunch

    best = tuned.best("tune-flash", device, "described", "pointers")
    if best is None:
        raise Unavailable("the suite tune-flash has not chosen a launch for this device")
    launch = FlashLaunch(**best)
    return lambda query, key, value: flash_attention(query, key, value, launch=launch)


ARMS: dict[str, KernelArm] = {
    "cudnn": KernelArm("SDPA cuDNN", sdpa("CUDNN_ATTENTION", share=True), gpu_only=True),
    "flash": KernelArm("SDPA flash", sdpa("FLASH_ATTENTION", share=True)),
    "efficient": KernelArm("SDPA efficient (heads repeated)", sdpa("EFFICIENT_ATTENTION", share=False), gpu_only=True),
    "math": KernelArm("SDPA math", sdpa("MATH", share=True)),
    "flex": KernelArm("FlexAttention, compiled", _flex),
    "pio": KernelArm("inference-pio flash_attention", _pio),
    "triton": KernelArm("inference-pio, its Triton kernel", _triton, triton=True),
    "triton-best": KernelArm("the same, launched as tune-flash found best", _triton_best, triton=True),
}


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    heads, key_heads, width = suite.heads

    def problem(length: int) -> Problem:
        return Problem(
            str(length), "TFLOP/s", flops(length, heads, width),
            functools.partial(inputs, length, *suite.heads), lambda out, given: error_of(out, *given),
            {"length": length, "heads": suite.heads, "layout": suite.layout},
            in_graph=length <= MOST_IN_GRAPH, nbytes=2 * length * width * (heads + 2 * key_heads),
        )  # fmt: skip

    return [problem(length) for length in suite.lengths]


def inputs(length: int, heads: int, key_heads: int, width: int, device: torch.device) -> Inputs:
    """query [1, H, S, D], key and value [1, key heads, S, D], as models have them: views of [1, S, heads, D]."""
    generator = torch.Generator(device).manual_seed(length)
    shapes = ((1, length, heads, width), (1, length, key_heads, width), (1, length, key_heads, width))
    drawn = [torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for shape in shapes]
    drawn[0].mul_(2.0)  # peaked: with flat scores a missing mask would hardly show at long lengths
    query, key, value = (tensor.transpose(1, 2) for tensor in drawn)
    return query, key, value


def error_of(out: Tensor, query: Tensor, key: Tensor, value: Tensor, lists: Any = None) -> float:
    """Relative error of some rows of the output, first and last among them, against float32 by definition.

    `lists`: the keys outside their blocks are not seen.
    """
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    rows = torch.linspace(0, length - 1, min(ROWS, length), device=query.device).long()
    places = torch.arange(length, device=query.device)
    off, whole = 0.0, 0.0
    for head in range(key.shape[1]):
        heads = slice(head * groups, (head + 1) * groups)
        scores = query[0, heads][:, rows].float() @ key[0, head].float().T / math.sqrt(query.shape[-1])
        seen = (places <= rows[:, None])[None]
        if lists is not None:
            seen = seen & listed(lists, heads, rows, places)
        wanted = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ value[0, head].float()
        off += float((out[0, heads][:, rows].float() - wanted).square().sum())
        whole += float(wanted.square().sum())
    return math.sqrt(off / whole)


def listed(lists: Any, heads: slice, rows: Tensor, places: Tensor) -> Tensor:
    """Which keys lie in a listed block of a row: boolean [heads, rows, keys]."""
    blocks = rows // lists.query_block
    counts, indices = lists.counts[0, heads][:, blocks], lists.indices[0, heads][:, blocks].long()
    counted = torch.arange(indices.shape[-1], device=rows.device) < counts[..., None]
    behind = len(places) // lists.key_block + 1
    kept = torch.zeros(*counts.shape, behind + 1, dtype=torch.bool, device=rows.device)
    kept.scatter_(-1, indices.masked_fill(~counted, behind), True)
    return kept[..., places // lists.key_block]


def flops(length: int, heads: int, width: int) -> float:
    """Two products over the causal half."""
    return 2.0 * length * length * heads * width
