from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from inference_pio.errors import MeasureError
from inference_pio.measure.memory import weight_bytes
from inference_pio.measure.probe import probe, probe_original
from inference_pio.measure.probe_settings import ProbeSettings
from inference_pio.measure.quality import Reference, measure_perplexity
from inference_pio.measure.speed import measure_speed
from inference_pio.measure.text import evaluation_tokens, sampled_tokens
from tests.tiny import build

QUICK = ProbeSettings(
    quality_tokens=200, window=41, prefill_tokens=30, decode_prompt_tokens=8, new_tokens=4, repeats=2, greedy_tokens=5
)


def test_an_original_is_measured_and_recorded_in_one_pass(tokenizer):
    model = build("llama", torch.bfloat16)
    found, reference = probe_original(model, tokenizer, QUICK)
    with reference:
        assert torch.equal(reference.tokens, evaluation_tokens(tokenizer, 131, 200, 41))
        assert found.perplexity == reference.perplexity == measure_perplexity(model, reference.tokens).perplexity
    assert found.weight_bytes == found.resident_bytes == weight_bytes(model)
    assert found.peak_bytes > found.weight_bytes
    assert min(found.decode_tokens_per_s, found.prefill_tokens_per_s, found.time_to_first_token_s) > 0
    details = json.loads(json.dumps(found.to_json()))["details"]
    assert details["quality"]["tokens"] == 200
    assert details["quality"]["source"].startswith("pydoc_data.topics of Python")
    assert len(details["speed"]["decode_tokens_per_s"]["samples"]) == 2
    assert details["speed"]["prefill_tokens"] == 30
    assert details["dtype"] == "bfloat16"


def test_the_originals_own_words_are_kept_and_compared(tokenizer):
    model = build("llama")
    _, reference = probe_original(model, tokenizer, QUICK)
    with reference:
        assert reference.greedy.said.shape == (4, 5)
        _, quality = probe(model, reference=reference, settings=QUICK)
        assert quality.greedy.agreed == 1.0
        assert json.loads(json.dumps(quality.to_json()))["greedy"]["identical"] == 4
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.lm_head.weight.neg_()
        _, quality = probe(changed, reference=reference, settings=QUICK)
        assert quality.greedy.agreed == 0.0
    _, reference = probe_original(model, tokenizer, replace(QUICK, greedy_tokens=0))
    with reference:
        assert reference.greedy is None
        assert probe(model, reference=reference, settings=QUICK)[1].greedy is None


def test_a_model_is_judged_on_its_references_tokens_without_a_tokenizer():
    model = build("gpt2")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.transformer.h[0].mlp.c_fc.weight.add_(0.01)
    with Reference.record(model, sampled_tokens(120, 90).view(3, 30)) as reference:
        found, quality = probe(changed, reference=reference, held_bytes=77, settings=QUICK)
    assert quality.tokens == 3 * 29
    assert quality.kl_nats_per_token > 0
    assert found.perplexity == quality.perplexity
    assert found.resident_bytes == weight_bytes(changed) + 77
    assert found.details["held_bytes"] == 77


def test_without_a_reference_there_is_a_perplexity_and_no_comparison(tokenizer):
    found, quality = probe(build("llama"), tokenizer, settings=QUICK)
    assert quality is None
    low, high = found.details["quality"]["perplexity_interval"]
    assert low <= found.perplexity <= high


def test_without_a_tokenizer_quality_is_refused_and_can_be_left_out():
    with pytest.raises(MeasureError, match=r"without a tokenizer.*Give tokenizer="):
        probe(build("llama"), settings=QUICK)
    found, quality = probe(build("llama"), settings=ProbeSettings(quality_tokens=0, prefill_tokens=30, new_tokens=4))
    assert (found.perplexity, found.details["quality"], quality) == (None, None, None)
    with pytest.raises(MeasureError, match="quality_tokens must not be 0"):
        probe_original(build("llama"), settings=ProbeSettings(quality_tokens=0))


def test_tokens_of_ones_own_stand_in_for_the_text():
    tokens = sampled_tokens(120, 60).view(3, 20)
    found, _ = probe(build("llama"), tokens=tokens, settings=QUICK)
    assert found.perplexity == measure_perplexity(build("llama"), tokens).perplexity
    assert found.details["quality"]["source"] == "the tokens that were given"


def test_a_speed_measured_elsewhere_is_taken_over(tokenizer):
    model = build("llama")
    speed = measure_speed(model, sampled_tokens(120, 16), new_tokens=3, repeats=3)
    calls: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found, _ = probe(model, tokenizer, settings=QUICK, speed=speed)
    assert calls[:5] == [30, 8, 1, 1, 1]  # one round, for its peak
    assert set(calls[5:]) == {41}
    assert found.decode_tokens_per_s == speed.decode_tokens_per_s.median
    assert found.details["speed"] == speed.to_json()
    assert found.peak_bytes > 0


def test_progress_names_its_phases_and_never_runs_backwards(tokenizer):
    told: list[tuple[str, float]] = []
    probe(build("gpt2"), tokenizer, settings=QUICK, progress=lambda *news: told.append(news))
    assert list(dict.fromkeys(phase for phase, _ in told)) == ["speed", "quality"]
    for phase in ("speed", "quality"):
        fractions = [fraction for named, fraction in told if named == phase]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


def test_a_model_of_images_is_refused():
    with pytest.raises(MeasureError, match="Plain takes no input_ids"):
        probe(build("plain"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_vl", "glm4_moe_lite"])
def test_a_model_on_cuda_is_measured_and_is_exactly_itself(name, tokenizer):
    model = build(name, torch.bfloat16).to("cuda")
    found, reference = probe_original(model, tokenizer, QUICK)
    with reference:
        again, quality = probe(model, reference=reference, settings=QUICK)
    assert (quality.kl_nats_per_token, quality.top1_agreement) == (0.0, 1.0)
    assert again.perplexity == found.perplexity
    assert found.details["peak"]["method"] == "torch.cuda.max_memory_allocated"
    assert found.peak_bytes > found.weight_bytes
    on_cpu, _ = probe(build(name, torch.bfloat16), tokenizer, settings=QUICK)
    assert found.perplexity == pytest.approx(on_cpu.perplexity, rel=0.02)
