"""Tuning checks before it times, keeps what is known to be good unless beaten, and ends in time; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from inference_pio.compat import has_triton
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.exponent12 import pack
from inference_pio.kernels.gemv import gemv
from inference_pio.kernels.int8 import quantize_rows
from inference_pio.kernels.triton.gemv_candidates import GemvProblem, candidates
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.gemv_tuning import (
    GemvWeights,
    Tuning,
    graph_microseconds,
    tune,
)
from inference_pio.kernels.triton.launch import HOPPER

PROBLEM = GemvProblem(2, 512, (96, 32), normed=True, added=True)


def weights_of(problem: GemvProblem, count: int = 3, device: str = "cpu") -> list[GemvWeights]:
    found: list[GemvWeights] = []
    for seed in range(count):
        chance = torch.Generator(device).manual_seed(seed)
        weights = [
            torch.randn(rows, problem.inputs, generator=chance, device=device).to(problem.dtype) / 50
            for rows in problem.outputs
        ]
        scales = None
        if problem.int8:
            weights, scales = map(list, zip(*map(quantize_rows, weights), strict=True))
        found.append((weights, scales))
    return found


class Bench:
    """Runs by torch what a GPU would run, and says that launches take what it is told."""

    def __init__(self, taken: dict[GemvLaunch, float], otherwise: float = 50.0) -> None:
        self.taken, self.otherwise = taken, otherwise
        self.wrong: set[GemvLaunch] = set()
        self.failing: set[GemvLaunch] = set()
        self.timed: list[GemvLaunch] = []

    def run(self, problem: GemvProblem, weights: GemvWeights, launch: GemvLaunch) -> torch.Tensor:
        from inference_pio.kernels.triton.gemv_tuning import _call

        if launch in self.failing:
            raise RuntimeError("out of resource: registers\nand more")
        found = gemv(**_call(problem, weights))  # type: ignore[arg-type]
        return found + found.abs().max() / 4 if launch in self.wrong else found

    def time(self, problem: GemvProblem, weights_in_turn: Sequence[GemvWeights], launch: GemvLaunch) -> float:
        self.timed.append(launch)
        return self.taken.get(launch, self.otherwise)

    def tune(self, problem: GemvProblem = PROBLEM, time_limit_s: float = 1e9, **given) -> Tuning:  # type: ignore[no-untyped-def]
        return tune(problem, weights_of(problem), time_limit_s, run=self.run, timed=self.time, **given)


@pytest.mark.parametrize("problem", [PROBLEM, GemvProblem(1, 512, (32, 32), gated=True, int8=True)], ids=str)
def test_the_fastest_is_chosen_and_all_times_are_told(problem: GemvProblem) -> None:
    tried = candidates(problem, HOPPER)
    bench = Bench({tried[0]: 40.0, tried[3]: 30.0})
    tuning = bench.tune(problem)
    assert tuning.launch == tried[3]
    assert list(tuning.microseconds) == tried == bench.timed
    assert tuning.microseconds[tried[0]] == 40.0
    assert tuning.notes == ()


def test_what_is_known_to_be_good_stays_unless_it_is_beaten_clearly() -> None:
    tried = candidates(PROBLEM, HOPPER)
    assert Bench({tried[0]: 50.0}, otherwise=49.8).tune().launch == tried[0]
    assert Bench({tried[0]: 50.0}, otherwise=49.0).tune().launch != tried[0]


def test_a_wrong_or_failing_launch_is_never_timed_and_told() -> None:
    tried = candidates(PROBLEM, HOPPER)
    bench = Bench({tried[0]: 40.0, tried[1]: 1.0, tried[2]: 2.0})
    bench.wrong, bench.failing = {tried[1]}, {tried[2]}
    tuning = bench.tune()
    assert tuning.launch == tried[0]
    assert not {tried[1], tried[2]} & set(tuning.microseconds)
    assert tuning.notes == (
        f"{tried[1]}: it is off by 0.25 of the largest number",
        f"{tried[2]}: it does not run here (out of resource: registers)",
    )


def test_where_none_is_right_there_is_none() -> None:
    bench = Bench({})
    bench.wrong = set(candidates(PROBLEM, HOPPER))
    with pytest.raises(InvalidSetting, match=r"no launch gives the right result of 2 x 512 x 96\+32 bfloat16"):
        bench.tune()
    with pytest.raises(InvalidSetting, match="no weights were given"):
        tune(PROBLEM, [], 1.0)


def test_a_launch_that_gives_no_number_is_wrong() -> None:
    def run(problem: GemvProblem, weights: GemvWeights, launch: GemvLaunch) -> torch.Tensor:
        return torch.full((2, 128), float("nan"))

    with pytest.raises(InvalidSetting, match="off by nan"):
        tune(PROBLEM, weights_of(PROBLEM), 1.0, run=run, timed=lambda *_: 1.0)


def ticks() -> Iterator[float]:
    yield from (float(second) for second in range(1000))


def test_it_ends_in_time_with_at_least_the_known_launch() -> None:
    tried = candidates(PROBLEM, HOPPER)
    for limit, count in ((4.5, 5), (0.0, 1)):
        second = ticks()
        tuning = Bench({}).tune(time_limit_s=limit, clock=lambda second=second: next(second))
        assert list(tuning.microseconds) == tried[:count]
        left = f"{len(tried) - count} of {len(tried)} candidates were not tried within {limit:g} s"
        assert tuning.notes == (left,)


def test_no_weight_is_written() -> None:
    weights = weights_of(PROBLEM)
    before = [[tensor.clone() for tensor in one] for one, _ in weights]
    bench = Bench({})
    tune(PROBLEM, weights, 1.0, run=bench.run, timed=bench.time)
    for (after, _), kept in zip(weights, before, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(after, kept, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("problem", [
    GemvProblem(1, 2560, (4096, 1024, 1024), normed=True),
    GemvProblem(1, 2560, (9728, 9728), normed=True, gated=True, dependent=True),
    GemvProblem(4, 9728, (2560,), added=True),
    GemvProblem(1, 2560, (9728, 9728), normed=True, gated=True, int8=True),
], ids=GemvProblem.key)  # fmt: skip
def test_gpu_tuning_is_no_slower_than_what_was_known(problem: GemvProblem) -> None:
    if problem.dependent and torch.cuda.get_device_capability() < (9, 0):
        problem = replace(problem, dependent=False)
    weights = weights_of(problem, 12, "cuda")
    tuning = tune(problem, weights, 60.0)
    known = candidates(problem, HOPPER)[0]
    assert tuning.microseconds[tuning.launch] <= tuning.microseconds[known]
    moved = sum(tensor.nbytes for tensor in weights[0][0])
    rate = moved / tuning.microseconds[tuning.launch] / 1e6
    print(problem.key(), tuning.launch, f"{rate:.2f} TB/s", *tuning.notes, sep="; ")
    assert 0.2 < rate < 8.0, "no GPU reads so"
    assert graph_microseconds(problem, weights, tuning.launch) > 0


def tuned_over_packed_weights() -> set[int]:
    """Columns of candidates over weights in 12 bits whose bits, by our own kernels, were those of plain ones."""
    problem = GemvProblem(1, 256, (6, 6), normed=True, gated=True, exact_columns=512)
    plain = weights_of(replace(problem, exact_columns=0), 1)
    packed = [([pack(weight) for weight in weights], None) for weights, _ in plain]
    tuning = tune(problem, packed, 10.0, timed=lambda *_: 1.0)
    assert not any("bits" in note for note in tuning.notes), tuning.notes
    return {launch.columns for launch in tuning.microseconds}


@pytest.mark.skipif(not has_triton(), reason="triton is not installed (it is made for Linux alone)")
def test_packed_weights_are_tuned_too(interpreted: Callable[..., set[int]]) -> None:
    assert interpreted(tuned_over_packed_weights) == {256, 512}
