from __future__ import annotations

import logging
import time

import pytest
import torch
from torch import nn

from inference_pio.errors import MeasureError
from inference_pio.measure.text import sampled_tokens
from inference_pio.measure.timed_round import Work, run_round
from tests.measure.test_speed import SlowClock
from tests.tiny import build

PROMPT = sampled_tokens(120, 24)
WORK = Work(PROMPT, decode_prompt_tokens=8, new_tokens=3)


def test_decoding_goes_through_the_users_own_generate_and_its_cache():
    clock = SlowClock()
    model = clock.slow(build("llama"))
    run_round(model, Work(PROMPT, decode_prompt_tokens=7, new_tokens=4), clock)
    assert [tokens for _, tokens in clock.calls] == [24, 7, 1, 1, 1]


def test_a_model_that_would_stop_early_is_kept_going():
    model, clock = build("llama"), SlowClock()
    model.generation_config.eos_token_id = [token for token in range(131) if token != 7]  # every token but one ends it
    run_round(clock.slow(model), Work(PROMPT, decode_prompt_tokens=24, new_tokens=5), clock)
    assert [tokens for _, tokens in clock.calls] == [24, 24, 1, 1, 1, 1]


def test_a_models_sampling_settings_bring_no_warning(caplog, capfd):
    model = build("llama")
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, min_p=0.1)
    model.generation_config.pad_token_id = None
    model.generation_config.eos_token_id = [3, 4]
    with caplog.at_level(logging.WARNING):
        run_round(model, WORK, time.perf_counter)
    assert not caplog.records
    assert capfd.readouterr().err == ""
    assert model.generation_config.temperature == 0.7


def test_what_a_model_keeps_from_being_timed_can_still_be_trained_through():
    model, kept = build("llama"), []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, args, output: kept.append(output))
    run_round(model, WORK, time.perf_counter)
    hook.remove()
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in kept)
    (kept[0] * model.lm_head.weight[0]).sum().backward()
    assert model.lm_head.weight.grad is not None


def test_a_model_that_predicts_but_cannot_generate_is_told():
    class Predictor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(120, 8)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.embedding(input_ids)

    with pytest.raises(MeasureError, match=r"Predictor has no generate\(\)"):
        run_round(Predictor().eval(), WORK, time.perf_counter)


def test_a_clock_that_stands_still_is_told():
    with pytest.raises(MeasureError, match="too coarse"):
        run_round(build("llama"), WORK, lambda: 1.0)


def test_the_prefill_asks_for_the_last_positions_logits_alone():
    model, seen = build("llama"), []
    model.register_forward_hook(lambda *news: seen.append(news[-1].logits.shape[1]))
    run_round(model, WORK, time.perf_counter)
    assert seen == [1, 1, 1, 1]
