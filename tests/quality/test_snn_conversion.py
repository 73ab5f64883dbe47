"""Spikes on trained models: equal to their counts, close to the original, few, and what they would take."""

from __future__ import annotations

import functools
import time
from typing import Any

import pytest
import torch

from inference_pio.manager import ModularOptimizationManager
from inference_pio.spiking.module import SpikingModule
from inference_pio.spiking.twin import QuantizedTwin
from tests.quality import reference_models
from tests.quality.reference_models import NAMES
from tests.quality.test_tensor_compression import EACH_DRAW, calibration_tokens, in_turn, judged


@functools.cache
def original(name: str) -> Any:
    return reference_models.load(name, torch.float32)


@functools.cache
def spiking(name: str, coding: str = "radix", levels: int = 15) -> Any:
    model = reference_models.load(name, torch.float32)
    asked = {"text": calibration_tokens()[:16], "coding": coding, "levels": levels}
    ModularOptimizationManager().apply_optimizations(model, ["snn_conversion"], parameters={"snn_conversion": asked})
    return model


def by_counts(model: Any) -> Any:
    """The quantized twin as a module, whose answers are the model's to the bit and come sooner."""

    class Twin(torch.nn.Module):
        config = model.config

        def forward(self, input_ids: Any = None, **given: Any) -> Any:
            return QuantizedTwin(model)(input_ids=input_ids, **given)

        def get_input_embeddings(self) -> Any:
            return model.get_input_embeddings()

    return Twin().eval()


CODES = [("radix", 15), ("radix", 31), ("radix", 63), ("radix", 127), ("radix", 255), ("rate", 15), ("rate", 31)]


@pytest.mark.parametrize("name", in_turn("qwen3"))
@pytest.mark.parametrize(
    ("coding", "levels"),
    [code if code == ("radix", 15) else pytest.param(*code, marks=pytest.mark.slow) for code in CODES],
)
def test_spikes_equal_their_counts_to_the_bit(name: str, coding: str, levels: int) -> None:
    model, tokens = spiking(name, coding, levels), reference_models.draw(0, windows=2, length=24)
    answers = []
    with torch.no_grad():
        for run in (model, QuantizedTwin(model)):
            prompt = run(input_ids=tokens[:, :-4], use_cache=True)
            steps = [
                run(input_ids=token, past_key_values=prompt.past_key_values, use_cache=True).logits
                for token in tokens[:, -4:].split(1, 1)
            ]
            answers.append(torch.cat([prompt.logits, *steps], 1))
    assert torch.equal(*answers)


@EACH_DRAW
@pytest.mark.parametrize(("levels", "most"), [(15, 1.08), pytest.param(63, 1.015, marks=pytest.mark.slow)])
def test_the_dense_model_loses_little(levels: int, most: float, number: int) -> None:
    assert lost("qwen3", levels, number) <= most


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "qwen3"])
@pytest.mark.parametrize(("levels", "most"), [(15, 1.2), (63, 1.03), (127, 1.01)])
def test_other_models_lose_little(name: str, levels: int, most: float) -> None:
    assert lost(name, levels, 0) <= most


def lost(name: str, levels: int, number: int) -> float:
    """The perplexity ratio; `pytest -s` shows it, with the rest of docs/spiking.md's table."""
    found = judged(original(name), by_counts(spiking(name, levels=levels)), number)
    ratio, divergence, same = found.perplexity_ratio, found.kl_nats_per_token, found.top1_agreement
    print(f"\n{name} {levels} draw {number}: perplexity x{ratio:.4f}, KL {divergence:.4f}, top-1 {same:.3f}")
    return ratio


@pytest.mark.parametrize("name", in_turn("qwen3"))
@pytest.mark.parametrize("levels", [15, pytest.param(63, marks=pytest.mark.slow)])
def test_spikes_are_few_and_would_take_less_than_multiplications(name: str, levels: int) -> None:
    model = spiking(name, levels=levels)
    optimization = ModularOptimizationManager().registry.create("snn_conversion")
    next(module for module in model.modules() if isinstance(module, SpikingModule)).tally.clear()
    tokens = reference_models.draw(0, windows=1, length=512)
    seconds = [timed(run, tokens) for run in (original(name), model)]
    told = optimization.report(model)
    del told["spikes_per_activation_by_layer"]
    print(f"\n{name} {levels}: {seconds[1] / seconds[0]:.1f} times as long, {told}")
    assert told["time_steps"] == levels.bit_length()
    assert told["spikes_per_activation"] <= (1.6 if levels > 15 else 0.8 if name == "qwen3" else 0.9)
    if levels == 15:
        assert told["energy"]["45nm fp32"]["compute_ratio"] <= 0.30
        assert told["energy"]["45nm int8"]["compute_ratio"] <= 0.20
    assert told["energy"]["45nm fp32"]["ratio_with_memory"] > told["energy"]["45nm fp32"]["compute_ratio"]


def timed(run: Any, tokens: torch.Tensor) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        run(input_ids=tokens)
    return time.perf_counter() - started
