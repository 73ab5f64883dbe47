"""int8 on trained models: no worse than the plainest rounding on the same draw, and far from a broken layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure import Quality, Reference, compare
from inference_pio.measure.needles import needle_grid
from inference_pio.measure.questions import accuracy
from tests.quality import reference_models
from tests.quality.reference_models import DRAWS, NAMES

NAIVE = "int8_per_row"
# One draw in `make test`; `make verify` takes all of them.
EACH_DRAW = pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, DRAWS))]
)


def judged(model: Any, changed: Any, number: int) -> Quality:
    with Reference.record(model, reference_models.draw(number)) as reference:
        return compare(reference, changed)


def compressed(name: str) -> Any:
    model = reference_models.load(name)
    ModularOptimizationManager().apply_optimizations(model, ["tensor_compression"])
    return model


def is_as_good_as_rounding(found: Quality, naive: Quality) -> bool:
    """The bar of every int8 claim: KL within 1.3 of naive rounding's on this draw; the other bounds are generous."""
    return (
        found.kl_nats_per_token <= 1.3 * naive.kl_nats_per_token
        and found.perplexity_ratio <= 1.005
        and found.top1_agreement >= 0.97
    )


@pytest.fixture(scope="module")
def originals() -> dict[str, Any]:
    return {name: reference_models.load(name) for name in NAMES}


@EACH_DRAW
@pytest.mark.parametrize("name", NAMES)
def test_it_loses_no_more_than_naive_rounding_on_the_same_draw(
    name: str, number: int, originals: dict[str, Any]
) -> None:
    original = originals[name]
    naive = judged(original, reference_models.by_baseline(original, NAIVE), number)
    found = judged(original, compressed(name), number)
    assert is_as_good_as_rounding(found, naive), (found, naive)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_is_broken_fails_that_bar(name: str, originals: dict[str, Any]) -> None:
    """The proof that the test above can fail: one matrix of one layer, its scales shifted by a row."""
    original = originals[name]
    naive = judged(original, reference_models.by_baseline(original, NAIVE), 0)
    broken = compressed(name)
    damaged = next(module for path, module in broken.named_modules() if "layers.1." in path and path.endswith("o_proj"))
    damaged.weight_scale.copy_(damaged.weight_scale.roll(1, 0))
    assert not is_as_good_as_rounding(judged(original, broken, 0), naive)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_needles_are_still_found_four_thousand_tokens_later(name: str) -> None:
    found = needle_grid(
        compressed(name), reference_models.tokenizer(), reference_models.held_out_text(), [4096], [0.1, 0.6],
        per_cell=2, form=reference_models.needle_format(),
    )  # fmt: skip
    assert found.total.share == 1.0


def test_pictures_are_still_seen_and_needed() -> None:
    model, questions = compressed("qwen3_vl"), reference_models.pictures(24)
    assert accuracy(model, questions).share >= 0.95
    for question, other in zip(questions, [*questions[1:], questions[0]], strict=True):
        question.inputs["pixel_values"] = other.inputs["pixel_values"].clone()  # type: ignore[index]
    assert accuracy(model, questions).share <= 0.5


def test_undoing_it_gives_back_the_trained_bits() -> None:
    model, manager = reference_models.load("qwen3_moe"), ModularOptimizationManager()
    tokens = reference_models.draw(0, windows=1)
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        manager.apply_optimizations(model, ["tensor_compression"])
        assert not torch.equal(model(input_ids=tokens).logits, before)
        manager.remove_optimizations(model)
        assert torch.equal(model(input_ids=tokens).logits, before)
