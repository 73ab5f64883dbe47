"""Several steps in one go: recorded as one CUDA graph, or called one after another where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from inference_pio.kernels.recording import recording, recording_stream

WARM_UPS = 2
"""Runs before recording: kernels are compiled and libraries set up in the first."""


class Runner(Protocol):
    """`run` takes the steps; what they gave lies in the slots."""

    def run(self) -> None: ...


class EagerRunner:
    """The twin of a recorded step: the same steps, called from here."""

    def __init__(self, steps: Callable[[], None]) -> None:
        self._steps = steps

    def run(self) -> None:
        with torch.inference_mode():  # each of hundreds of calls is 0.2 us less
            self._steps()


class GraphRunner:
    """Steps recorded once and replayed: every tensor they read or write must stay where it is.

    Recording runs them a few times first; what `kept` holds, and the random state, is put back afterwards. Graphs of
    one `pool` use the same memory: what one leaves there is gone when the next one runs.
    """

    def __init__(
        self, steps: Callable[[], None], kept: Sequence[Tensor], device: torch.device, *, warm_ups: int = WARM_UPS,
        pool: Any = None,
    ) -> None:  # fmt: skip
        self._steps = steps  # the graph knows the tensors that they hold by address alone
        with torch.cuda.device(device):
            before = [tensor.clone() for tensor in kept]
            chance = torch.cuda.get_rng_state(device)
            side, here = recording_stream(device), torch.cuda.current_stream(device)
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(warm_ups):
                    steps()
            here.wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with recording(self._graph, device, pool):
                steps()
            for tensor, was in zip(kept, before, strict=True):
                tensor.copy_(was)
            torch.cuda.set_rng_state(chance, device)

    def run(self) -> None:
        self._graph.replay()


def choose_runner(device: torch.device) -> str:
    """How steps are run on a device: "graph" or "eager"."""
    return "graph" if device.type == "cuda" else "eager"


def record(
    steps: Callable[[], None], kept: Sequence[Tensor], device: torch.device, *, warm_ups: int = WARM_UPS,
    pool: Any = None,
) -> Runner:  # fmt: skip
    """A runner of the kind that serves the device."""
    if choose_runner(device) == "eager":
        return EagerRunner(steps)
    return GraphRunner(steps, kept, device, warm_ups=warm_ups, pool=pool)
