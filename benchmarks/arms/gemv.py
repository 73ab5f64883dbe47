"""Products of a few rows with large matrices, as a decode step has them: bytes of weights over the time of one call in
a graph that walks through many weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.arms.problem import Inputs, KernelArm, Problem, Run, Told, relative_error
from benchmarks.suites import Suite
from inference_pio.kernels.gemv import naive_gemv

if TYPE_CHECKING:
    from inference_pio.kernels.triton.gemv_tuning import Tuning

TUNING_S = 2.5
MOST_TOLD = 8
SHAPES = {
    "4B qkv": (6144, 2560), "4B out": (2560, 4096), "4B gate+up": (19456, 2560), "4B down": (2560, 9728),
    "4B head": (151936, 2560), "30B-A3B qkv": (5120, 2048), "30B-A3B out": (2048, 4096), "VL-2B qkv": (4096, 2048),
    "VL-2B out": (2048, 2048), "VL-2B gate+up": (12288, 2048), "VL-2B down": (2048, 6144),
    "Flash into": (1344, 2048), "Flash query": (5120, 768), "Flash out": (2048, 5120), "Flash head": (154880, 2048),
}  # fmt: skip
"""Weights [rows, columns]; those of a few parts of one input stand for their sum."""
GATED = ("4B gate+up", "VL-2B gate+up")
MORE_ROWS = (2, 4, 8)
"""Rows of x, of Qwen3-4B's products alone; all others have one."""


def problems(suite: Suite, smoke: bool) -> list[Problem]:
    if smoke:
        return [_problem("small", 1, 96, 64), _problem("small gated", 2, 96, 64, gated=True)]
    found = []
    for name, shape in SHAPES.items():
        rows = (1, *MORE_ROWS) if name.startswith("4B") else (1,)
        found += [_problem(name, count, *shape) for count in rows]
        found += [_problem(f"{name} gated", 1, *shape, gated=True)] * (name in GATED)
    return found


def _problem(name: str, rows: int, outputs: int, inputs: int, *, gated: bool = False) -> Problem:
    many, nbytes = f" x{rows}" if rows > 1 else "", 2 * outputs * inputs

    def error(out: Tensor, given: Inputs) -> float:
        x, weight = given
        return relative_error(out, naive_gemv(x, [weight], gated=gated, rounded=False))

    return Problem(
        f"{name}{many} {outputs} x {inputs}", "GB/s", nbytes, functools.partial(_draw, rows, outputs, inputs), error,
        {"gated": gated, "rows": rows, "outputs": outputs, "inputs": inputs, "floor_us": nbytes / 3.0e6},
        in_graph=True, nbytes=nbytes,
    )  # fmt: skip


def _draw(rows: int, outputs: int, inputs: int, device: torch.device) -> Inputs:
    chance = torch.Generator(device).manual_seed(outputs)
    x = torch.randn(rows, inputs, generator=chance, device=device, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, generator=chance, device=device, dtype=torch.bfloat16)
    return x, weight.mul_(inputs**-0.5)


def _cublas(problem: Problem, device: torch.device, smoke: bool) -> Run:
    from inference_pio.kernels.gated import silu_mul

    return (lambda x, weight: silu_mul(F.linear(x, weight))) if problem["gated"] else F.linear


def _by_rule(problem: Problem, device: torch.device, smoke: bool) -> Run:
    return _launched(problem, _rule(problem, device, dependent=False))


def _rule(problem: Problem, device: torch.device, *, dependent: bool) -> Any:
    from inference_pio.kernels.triton.gemv_choice import choose_gemv_launch
    from inference_pio.kernels.triton.launch import device_limits

    sizes = problem["rows"], problem["outputs"], problem["inputs"]
    return choose_gemv_launch(device_limits(device), *sizes, 2, gated=problem["gated"], dependent=dependent)


def _launched(problem: Problem, launch: Any, more: Mapping[str, Any] | None = None) -> Run:
    """`more` is recorded beside the launch."""
    from inference_pio.kernels.triton.gemv import gemv

    facts = {"launch": asdict(launch), **(more or {})}
    return Told(lambda x, weight: gemv(x, [weight], gated=problem["gated"], launch=launch), facts)


def _tuned(dependent: bool) -> Any:
    def make(problem: Problem, device: torch.device, smoke: bool) -> Run:
        from inference_pio.kernels.triton.gemv_candidates import GemvProblem
        from inference_pio.kernels.triton.gemv_tuning import tune

        if device.type != "cuda":  # nothing can be timed in the interpreter
            return _launched(problem, _rule(problem, device, dependent=dependent))
        outputs = (problem["outputs"] // 2,) * 2 if problem["gated"] else (problem["outputs"],)
        asked = GemvProblem(problem["rows"], problem["inputs"], outputs, gated=problem["gated"], dependent=dependent)
        copies = max(1, min(8, int(2.5e8 // problem.nbytes)))
        in_turn = [([problem.draw(device)[1]], None) for _ in range(copies)]
        return _found(problem, tune(asked, in_turn, TUNING_S))

    return make


def _found(problem: Problem, tuning: Tuning) -> Run:
    """The launch that was found, with the time of the fastest that were tried: rules are made from them."""
    tried = sorted(tuning.microseconds.items(), key=lambda pair: pair[1])[:MOST_TOLD]
    timed = [{"launch": asdict(launch), "us": round(us, 3)} for launch, us in tried]
    return _launched(problem, tuning.launch, {"tried": timed, "notes": list(tuning.notes)})


ARMS: dict[str, KernelArm] = {
    "cublas": KernelArm("F.linear (cuBLAS)", _cublas),
    "pio-rule": KernelArm("inference-pio, launched by rule", _by_rule, triton=True),
    "pio-tuned": KernelArm("inference-pio, tuned here", _tuned(False), triton=True),
    "pio-dependent": KernelArm("inference-pio, tuned here, dependent launches", _tuned(True), triton=True),
}
