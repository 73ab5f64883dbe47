"""How fast a model is, as its user meets it: a forward of the prompt, and `model.generate` token by token.

Decode is (n - 1) / (t_last - t_first): the first token pays for the prompt, so it is told apart.
"""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.neighbours import Neighbours
from inference_pio.measure.spread import Spread
from inference_pio.measure.timed_round import Clock, Round, Work, run_round

Arm = nn.Module | Callable[[], nn.Module]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Speed:
    """What the rounds said; tokens per second and seconds.

    `setup_s` is what the first, untimed round took longer than the median round: compiling, first touches of memory.
    `run` is one word for all models that were timed in turn, so that their rounds may be set against one another.
    `other_cores_busy` is how many cores other processes kept busy meanwhile.
    """

    decode_tokens_per_s: Spread
    prefill_tokens_per_s: Spread
    time_to_first_token_s: Spread
    setup_s: float
    prefill_tokens: int
    decode_prompt_tokens: int
    new_tokens: int
    run: str | None = None
    other_cores_busy: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "decode_tokens_per_s": self.decode_tokens_per_s.to_json(),
            "prefill_tokens_per_s": self.prefill_tokens_per_s.to_json(),
            "time_to_first_token_s": self.time_to_first_token_s.to_json(),
            "setup_s": self.setup_s,
            "prefill_tokens": self.prefill_tokens,
            "decode_prompt_tokens": self.decode_prompt_tokens,
            "new_tokens": self.new_tokens,
            "run": self.run,
            "other_cores_busy": self.other_cores_busy,
        }


@dataclass(frozen=True)
class SpeedArms:
    """Several models timed in turn in one process, round by round, so that a drift of the machine meets all of them."""

    speeds: Mapping[str, Speed]

    def ratio(self, over: str, under: str, quantity: str = "decode_tokens_per_s") -> Spread:
        """`over`'s value divided by `under`'s, round by round."""
        pairs = zip(
            getattr(self.speeds[over], quantity).samples, getattr(self.speeds[under], quantity).samples, strict=True
        )
        return Spread(tuple(above / below for above, below in pairs))


def measure_speed(
    model: nn.Module,
    prompt_tokens: Tensor,
    new_tokens: int = 64,
    repeats: int = 5,
    *,
    decode_prompt_tokens: int = 32,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Speed:
    """Time rounds after one warm-up: a forward of `prompt_tokens` [1, P], then `new_tokens` more after its first ones.

    Raises MeasureError where the model cannot generate, or generates another number of tokens than asked.
    """
    arms = measure_speed_interleaved(
        {"model": model},
        prompt_tokens,
        new_tokens,
        repeats,
        decode_prompt_tokens=decode_prompt_tokens,
        clock=clock,
        progress=progress,
    )
    return arms.speeds["model"]


def measure_speed_interleaved(
    arms: Mapping[str, Arm],
    prompt_tokens: Tensor,
    new_tokens: int = 64,
    rounds: int = 5,
    *,
    decode_prompt_tokens: int = 32,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> SpeedArms:
    """Time several models in turn: A B C, A B C, ... after a warm-up of each.

    An arm is a model, or a callable that answers with one ready to run; what the callable does is not timed.
    """
    if rounds < 1:
        raise MeasureError(f"speed needs at least 1 timed round, not {rounds}")
    work = Work(prompt_tokens, min(decode_prompt_tokens, prompt_tokens.shape[-1]), new_tokens)
    told, neighbours = progress or _untold, Neighbours()
    taken: dict[str, list[Round]] = {name: [] for name in arms}
    gc.collect()  # so that no round pays for garbage of before
    for number in range(rounds + 1):
        for place, (name, arm) in enumerate(arms.items()):
            told("speed", (number * len(arms) + place) / ((rounds + 1) * len(arms)))
            taken[name].append(run_round(_model_of(arm), work, clock))
    told("speed", 1.0)
    run, busy = uuid.uuid4().hex if len(arms) > 1 else None, neighbours.cores_busy()
    return SpeedArms({name: _speed(rows, work, run, busy) for name, rows in taken.items()})


def exercise(model: nn.Module, prompt_tokens: Tensor, new_tokens: int = 64, decode_prompt_tokens: int = 32) -> None:
    """One round of the same work, for what else can be seen while it runs: the memory it takes."""
    work = Work(prompt_tokens, min(decode_prompt_tokens, prompt_tokens.shape[-1]), new_tokens)
    run_round(model, work, time.perf_counter)


def _speed(rows: list[Round], work: Work, run: str | None, other_cores_busy: float) -> Speed:
    warm_up, timed = rows[0], rows[1:]
    return Speed(
        decode_tokens_per_s=Spread(tuple(row.decode_tokens_per_s for row in timed)),
        prefill_tokens_per_s=Spread(tuple(row.prefill_tokens_per_s for row in timed)),
        time_to_first_token_s=Spread(tuple(row.time_to_first_token_s for row in timed)),
        setup_s=max(0.0, warm_up.seconds - Spread(tuple(row.seconds for row in timed)).median),
        prefill_tokens=work.prompt.shape[1],
        decode_prompt_tokens=work.decode_prompt_tokens,
        new_tokens=work.new_tokens,
        run=run,
        other_cores_busy=other_cores_busy,
    )


def _model_of(arm: Arm) -> nn.Module:
    return arm if isinstance(arm, nn.Module) else arm()


def _untold(phase: str, fraction: float) -> None:
    """Nobody asked for the progress."""
