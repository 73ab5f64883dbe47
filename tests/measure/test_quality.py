from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from inference_pio.errors import MeasureError
from inference_pio.measure.quality import Quality, Reference, compare, measure_perplexity
from inference_pio.measure.text import sampled_tokens
from tests.tiny import HF_NAMES, build

TOKENS = sampled_tokens(120, 5 * 23, seed=7).view(5, 23)


def nudged(model: nn.Module, amount: float = 0.02) -> nn.Module:
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * amount).to(parameter.dtype))
    return changed


def judged(original: nn.Module, optimized: nn.Module) -> Quality:
    with Reference.record(original, TOKENS) as reference:
        return compare(reference, optimized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HF_NAMES)
def test_a_model_is_exactly_itself(name, dtype):
    model = build(name, dtype)
    quality = judged(model, model)
    assert quality.kl_nats_per_token == 0.0
    assert quality.kl_interval == (0.0, 0.0)
    assert quality.top1_agreement == 1.0
    assert quality.perplexity_ratio == 1.0
    assert quality.perplexity_ratio_interval == (1.0, 1.0)
    assert quality.perplexity == quality.reference_perplexity


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama", torch.float32), ("gpt2", torch.bfloat16), ("qwen3_vl", torch.float32)]
)
def test_the_numbers_are_those_of_plain_sums_in_float64(name, dtype):
    original = build(name, dtype)
    optimized = nudged(original)
    quality = judged(original, optimized)
    with torch.no_grad():  # one window at a time: a batch of several may round differently
        before, after = (
            torch.cat([model(input_ids=row[None]).logits[:, :-1] for row in TOKENS]).double()
            for model in (original, optimized)
        )
    log_p, log_q, targets = before.log_softmax(-1), after.log_softmax(-1), TOKENS[:, 1:, None]
    assert quality.kl_nats_per_token == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-9)
    assert quality.perplexity == pytest.approx(float((-log_q.gather(-1, targets)).mean().exp()), rel=1e-9)
    assert quality.reference_perplexity == pytest.approx(float((-log_p.gather(-1, targets)).mean().exp()), rel=1e-9)
    assert quality.top1_agreement == float((before.argmax(-1) == after.argmax(-1)).double().mean())
    assert quality.perplexity_ratio == pytest.approx(quality.perplexity / quality.reference_perplexity, rel=1e-9)
    assert quality.tokens == 5 * 22
    assert quality.kl_nats_per_token > 0
    assert quality.top1_agreement < 1


def test_every_interval_contains_its_point():
    original = build("llama")
    quality = judged(original, nudged(original))
    for point, interval in (
        ("perplexity", "perplexity_interval"),
        ("kl_nats_per_token", "kl_interval"),
        ("top1_agreement", "top1_interval"),
        ("reference_perplexity", "reference_perplexity_interval"),
        ("perplexity_ratio", "perplexity_ratio_interval"),
    ):
        low, high = getattr(quality, interval)
        assert low < getattr(quality, point) < high


def test_the_paired_ratio_is_surer_than_the_perplexities_are():
    original = build("llama")
    quality = judged(original, nudged(original, 0.002))

    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    assert width(quality.perplexity_ratio_interval) < 0.2 * width(quality.perplexity_interval) / quality.perplexity


def test_a_worse_model_is_further_away():
    original = build("qwen3")
    near, far = (judged(original, nudged(original, amount)).kl_nats_per_token for amount in (0.005, 0.05))
    assert far > 10 * near > 0


def test_a_lone_perplexity_is_the_references():
    model = build("llama")
    lone = measure_perplexity(model, TOKENS)
    with Reference.record(model, TOKENS) as reference:
        assert (lone.perplexity, lone.perplexity_interval) == (reference.perplexity, reference.perplexity_interval)
    assert lone.tokens == 110


def test_models_of_other_vocabularies_are_refused():
    with pytest.raises(MeasureError, match="knew 131 tokens and this model knows 128"):
        judged(build("llama"), build("gpt2"))


def test_an_optimized_model_that_gives_nan_is_told():
    broken = build("llama")
    with torch.no_grad():
        broken.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(MeasureError, match="gives nan in its logits at window 0, position 0"):
        judged(build("llama"), broken)


def test_a_token_made_impossible_is_an_infinite_divergence_not_a_nan():
    class Forbids(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits = self.model(input_ids=input_ids).logits
            return logits.index_fill(-1, torch.tensor([3]), float("-inf"))

    quality = judged(build("llama"), Forbids(build("llama")).eval())
    assert quality.kl_nats_per_token == float("inf")
    assert quality.kl_interval[1] == float("inf")


def test_progress_goes_from_window_to_window():
    told = []
    model = build("gpt2")
    with Reference.record(model, TOKENS, progress=lambda *news: told.append(news)) as reference:
        compare(reference, model, lambda *news: told.append(news))
    assert told == [(phase, count / 5) for phase in ("reference", "quality") for count in range(1, 6)]


def test_the_json_is_plain():
    original = build("gpt2")
    assert json.loads(json.dumps(judged(original, nudged(original)).to_json()))["tokens"] == 110
