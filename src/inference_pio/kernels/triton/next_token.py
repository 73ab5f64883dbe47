"""The best token of each row, and what a step leaves for the next one, in one launch.

Programs share the logits of a row; the last that comes takes the best of what they found, writes the token, and counts.
The plain truth is `kernels.next_token.naive_next_token`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import triton
import triton.language as tl
from inference_pio.kernels.triton.launch import on_device
from inference_pio.kernels.triton.overlap import overlapping, wait_for_others
from inference_pio.kernels.triton.row_support import supports_next_token
from inference_pio.kernels.triton.support import require

BLOCK = 2048
"""Logits of a program: 75 programs share the 151,936 of a Qwen3, each thread with 16 of them."""
WARPS = 4
HIGHEST, LOWEST = tl.constexpr(0x7FFFFFFF), tl.constexpr(-0x80000000)


@dataclass(frozen=True)
class NextTokenScratch:
    """What the programs leave for the last one: int32 [M, parts] twice, and int32 [M] of zeros between launches."""

    best: torch.Tensor
    places: torch.Tensor
    arrived: torch.Tensor

    @classmethod
    def of(cls, rows: int, vocabulary: int, device: torch.device) -> NextTokenScratch:
        shape = (rows, triton.cdiv(vocabulary, BLOCK))
        best, places = (torch.empty(shape, dtype=torch.int32, device=device) for _ in range(2))
        return cls(best, places, torch.zeros(rows, dtype=torch.int32, device=device))


@triton.jit
def in_order(scores):
    """int32 that stand in the order of these scores: both zeros are one, and what is no number is above all."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return tl.where(scores != scores, HIGHEST, tl.where(bits < 0, bits ^ HIGHEST, bits))


@triton.jit
def count(counted, places, here):
    """One more, of those that are `here`."""
    tl.store(counted + places, tl.load(counted + places, mask=here, other=0) + 1, mask=here)


@triton.jit(do_not_specialize_on_alignment=["given"])
def next_token_kernel(
    logits, tokens, given, positions, made, entered, best, places, arrived, logits_row, given_step, vocabulary,
    PROGRAM_LOGITS: tl.constexpr, PARTS: tl.constexpr, PART_ROWS: tl.constexpr, ENTERS: tl.constexpr,
    DEPENDENT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = part * PROGRAM_LOGITS + tl.arange(0, PROGRAM_LOGITS)
    if DEPENDENT:
        wait_for_others(INTERPRETED)
    scores = tl.load(logits + row * logits_row + columns, mask=columns < vocabulary, other=float("-inf"))
    highest, place = tl.max(in_order(scores.to(tl.float32)), 0, return_indices=True)
    left = row * PARTS
    tl.store(best + left + part, highest)
    tl.store(places + left + part, part * PROGRAM_LOGITS + place)
    tl.debug_barrier()
    came_before = tl.atomic_add(arrived + row, 1, sem="acq_rel")
    if came_before == PARTS - 1:
        tl.store(arrived + row, 0)
        parts = tl.arange(0, PART_ROWS)
        found = tl.load(best + left + parts, mask=parts < PARTS, other=LOWEST, cache_modifier=".cg")
        _, winner = tl.max(found, 0, return_indices=True)
        token = tl.load(places + left + winner, cache_modifier=".cg").to(tl.int64)
        tl.store(tokens + row, token)
        tl.store(given + row * given_step, token)
        one = tl.arange(0, 2)
        count(positions + row, one, one < 1)
        count(made, one, (one < 1) & (row == 0))
        if ENTERS:
            count(entered, one, row == 0)


def next_token(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    given: torch.Tensor,
    positions: torch.Tensor,
    made: torch.Tensor,
    entered: torch.Tensor | None = None,
    *,
    scratch: NextTokenScratch | None = None,
    dependent: bool = False,
) -> None:
    """`kernels.next_token.naive_next_token` for logits float32 [M, V], int64 `tokens` and `given` [M], int32
    `positions` [M], and counts: `made` int32 [1], and `entered` int32 [2], where it is given.

    `dependent`: it may begin before the launch in front has ended. Nothing is allocated where `scratch` is given;
    nothing waits for the device. Raises InvalidSetting for tensors that `supports_next_token` refuses.
    """
    require(supports_next_token(logits, (tokens, given), (positions, made), entered))
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, BLOCK)
    scratch = scratch or NextTokenScratch.of(rows, vocabulary, logits.device)
    with on_device(logits):
        next_token_kernel[(parts, rows)](
            logits, tokens, given, positions, made, entered, scratch.best, scratch.places, scratch.arrived,
            logits.stride(0), given.stride(0), vocabulary, PROGRAM_LOGITS=BLOCK, PARTS=parts,
            PART_ROWS=max(2, triton.next_power_of_2(parts)), ENTERS=entered is not None, num_warps=WARPS,
            **overlapping(dependent),
        )  # fmt: skip
