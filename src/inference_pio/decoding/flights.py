"""Runs of steps on their way: on a GPU, the next is sent off before the last one's tokens are looked at."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from inference_pio.decoding.runner import Runner
from inference_pio.decoding.slots import Slots

IN_FLIGHT = 2
"""Runs that a GPU has before it: while the host looks at one run's tokens, the next computes."""


class Flights:
    """`launch` sends a run off; `land` waits for the oldest one's tokens, int64 [B, ahead], on the host."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.on_gpu = slots.given.is_cuda
        self.most = IN_FLIGHT if self.on_gpu else 1
        self._flying: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def __len__(self) -> int:
        return len(self._flying)

    def launch(self, runner: Runner) -> None:
        runner.run()
        if not self.on_gpu:
            self._flying.append((self.slots.given.clone(), None))
            return
        landed = torch.empty(self.slots.given.shape, dtype=torch.int64, pin_memory=True)
        landed.copy_(self.slots.given, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._flying.append((landed, event))

    def land(self) -> Tensor:
        tokens, event = self._flying.popleft()
        if event is not None:
            event.synchronize()
        return tokens
