"""How far a run is, by the clock or by steps: which length it reads and how large its steps are."""

from __future__ import annotations

from dataclasses import dataclass

Stages = tuple[tuple[float, int], ...]

# Short rows first: recall is learned from many short documents and then stretched, beyond the 8192 tokens that are
# tested: of rows of 8192 tokens, few lines are asked for 8192 tokens later, and a quarter of those was missed.
STAGES: Stages = ((0.0, 256), (0.08, 512), (0.2, 2048), (0.4, 6144), (0.62, 10240))
# qwen3_moe is the other way round: it found all needles at 8192 so, and 0.90 of them by the stages above.
OTHER_STAGES: dict[str, Stages] = {"qwen3_moe": ((0.0, 256), (0.12, 512), (0.3, 2048), (0.55, 8192))}
WARM_STEPS = 60
DECAY_FROM = 0.6


@dataclass(frozen=True)
class Schedule:
    """A budget of `seconds` of training, or of `steps` where those are given; no row is longer than `longest`."""

    seconds: float
    steps: int = 0
    longest: int = STAGES[-1][1]
    stages: Stages = STAGES

    def done(self, step: int, elapsed_s: float) -> float:
        """The share of the budget that is spent, 1 at the end."""
        return min(1.0, step / self.steps if self.steps else elapsed_s / self.seconds)

    def length(self, done: float) -> int:
        """Tokens per row.

        >>> Schedule(60).length(0.0), Schedule(60).length(1.0)
        (256, 10240)
        """
        return min(self.longest, max(stage for stage in self.stages if stage[0] <= done)[1])

    def rate(self, step: int, done: float) -> float:
        """The factor on all learning rates: warm-up, a plateau, a straight line down to zero."""
        return min(1.0, (step + 1) / WARM_STEPS, max(0.02, (1 - done) / (1 - DECAY_FROM)))
