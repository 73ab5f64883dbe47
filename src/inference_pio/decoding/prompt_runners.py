"""Forwards of a bucket's prompts, recorded once for each length that prompts are filled up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inference_pio.decoding.runner import Runner, choose_runner, record
from inference_pio.kernels.recording import pool_bytes

MOST_TOKENS = 2048
"""Tokens of all rows up to which prompts are recorded. Qwen3-4B on an H100, by hand: a forward takes the host 27 to 34
ms, and the GPU 4.3 ms for 32 tokens, 7.4 for 512, 13.6 for 1024, 26.4 for 2048."""
STEPS = ((512, 64), (1024, 128), (MOST_TOKENS, 256))
"""Up to which length prompts are filled up to a multiple of what: above 512 tokens, a quarter more at most."""
SHORTEST = STEPS[0][1]
WARM_UPS = 1
"""Forwards before recording, in which kernels are compiled and libraries set up."""


def filled_up(tokens: int) -> int | None:
    """The length up to which a prompt of so many tokens is filled, None where it is longer than any.

    >>> filled_up(9), filled_up(65), filled_up(600), filled_up(1025), filled_up(2049)
    (64, 128, 640, 1280, None)
    """
    return next((-(-tokens // step) * step for most, step in STEPS if tokens <= most), None)


class PromptRunners:
    """One for each length, of rows that are padded or not. What they read is written here first: `tokens` int64
    [B, length] and `last` int64 [1], the place of a prompt's last token. All use the same memory, of which `nbytes` are
    kept for the next one.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._runners: dict[tuple[int, bool], tuple[Runner, Tensor, Tensor]] = {}
        self._pools: list[Any] = []
        self._whole = False
        """Whether the last of the pools serves what is recorded next."""

    def has(self, length: int, *, padded: bool) -> bool:
        return (length, padded) in self._runners

    def record(
        self, rows: int, length: int, device: torch.device, forward: Callable[[Tensor, Tensor], None], *,
        padded: bool = False,
    ) -> None:  # fmt: skip
        """Record `forward(tokens, last)` for prompts that are filled up to a length."""
        tokens, last = _nought(rows, length, device=device), _nought(1, device=device)
        if choose_runner(device) != "graph":
            runner = record(lambda: forward(tokens, last), [], device)
        else:
            runner = self._record_in_a_pool(lambda: forward(tokens, last), device)
        self._runners[length, padded] = runner, tokens, last

    def _record_in_a_pool(self, forward: Callable[[], None], device: torch.device) -> Runner:
        if not self._whole:
            self._pools.append(torch.cuda.graph_pool_handle())  # type: ignore[no-untyped-call]
        self._whole = False  # a recording that the driver ends leaves its pool unfit for others
        runner = record(forward, [], device, warm_ups=WARM_UPS, pool=self._pools[-1])
        self._whole = True
        self.nbytes = sum(map(pool_bytes, self._pools))
        return runner

    def run(self, length: int, prompt: Tensor, *, padded: bool = False) -> None:
        """The forward of a `prompt` [B, S], filled up with its last token, which asks for few experts of its own."""
        runner, tokens, last = self._runners[length, padded]
        end = prompt.shape[1]
        tokens[:, :end].copy_(prompt)
        tokens[:, end:].copy_(prompt[:, -1:])
        last.fill_(end - 1)
        runner.run()


@torch.inference_mode(False)  # what is made in inference mode could not be written outside of it
def _nought(*shape: int, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=device)
