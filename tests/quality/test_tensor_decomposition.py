"""Decomposition on trained models: far below plain and input-aware singular values on the same text and draws."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.walk import linears
from inference_pio.calibration.input_pass import collect_inputs
from inference_pio.calibration.source import calibration_source
from inference_pio.formats.factored_linear import FactoredLinear
from inference_pio.manager import ModularOptimizationManager
from inference_pio.measure import Quality
from tests.quality import reference_models
from tests.quality.reference_models import DRAWS, NAMES
from tests.quality.test_tensor_compression import calibration_tokens, in_turn, judged
from tests.sweep import LONG_ONES, in_its_turn

EACH_DRAW = range(DRAWS)
PARTS = ("attention", "mlp")


@functools.cache
def original(name: str) -> Any:
    return reference_models.load(name)


@functools.cache
def decomposed(name: str, ratio: float, every: int = 1, **more: Any) -> Any:
    """By every window of the text, or by fewer."""
    model = reference_models.load(name)
    asked = {
        "decomposition_ratio": ratio, "align": 8, "refuse_slower": False, "text": calibration_tokens()[::every], **more,
    }  # fmt: skip
    ModularOptimizationManager().apply_optimizations(
        model, ["tensor_decomposition"], parameters={"tensor_decomposition": asked}
    )
    return model


def layers(model: nn.Module) -> list[str]:
    return [path for path, _, role in linears(model) if role.startswith(PARTS) and not path.endswith("kv_b_proj")]


@functools.cache
def by_svd(name: str, ratio: float, whitened: bool = False) -> Any:
    """The same share of every matrix gone: by its singular values, or by those behind the root of its inputs' products
    (SVD-LLM's truncation)."""
    model = copy.deepcopy(original(name))
    paths = layers(model)
    seen = {}
    if whitened:
        source = calibration_source(model, torch.tensor(calibration_tokens()), tokens=32768, window=512)
        seen = {reader: one for one in collect_inputs(model, source, paths) for reader in one.readers}
    for path in paths:
        weight = model.get_submodule(path).weight
        rank = int((1 - ratio) * weight.numel() / sum(weight.shape))
        root = torch.eye(weight.shape[1], dtype=torch.float64)
        if whitened:
            gram = seen[path].gram
            assert gram is not None
            root = torch.linalg.cholesky(gram + 1e-4 * gram.diagonal().mean() * root)
        left, values, right = torch.linalg.svd(weight.detach().double() @ root, full_matrices=False)
        made = (left[:, :rank] * values[:rank]) @ torch.linalg.solve(root, right[:rank], left=False)
        weight.data.copy_(made)
    return model


@functools.cache
def lost(name: str, ratio: float, how: str, number: int) -> Quality:
    changed = {
        "ours": lambda: decomposed(name, ratio),
        "ours, foretold": lambda: decomposed(name, ratio, allocation="foretold", every=2),
        "ours, refitted": lambda: decomposed(name, ratio, refit=True),
        "ours, plain": lambda: decomposed(name, ratio, form="plain"),
        "ours, beside int4": lambda: decomposed(name, ratio, residual="int4"),
        "svd": lambda: by_svd(name, ratio),
        "whitened": lambda: by_svd(name, ratio, whitened=True),
    }[how]()
    return judged(name, changed, number)


@in_its_turn(8, of=LONG_ONES)
def test_a_fifth_of_the_numbers_goes_at_little_loss() -> None:
    model = decomposed("qwen3", 0.2, allocation="foretold", every=2)
    paths = layers(original("qwen3"))
    before = sum(original("qwen3").get_submodule(path).weight.numel() for path in paths)
    factors = [module for module in model.modules() if isinstance(module, FactoredLinear)]
    kept = {id(one): one.numel() for layer in factors for one in layer.parameters()}
    whole = (model.get_submodule(path) for path in paths)
    after = sum(kept.values()) + sum(one.weight.numel() for one in whole if isinstance(one, nn.Linear))
    assert after <= 0.8 * before
    for number in EACH_DRAW:
        found, plain = (lost("qwen3", 0.2, how, number) for how in ("ours, foretold", "svd"))
        assert found.perplexity_ratio <= 1.04
        assert found.kl_nats_per_token <= 0.02 * plain.kl_nats_per_token


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "of_plain", "of_whitened"), [(0.2, 0.02, 0.12), (0.4, 0.06, 0.22)])
def test_it_loses_a_small_part_of_what_singular_values_lose(ratio: float, of_plain: float, of_whitened: float) -> None:
    for number in EACH_DRAW:
        ours, plain, whitened = (
            lost("qwen3", ratio, how, number).kl_nats_per_token for how in ("ours", "svd", "whitened")
        )
        assert ours < whitened < plain
        assert ours <= of_plain * plain
        assert ours <= of_whitened * whitened


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.2, 0.4])
def test_two_plain_matrices_lose_less_than_singular_values_too(ratio: float) -> None:
    for number in EACH_DRAW:
        ours, whitened = (lost("qwen3", ratio, how, number).kl_nats_per_token for how in ("ours, plain", "whitened"))
        assert ours <= 0.4 * whitened


@pytest.mark.slow
def test_two_fifths_go_at_what_the_dense_model_bears() -> None:
    for number in EACH_DRAW:
        as_they_are, refitted = (lost("qwen3", 0.4, how, number) for how in ("ours", "ours, refitted"))
        assert as_they_are.perplexity_ratio <= 1.2
        assert refitted.perplexity_ratio <= 1.15
        assert refitted.kl_nats_per_token < 0.95 * as_they_are.kl_nats_per_token


@pytest.mark.slow
def test_codes_beside_factors_lose_a_small_part_of_what_factors_of_as_many_bytes_lose() -> None:
    for number in EACH_DRAW:
        beside, alone = (lost("qwen3", 0.66, how, number) for how in ("ours, beside int4", "ours"))
        assert beside.kl_nats_per_token <= 0.03 * alone.kl_nats_per_token
        assert beside.perplexity_ratio <= 1.02


@pytest.mark.slow
@pytest.mark.parametrize("name", in_turn(among=[name for name in NAMES if name != "qwen3"]))
def test_other_families_lose_a_small_part_too(name: str) -> None:
    for number in EACH_DRAW:
        ours, plain = (lost(name, 0.2, how, number).kl_nats_per_token for how in ("ours", "svd"))
        assert ours <= 0.25 * plain
        assert lost(name, 0.2, "ours", number).perplexity_ratio <= 1.06
