from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from inference_pio.errors import MeasureError
from inference_pio.measure.speed import measure_speed, measure_speed_interleaved
from inference_pio.measure.text import sampled_tokens
from tests.tiny import build

PROMPT = sampled_tokens(120, 24)


class SlowClock:
    """Time that passes only while a model computes: `per_call_s`, and `per_token_s` for each token it is given."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now_s

    def slow(self, model: nn.Module, name: str = "", per_call_s: float = 0.25, per_token_s: float = 0.0) -> nn.Module:
        def compute(module: nn.Module, args: Any, kwargs: Any) -> None:
            tokens = kwargs["input_ids"].shape[1]
            self.calls.append((name, tokens))
            self.now_s += per_call_s + per_token_s * tokens

        model.register_forward_pre_hook(compute, with_kwargs=True)
        return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_vl", "glm4_moe_lite"])
def test_speeds_are_exactly_those_of_a_model_that_takes_known_time(name):
    clock = SlowClock()
    model = clock.slow(build(name), per_call_s=0.25, per_token_s=0.5)
    speed = measure_speed(model, PROMPT, new_tokens=6, repeats=3, decode_prompt_tokens=4, clock=clock)
    assert speed.decode_tokens_per_s.samples == (1 / 0.75,) * 3
    assert speed.prefill_tokens_per_s.samples == (24 / (0.25 + 24 * 0.5),) * 3
    assert speed.time_to_first_token_s.samples == (0.25 + 4 * 0.5,) * 3
    assert speed.setup_s == 0.0


def test_decode_is_not_diluted_by_the_first_token():
    """(n - 1) / (t_last - t_first): a prompt that takes an hour changes the time to the first token alone."""
    clock = SlowClock()
    model = clock.slow(build("llama"), per_call_s=0.25, per_token_s=0.0)

    def pay_for_the_prompt(module: nn.Module, args: Any, kwargs: Any) -> None:
        clock.now_s += 3600.0 if kwargs["input_ids"].shape[1] > 1 else 0.0

    model.register_forward_pre_hook(pay_for_the_prompt, with_kwargs=True)
    speed = measure_speed(model, PROMPT, new_tokens=5, repeats=1, clock=clock)
    assert speed.decode_tokens_per_s.median == 4.0
    assert speed.time_to_first_token_s.median == 3600.25


def test_what_only_the_first_call_pays_is_set_up():
    clock = SlowClock()
    model = clock.slow(build("llama"), per_call_s=0.25)

    def compile_once(*_: object) -> None:
        clock.now_s += 8.0
        hook.remove()

    hook = model.register_forward_pre_hook(compile_once)
    speed = measure_speed(model, PROMPT, new_tokens=4, repeats=3, clock=clock)
    assert speed.setup_s == 8.0
    assert speed.prefill_tokens_per_s.high == 24 / 0.25


def test_models_are_timed_in_turn_and_each_is_warmed_up():
    clock = SlowClock()
    arms = {"a": clock.slow(build("llama"), "a", 0.5), "b": clock.slow(build("gpt2"), "b", 0.125)}
    timed = measure_speed_interleaved(arms, PROMPT, 3, rounds=2, decode_prompt_tokens=8, clock=clock)
    turns = [name for (name, tokens) in clock.calls if tokens == 24]
    assert turns == ["a", "b"] * 3
    assert timed.ratio("b", "a").samples == (4.0, 4.0)
    assert timed.ratio("b", "a", "time_to_first_token_s").median == 0.25
    assert timed.speeds["a"].run == timed.speeds["b"].run is not None


def test_an_arm_may_make_its_model_ready_untimed():
    clock, made = SlowClock(), []
    model = clock.slow(build("llama"))

    def ready() -> nn.Module:
        made.append(clock.now_s)
        clock.now_s += 1000.0
        return model

    timed = measure_speed_interleaved({"a": ready}, PROMPT, new_tokens=3, rounds=2, clock=clock)
    assert len(made) == 3
    assert timed.speeds["a"].setup_s == 0.0
    assert timed.speeds["a"].decode_tokens_per_s.median == 4.0


def test_a_real_clock_and_a_real_model_agree_within_reason():
    speed = measure_speed(build("gpt2"), PROMPT, new_tokens=8, repeats=3)
    assert 1 < speed.decode_tokens_per_s.low <= speed.decode_tokens_per_s.median <= speed.decode_tokens_per_s.high
    assert speed.decode_prompt_tokens == 24
    assert speed.run is None
    assert speed.other_cores_busy >= 0.0


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("plain", {}, r"Plain.*input_ids"),
        ("llama", {"prompt_tokens": PROMPT[0]}, r"token ids \[1, length\], not \[24\]"),
        ("llama", {"new_tokens": 1}, "at least 2 new tokens"),
        ("llama", {"repeats": 0}, "at least 1 timed round"),
    ],
)
def test_what_cannot_be_timed_is_told(model, arguments, message):
    with pytest.raises(MeasureError, match=message):
        measure_speed(build(model), **{"prompt_tokens": PROMPT, **arguments})
