"""Launches of a model's products: found fastest on this machine before the first step is recorded, then known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inference_pio.errors import InferencePioError
from inference_pio.kernels.exponent12 import Packed, unpack
from inference_pio.kernels.row_codes import group_of
from inference_pio.kernels.triton.gemv_candidates import GemvProblem, launch_by_rule
from inference_pio.kernels.triton.gemv_launch import MOST_EXACT_ROWS, GemvLaunch
from inference_pio.kernels.triton.gemv_tuned import TunedLaunches, machine_of
from inference_pio.kernels.triton.gemv_tuning import CACHE_TIMES, GemvWeights, cache_bytes, tune
from inference_pio.kernels.triton.launch import device_limits
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
        self._heard_packed: dict[GemvProblem, list[Sequence[Packed]]] | None = None

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

    def exact_launch_for(self, x: Tensor, packed: Sequence[Packed], **beside: Any) -> tuple[GemvLaunch, int]:
        """For `x` [M, K] times packed weights: a launch, and the columns by which the plain ones go, on which bits
        depend; the plain ones' own launch where it is one of matrix units."""
        plain = GemvProblem(len(x), x.shape[1], tuple(len(each.codes) for each in packed), x.dtype, **beside)
        if self._heard_packed is not None:
            self._heard_packed.setdefault(plain, []).append(packed)
        launch = self._plain_launch(plain, x.device)
        if launch.stages or len(x) > MOST_EXACT_ROWS:
            return launch, launch.columns
        exact = replace(plain, exact_columns=launch.columns)
        return self.found.get(exact.key()) or launch_by_rule(exact, device_limits(x.device)), launch.columns

    def _plain_launch(self, problem: GemvProblem, device: torch.device) -> GemvLaunch:
        return self.found.get(problem.key()) or launch_by_rule(problem, device_limits(device))

    def listen(self) -> None:
        """Note the products of the next step."""
        self._heard, self._heard_packed = {}, {}

    def tune(self, device: torch.device, tuner: Any = tune) -> int:
        """Find launches for what was heard: from the file of this machine, else by trying; how many were tried.

        Packed weights first ask how plain ones are launched, and then in which parts of their steps, and by how many
        rows and warps, they do best.
        """
        heard, packed = self._heard or {}, self._heard_packed or {}
        self._heard = self._heard_packed = None
        tried = self._find(device, heard, tuner)
        tried += self._find(device, packed, tuner, made=True)
        exact = {
            replace(problem, exact_columns=launch.columns): [(weights, None) for weights in in_turn]
            for problem, in_turn in packed.items()
            if problem.batch <= MOST_EXACT_ROWS and not (launch := self._plain_launch(problem, device)).stages
        }
        return tried + self._find(device, exact, tuner)

    def _find(self, device: torch.device, heard: Mapping[GemvProblem, Any], tuner: Any, made: bool = False) -> int:
        """`made`: weights are unpacked, of as many layers as it takes to come from memory."""
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
                    tuning = tuner(problem, unpacked_in_turn(weights) if made else weights, TUNING_S)
                    kept.keep(problem, tuning)
                except InferencePioError as error:
                    self.notes.append(str(error))
                    continue
                except torch.OutOfMemoryError as error:
                    if not made:
                        raise
                    self.notes.append(
                        f"{problem.key()}: no room to unpack weights, by which the plain product's launch is found, so "
                        f"it goes by rule; a file of launches that plain weights left has them all ({error})"
                    )
                    continue
                launch, tried = tuning.launch, tried + 1
            self.found[problem.key()] = launch
        return tried


def unpacked_in_turn(packed_in_turn: Sequence[Sequence[Packed]]) -> list[GemvWeights]:
    """Plain weights of the first layers, as many as it takes for a GPU to read them from memory."""
    made: list[GemvWeights] = []
    held_bytes = 0
    for packed in packed_in_turn:
        made.append(([unpack(each) for each in packed], None))
        held_bytes += sum(weight.nbytes for weight in made[-1][0])
        if held_bytes >= CACHE_TIMES * cache_bytes(made[0][0][0].device):
            break
    return made
