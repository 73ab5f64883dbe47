"""Launches of the own attention kernels, timed beside one another at one size: the list is data, the best is recorded.

Each variant is a size of its own here: checked by itself, and timed in turn. Safe ones come first: an illegal access
would end the process, and with it those behind.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.arms import attention, decode_attention, sparse_attention
from benchmarks.arms.problem import Inputs, KernelArm, Problem, Run
from benchmarks.suites import Suite
from inference_pio.kernels.triton.flash_launch import FlashLaunch
from inference_pio.kernels.triton.launch import DecodeLaunch

CHOOSES_BEST = True

DESCRIBED = [
    FlashLaunch(128, 64, 8, 2, True, 128),
    FlashLaunch(128, 64, 8, 2, True),
    FlashLaunch(128, 64, 8, 3, True),
    FlashLaunch(128, 64, 8, 3, True, 128),
    FlashLaunch(128, 64, 8, 4, True),
    FlashLaunch(128, 64, 4, 3, True),
    FlashLaunch(128, 128, 8, 2, True),
    FlashLaunch(128, 128, 8, 3, True),
    FlashLaunch(128, 32, 8, 3, True, 128),
    FlashLaunch(128, 32, 8, 4, True, 128),
    FlashLaunch(64, 64, 4, 2, True),
    FlashLaunch(64, 64, 4, 3, True),
    FlashLaunch(64, 128, 4, 2, True),
    FlashLaunch(64, 128, 4, 3, True),
    FlashLaunch(256, 64, 8, 2, True),
]
POINTERS = [
    FlashLaunch(128, 32, 8, 3),
    FlashLaunch(128, 64, 8, 2),
    FlashLaunch(128, 64, 8, 3),
    FlashLaunch(64, 64, 4, 3),
    FlashLaunch(128, 128, 8, 2),
]
PADDED = [
    FlashLaunch(128, 64, 8, 3, True),
    FlashLaunch(128, 64, 8, 2, True),
    FlashLaunch(128, 128, 8, 2, True),
    FlashLaunch(64, 64, 4, 3, True),
    FlashLaunch(128, 32, 8, 3, True),
    FlashLaunch(128, 32, 8, 3),
]
LISTED = [
    FlashLaunch(128, 64, 8, 2, True, 128),
    FlashLaunch(128, 64, 8, 2, True),
    FlashLaunch(128, 64, 8, 3, True),
    FlashLaunch(128, 128, 8, 2, True),
    FlashLaunch(128, 32, 8, 4, True, 128),
    FlashLaunch(64, 64, 4, 3, True),
    FlashLaunch(128, 32, 8, 3),
]
DECODE = [
    DecodeLaunch(splits, warps, stages)
    for warps, stages in ((4, 3), (4, 2), (4, 4), (8, 3), (2, 3))
    for splits in (16, 33, 49, 66, 99)
]
VARIANTS: dict[str, list[Any]] = {
    "described": DESCRIBED, "pointers": POINTERS, "padded": PADDED, "listed": LISTED, "4:1": DECODE, "8:1": DECODE,
}  # fmt: skip
LABELS = {
    "described": "causal, keys moved by the copy engine",
    "pointers": "causal, keys by pointers",
    "padded": "causal, rows that start behind padding",
    "listed": "lists of blocks, an eighth of them",
    "4:1": "decode, 4 heads share one",
    "8:1": "decode, 8 heads share one",
}
DENSITY = 0.125
STARTS = 100


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    """All variants of the suite; each belongs to the arm that its `given` names."""
    return [_problem(suite, arm, launch) for arm in VARIANTS if arm in suite.arms for launch in VARIANTS[arm]]


def _problem(suite: Suite, arm: str, launch: Any) -> Problem:
    heads, _, width = suite.heads
    (length,) = suite.lengths[:1]
    name, given = spelled(launch), {"launch": asdict(launch), "arm": arm, "length": length}
    if isinstance(launch, DecodeLaunch):
        shared = (heads, max(1, heads // int(arm.split(":")[0])), width)
        base = decode_attention.problem(shared, 1, length, length)
        return Problem(name, base.unit, base.work, base.draw, base.error, given, in_graph=True, nbytes=base.nbytes)
    work = attention.flops(length, heads, width)
    draw, given = functools.partial(attention.inputs, length, *suite.heads), given | {"layout": suite.layout}
    return Problem(name, "TFLOP/s", work, draw, lambda out, inputs: attention.error_of(out, *inputs), given)


def spelled(launch: Any) -> str:
    """
    >>> spelled(FlashLaunch(128, 64, 8, 2, True, 128)), spelled(DecodeLaunch(49))
    ('128x64 w8 s2 engine r128', '49 splits w4 s3')
    """
    if isinstance(launch, DecodeLaunch):
        return f"{launch.splits} splits w{launch.warps} s{launch.stages}"
    words = [f"{launch.query_block}x{launch.key_block}", f"w{launch.warps}", f"s{launch.stages}"]
    words += ["engine"] * launch.described
    return " ".join([*words, *([f"r{launch.registers}"] if launch.registers else [])])


def _flash(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from inference_pio.kernels.triton.flash import flash_attention

    launch = FlashLaunch(**problem["launch"])
    return lambda *tensors: flash_attention(*tensors, launch=launch)


def _padded(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from inference_pio.kernels.triton.flash import flash_attention

    launch = FlashLaunch(**problem["launch"])
    starts = torch.tensor([STARTS], dtype=torch.int32, device=device)
    return lambda *tensors: flash_attention(*tensors, launch=launch, starts=starts)


def _padded_error(problem: Problem, out: Any, inputs: Inputs) -> float:
    query, key, value = (tensor[:, :, STARTS:] for tensor in inputs)
    return attention.error_of(out[:, :, STARTS:], query, key, value)


def _lists(problem: Problem, device: torch.device) -> Any:
    launch = problem["launch"]
    return sparse_attention.built_lists(problem["length"], 32, DENSITY, device, launch["query_block"])


def _listed(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from inference_pio.kernels.triton.flash import flash_attention

    launch, lists = FlashLaunch(**problem["launch"]), _lists(problem, device)
    return lambda *tensors: flash_attention(*tensors, launch=launch, lists=lists)


def _listed_error(problem: Problem, out: Any, inputs: Inputs) -> float:
    return attention.error_of(out, *inputs, _lists(problem, inputs[0].device))


def _decode(problem: Problem, device: torch.device, smoke: bool) -> Run:
    return decode_attention.launched(DecodeLaunch(**problem["launch"]))


ERRORS = {"padded": _padded_error, "listed": _listed_error}
MAKERS = {"described": _flash, "pointers": _flash, "padded": _padded, "listed": _listed}
ARMS = {
    name: KernelArm(LABELS[name], MAKERS.get(name, _decode), triton=True, error=ERRORS.get(name)) for name in VARIANTS
}
