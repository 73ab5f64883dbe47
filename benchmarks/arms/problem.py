"""A problem that a kernel solves, and an arm that solves it: tensors in, a tensor out, held against a definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inference_pio.compat import has_triton, triton_interprets

Inputs = tuple[Any, ...]
Run = Callable[..., Tensor]
TOLERANCE = 1e-2
"""Relative error of bfloat16 outputs; two right kernels lie under 5e-3."""
CEILINGS = {"TFLOP/s": "matmul bfloat16", "GB/s": "memory read"}
PER_UNIT = {"TFLOP/s": 1e12, "GB/s": 1e9}


class Unavailable(Exception):
    """This system cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Problem:
    """One size. `work` is what one call must compute or read at least, in operations or bytes by `unit`: a system that
    does more, or leaves something out, shows it in its rate. `draw(device)` gives the inputs, the same at each call.

    `in_graph`: calls take microseconds, so they are recorded in a CUDA graph, over inputs of `nbytes` each in turn that
    together do not fit the cache: as many as are whole rounds of `turns`. `once`: one call a round, since each call
    meets what none before it met. `given` is what the family's arms read: lengths, a launch.
    """

    name: str
    unit: str
    work: float
    draw: Callable[[torch.device], Inputs]
    error: Callable[[Tensor, Inputs], float]
    given: Mapping[str, Any] = field(default_factory=dict)
    in_graph: bool = False
    nbytes: int = 0
    once: bool = False
    turns: int = 1
    tolerance: float = TOLERANCE

    def __getitem__(self, name: str) -> Any:
        return self.given[name]


Make = Callable[[Problem, torch.device, bool], Run]


@dataclass(frozen=True)
class Told:
    """A run with what was found while it was made, recorded beside the case: a launch, say."""

    run: Run
    facts: Mapping[str, Any]

    def __call__(self, *inputs: Any) -> Tensor:
        return self.run(*inputs)


@dataclass(frozen=True)
class KernelArm:
    """`make(problem, device, smoke)` gives what is timed. `prepare` is done to the inputs before, untimed: another
    layout, say. `error`, where given, judges in place of the problem's own: a sparse arm computes something else.
    `facts(problem, inputs)` is recorded beside the case: a density, say. `ahead`: the device begins when the host has
    asked for all calls, as it does in a model, where other layers' work lies in front."""

    label: str
    make: Make
    gpu_only: bool = False
    triton: bool = False
    prepare: Callable[[Problem, Inputs], Inputs] | None = None
    error: Callable[[Problem, Tensor, Inputs], float] | None = None
    facts: Callable[[Problem, Inputs], Mapping[str, Any]] | None = None
    ahead: bool = False

    def unavailable(self, cuda: bool) -> str | None:
        """Why this system cannot run here, or None. Triton's interpreter stands in for a GPU, to try a kernel out."""
        if self.triton and not has_triton():
            return "the package triton is not installed"
        needs_a_gpu = self.gpu_only or (self.triton and not triton_interprets())
        return "needs an NVIDIA GPU" if needs_a_gpu and not cuda else None


def relative_error(out: Tensor, wanted: Tensor) -> float:
    """Of what a kernel gave, against float32; NaN where either is no number."""
    return float((out.float() - wanted).norm() / wanted.norm())
