"""Launches of a model's products: found fastest on this machine before the first step is recorded, then known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inference_pio.errors import InferencePioError
from inference_pio.kernels.row_codes import group_of
from inference_pio.kernels.triton.gemv_candidates import GemvProblem
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.gemv_tuned import TunedLaunches, machine_of
from inference_pio.kernels.triton.gemv_tuning import GemvWeights, tune
from inference_pio.sources.cache import cache_room

TUNING_S = 2.0
"""Seconds for one product: its best few candidates; a model has about five, and the file keeps what was found."""
ROOM = "tuning"


class Launches:
    """`launch_for` gives the launch of a product, or None for the one chosen by rule.

    While it `listens`, it notes each product with its weights; `tune` then finds a launch for those that have none.
    `notes` say what could not be tuned or kept.
    """

    def __init__(self) -> None:
        self.found: dict[str, GemvLaunch] = {}
        self.notes: list[str] = []
        self._heard: dict[GemvProblem, list[GemvWeights]] | None = None

    def launch_for(
        self, x: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor] | None, **beside: Any
    ) -> GemvLaunch | None:
        """For `x` [M, K] times `weights`, with what stands around them."""
        outputs = tuple(len(weight) for weight in weights)
        codes = weights[0].dtype
        group = group_of(weights[0], scales[0]) if scales else 0
        int8, fp8 = (codes is dtype and not group for dtype in (torch.int8, torch.uint8))
        problem = GemvProblem(len(x), x.shape[1], outputs, x.dtype, int8, fp8, group, **beside)
        if self._heard is not None:
            self._heard.setdefault(problem, []).append((weights, scales))
        return self.found.get(problem.key())

    def listen(self) -> None:
        """Note the products of the next step."""
        self._heard = {}

    def tune(self, device: torch.device, tuner: Any = tune) -> int:
        """Find launches for what was heard: from the file of this machine, else by trying; how many were tried."""
        heard, self._heard = self._heard or {}, None
        missing = {problem: weights for problem, weights in heard.items() if problem.key() not in self.found}
        if not missing:
            return 0
        try:
            kept = TunedLaunches(cache_room(ROOM), machine_of(device))
        except InferencePioError as error:
            self.notes.append(f"launches are not tuned: {error}")
            return 0
        if kept.ignored:
            self.notes.append(kept.ignored)
        tried = 0
        for problem, weights in missing.items():
            launch = kept.launch_for(problem)
            if launch is None:
                try:
                    tuning = tuner(problem, weights, TUNING_S)
                    kept.keep(problem, tuning)
                except InferencePioError as error:
                    self.notes.append(str(error))
                    continue
                launch, tried = tuning.launch, tried + 1
            self.found[problem.key()] = launch
        return tried
