"""The training run of one model: resumable, within a budget of minutes, its losses written down as it goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .feeder import Feeder
from .schedule import Schedule
from .step import Stepper

LOG_EVERY = 50
CHECKPOINT_EVERY_S = 60.0
# Losses in nats, and shares of tokens told rightly.
CURVE = ("step", "seconds", "length", "text", "recall", "recalled", "caption", "captioned", "echoed")


@dataclass
class Progress:
    """Where a run is; `curve` holds rows of `CURVE`."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    curve: list[list[float]] = field(default_factory=list)

    def line(self) -> str:
        """The newest entry of the curve, for a reader."""
        step, seconds, length, text, recall, recalled, caption, captioned, echoed = self.curve[-1]
        seen = f"  caption {caption:.3f} ({captioned:.1%})" if caption else ""
        return (
            f"step {step:.0f}  {seconds:.0f} s  length {length:.0f}  text {text:.3f}"
            f"  recall {recall:.3f} ({recalled:.1%})  echo {echoed:.1%}{seen}"
        )


def train(
    model: Any, feeder: Feeder, schedule: Schedule, saved: Path, stop_after_s: float = float("inf"),
    stop_after_steps: float = float("inf"), quiet: bool = False,
) -> Progress:  # fmt: skip
    """Train until the budget is spent or this call has run as far as it may; goes on from `saved` where that exists."""
    stepper, progress = Stepper(model), Progress()
    if saved.exists():
        tensors, facts = checkpoint.read(saved)
        stepper.restore(tensors)
        progress = Progress(**facts)  # type: ignore[arg-type]
    started, before_s, last_step = time.monotonic(), progress.elapsed_s, progress.step + stop_after_steps
    kept_at = started
    while (done := schedule.done(progress.step, progress.elapsed_s)) < 1:
        if time.monotonic() - started >= stop_after_s or progress.step >= last_step:
            break
        length = schedule.length(done)
        batch = feeder.batch(progress.step, length)
        stepper.step(batch, schedule.rate(progress.step, done))
        progress.step += 1
        progress.tokens += batch.tokens[:, 1:].size
        progress.elapsed_s = before_s + time.monotonic() - started
        if progress.step % LOG_EVERY == 0:
            _note(progress, stepper, length)
            if not quiet:
                print(progress.line(), flush=True)
        if time.monotonic() - kept_at > CHECKPOINT_EVERY_S:
            checkpoint.write(saved, stepper.state(), vars(progress))
            kept_at = time.monotonic()
    checkpoint.write(saved, stepper.state(), vars(progress))
    return progress


def _note(progress: Progress, stepper: Stepper, length: int) -> None:
    sums = stepper.take_sums()
    means = (sums[:, :2] / sums[:, 2:].clamp(min=1)).tolist()
    if not torch.isfinite(sums).all():
        raise FloatingPointError(f"the loss is no number at step {progress.step}: lower the rates and start again")
    (text, _), (recall, recalled), (caption, captioned), (_, echoed) = means
    progress.curve.append(
        [progress.step, round(progress.elapsed_s, 2), length, text, recall, recalled, caption, captioned, echoed]
    )
