"""Attention of one new token over a long cache: bytes of keys and values read, over the time of one call in a graph.

Own kernels read the cache as it is kept, tokens before heads; the library's get theirs, heads before tokens.
"""

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

KEY_HEADS = (8, 4)
BATCHES = (1, 8)
LARGE_CAPACITY = 65536
MOST_BYTES = 2.5e9
"""A larger cache is left out: it tells nothing that a smaller one does not, and systems are set up beside others."""


def sdpa(name: str | None, *, share: bool = True) -> Make:
    """torch's kernels, by name or as torch chooses."""

    def make(problem: Problem, device: torch.device, smoke: bool) -> Run:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            groups = query.shape[1] // key.shape[1]
            if not share:
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            return F.scaled_dot_product_attention(query, key, value, enable_gqa=share)[:, :, 0]

        if name is None:
            return attend
        backend = getattr(SDPBackend, name)

        def restricted(*inputs: Tensor) -> Tensor:
            with sdpa_kernel([backend]):
                return attend(*inputs)

        return restricted

    return make


def heads_first(problem: Problem, inputs: Inputs) -> Inputs:
    """The library's layout of a static cache, and of it what is filled."""
    query, key, value, _ = inputs
    key, value = (tensor.transpose(1, 2).contiguous()[:, :, : problem["length"]] for tensor in (key, value))
    return query[:, :, None], key, value


def _pio(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from benchmarks.arms import library

    attend = library.optimized(*problem["heads"], device).attention
    return lambda query, key, value: attend(query, key, value, None)[:, 0]


def launched(launch: Any) -> Run:
    """As a recorded step launches it: its scratch stays, and the last program joins."""
    from inference_pio.kernels.triton.decode import DecodeScratch, decode_attention
    from inference_pio.kernels.triton.launch import choose_decode_launch, device_limits, last_joins

    kept: dict[Any, Any] = {}

    def run(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, pages: Any = None) -> Tensor:
        (batch, heads, width), (_, capacity, key_heads, _) = query.shape, key.shape
        chosen = launch or choose_decode_launch(device_limits(query.device), batch, key_heads, width, capacity)
        sizes = (batch, heads, width, key_heads, chosen)
        if sizes not in kept:
            counted = key_heads if last_joins(chosen, heads // key_heads) else 0
            kept[sizes] = DecodeScratch.of(batch, heads, width, chosen, query.device, counted=counted)
        return decode_attention(query, key, value, lengths, pages=pages, launch=chosen, scratch=kept[sizes])

    return run


def _triton(problem: Problem, device: torch.device, smoke: bool) -> Run:
    return launched(None)


def _triton_best(problem: Problem, device: torch.device, smoke: bool) -> Run:
    """As `tune-decode` found it best for this sharing of heads; its splits are those of 32K tokens in one row."""
    from inference_pio.kernels.triton.launch import PAGE, DecodeLaunch

    heads, key_heads, _ = problem["heads"]
    best = tuned.best("tune-decode", device, f"{heads // key_heads}:1")
    if best is None:
        raise Unavailable("the suite tune-decode has not chosen a launch for this device")
    splits = max(1, min(best["splits"] // problem["batch"], -(-problem["capacity"] // PAGE)))
    return launched(DecodeLaunch(**best | {"splits": splits}))


ARMS: dict[str, KernelArm] = {
    "default": KernelArm("SDPA as torch chooses", sdpa(None), prepare=heads_first),
    "flash": KernelArm("SDPA flash", sdpa("FLASH_ATTENTION"), prepare=heads_first),
    "cudnn": KernelArm("SDPA cuDNN", sdpa("CUDNN_ATTENTION"), gpu_only=True, prepare=heads_first),
    "efficient": KernelArm(
        "SDPA efficient (heads repeated)", sdpa("EFFICIENT_ATTENTION", share=False), gpu_only=True, prepare=heads_first
    ),
    "pio": KernelArm("inference-pio flash_attention", _pio, prepare=heads_first),
    "triton": KernelArm("inference-pio, its split kernel over its own cache", _triton, triton=True),
    "triton-best": KernelArm("the same, launched as tune-decode found best", _triton_best, triton=True),
}


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    heads, _, width = suite.heads
    key_heads = [1, 2] if smoke else KEY_HEADS
    found = [
        problem((heads, shared, width), batch, length, length)
        for shared in key_heads
        for batch in BATCHES
        for length in suite.lengths
        if 4 * batch * shared * width * length <= MOST_BYTES
    ]
    short, capacity = (32, 96) if smoke else (1024, LARGE_CAPACITY)
    return [*found, problem((heads, key_heads[0], width), 1, short, capacity)]


def problem(heads: tuple[int, int, int], batch: int, length: int, capacity: int) -> Problem:
    group, many = heads[0] // heads[1], f" x{batch}" if batch > 1 else ""
    room = f" in room for {capacity}" if capacity > length else ""
    nbytes = 4 * batch * heads[1] * heads[2] * length
    return Problem(
        f"{group}:1{many} {length}{room}", "GB/s", nbytes, functools.partial(inputs, heads, batch, length, capacity),
        lambda out, given: error_of(out, *given[:3], length),
        {"heads": heads, "batch": batch, "length": length, "capacity": capacity}, in_graph=True, nbytes=nbytes,
    )  # fmt: skip


def inputs(heads: tuple[int, int, int], batch: int, length: int, capacity: int, device: torch.device) -> Inputs:
    """query [B, H, D], key and value [B, capacity, key heads, D], lengths int32 [1]."""
    generator = torch.Generator(device).manual_seed(length)
    query = torch.randn(batch, heads[0], heads[2], generator=generator, device=device, dtype=torch.bfloat16) * 2
    shape = (batch, capacity, heads[1], heads[2])
    key, value = (torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(2))
    return query, key, value, torch.tensor([length], dtype=torch.int32, device=device)


def error_of(out: Tensor, query: Tensor, key: Tensor, value: Tensor, length: int) -> float:
    """Relative error against float32 by definition, a key head at a time: whole caches in float32 would not fit."""
    groups, off, whole = query.shape[1] // key.shape[2], 0.0, 0.0
    for row in range(query.shape[0]):
        for head in range(key.shape[2]):
            heads = slice(head * groups, (head + 1) * groups)
            scores = query[row, heads].float() @ key[row, :length, head].float().T / math.sqrt(query.shape[-1])
            wanted = torch.softmax(scores, -1) @ value[row, :length, head].float()
            off += float((out[row, heads].float() - wanted).square().sum())
            whole += float(wanted.square().sum())
    return math.sqrt(off / whole)
