"""Ways to have the losses of many batches of a model whose layers lie on a disk: batch by batch, or layer by layer."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.arms.offload import disk_offload_cold, stream_from_disk
from benchmarks.arms.room import Room
from benchmarks.cold import forget_all
from inference_pio.streaming.layer_major import run_layer_major

Batches = Sequence[dict[str, Tensor]]
FEW = 2
"""Batches that stand for all where each costs a pass over the disk."""


@dataclass
class Scorer:
    """`losses` of the first `most` of some batches; before each pass over the disk no cache holds any of its folder.

    `forgot_s` is what that took until now, and no time of the system's.
    """

    losses: Callable[[Scorer, Batches], list[float]]
    folder: str
    most: int | None = None
    forgot_s: float = 0.0

    def __call__(self, batches: Batches) -> list[float]:
        return self.losses(self, batches[: self.most])

    def forget(self) -> None:
        start = time.perf_counter()
        forget_all(Path(self.folder))
        self.forgot_s += time.perf_counter() - start

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class ScoreArm:
    """`make(model, room)` gives a scorer."""

    label: str
    make: Callable[[nn.Module, Room], Scorer]
    package: str | None = None


@torch.no_grad()
def one_by_one(model: nn.Module, batches: Batches) -> list[float]:
    return [float(model(**batch, use_cache=False).loss) for batch in batches]


def _accelerate(model: nn.Module, room: Room) -> Scorer:
    decoder = disk_offload_cold(model, room)
    folder: str = decoder.folder  # type: ignore[attr-defined]

    def losses(scorer: Scorer, batches: Batches) -> list[float]:
        found = []
        for batch in batches:
            scorer.forget()
            found += one_by_one(model, [batch])
        return found

    room.notes.append(f"{FEW} of the batches were timed: each is a pass over the disk")
    return Scorer(losses, folder, FEW)


def _layer_major(model: nn.Module, room: Room) -> Scorer:
    folder = tempfile.mkdtemp(prefix="offload-")
    stream_from_disk(model, room, folder, threads=8)

    def losses(scorer: Scorer, batches: Batches) -> list[float]:
        scorer.forget()
        return run_layer_major(model, batches, lambda number, output: float(output.loss))

    return Scorer(losses, folder)


ARMS: dict[str, ScoreArm] = {
    "disk-offload-cold": ScoreArm("accelerate disk_offload, batch by batch", _accelerate, package="accelerate"),
    "pio-layer-major": ScoreArm("inference-pio disk_offloading, layer by layer", _layer_major),
}
