"""exponent12 on trained models: nothing is lost, and nearly four bits a weight are saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.formats.exponent12 import Exponent12Linear
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure import Reference, compare
from tests.quality import reference_models
from tests.quality.reference_models import NAMES

LEFT = {"glm4_moe_lite": ["model.layers.0.mlp.down_proj"]}
"""3.8% of its weights have exponents below their row's 15 largest: inputs that training never used."""
BITS = {"glm4_moe_lite": 12.38}
"""There 0.8% of the experts' weights are listed; elsewhere what was promised holds."""


def compressed(name: str) -> tuple[Any, Any]:
    model, manager = reference_models.load(name), ModularOptimizationManager()
    manager.apply_optimizations(
        model, ["tensor_compression"], parameters={"tensor_compression": {"format": "exponent12"}}
    )
    return model, manager


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_same_to_the_bit_and_undoing_it_gives_back_the_weights(name: str) -> None:
    original, tokens = reference_models.load(name), reference_models.draw(0, windows=2)
    weights = {key: value.clone() for key, value in original.state_dict().items()}
    model, manager = compressed(name)
    with torch.no_grad():
        for given in (tokens, tokens[:1, :1]):
            assert torch.equal(model(input_ids=given).logits, original(input_ids=given).logits)
    manager.remove_optimizations(model)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_takes_twelve_bits_and_a_fifth(name: str) -> None:
    model, manager = compressed(name)
    packed = [module for module in model.modules() if isinstance(module, CompressedModule)]
    held = sum(part.nbytes for module in packed for part in module.buffers())
    weights = 0
    for module in packed:
        made = module.dequantize(torch.bfloat16)
        weights += made.numel() if isinstance(module, Exponent12Linear) else sum(one.numel() for one in made)
    assert 12 < held * 8 / weights <= BITS.get(name, 12.2)
    told = [site for site in manager.get_receipts(model)[0].sites if "have exponents below" in (site.skip or "")]
    assert [site.path for site in told] == LEFT.get(name, [])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_nothing_is_lost_on_held_out_text(name: str) -> None:
    model, _ = compressed(name)
    with Reference.record(reference_models.load(name), reference_models.draw(0)) as reference:
        found = compare(reference, model)
    assert found.kl_nats_per_token == 0.0
    assert found.perplexity_ratio == 1.0
    assert found.top1_agreement == 1.0


def test_one_broken_code_is_seen() -> None:
    """The proof that the tests above can fail."""
    model, _ = compressed("qwen3")
    broken = next(module for module in model.modules() if isinstance(module, Exponent12Linear))
    broken.weight_exponent12[0, 0] ^= 0x40
    tokens = reference_models.draw(0, windows=1)
    with torch.no_grad():
        assert not torch.equal(model(input_ids=tokens).logits, reference_models.load("qwen3")(input_ids=tokens).logits)
