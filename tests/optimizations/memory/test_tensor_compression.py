"""tensor_compression: every Linear and fused expert tensor, each skip with its reason, answers close to the plain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from inference_pio.errors import NoEffect
from inference_pio.formats.int8 import Int8Experts, Int8Linear
from inference_pio.manager import ModularOptimizationManager
from tests import tiny
from tests.sweep import Case


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_logits_stay_close_and_most_weights_are_covered(name: str) -> None:
    case = Case(name)
    case.apply("tensor_compression")
    after = tiny.logits(case.model, name)
    signal = case.logits.float().pow(2).mean()
    noise = (after.float() - case.logits.float()).pow(2).mean()
    assert 10 * torch.log10(signal / noise) > 20  # dB; bfloat16 arithmetic inside the layers is most of it
    assert not torch.equal(after, case.logits)
    assert after.dtype == case.logits.dtype


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_fused_experts_are_compressed_and_routers_are_not(name: str) -> None:
    case = Case(name)
    case.apply("tensor_compression")
    assert any(isinstance(module, Int8Experts) for module in case.model.modules())
    receipt = case.manager.get_receipts(case.model)[0]
    reasons = {skips["reason"] for skips in receipt.to_json()["skipped"]}
    assert any(reason.startswith("routers are kept") for reason in reasons)
    assert sum(site.nbytes for site in receipt.acted) > 0.5 * receipt.weight_bytes_before


def test_every_weight_matrix_is_a_site_or_a_skip_with_its_reason() -> None:
    for name in tiny.TINY:
        model = tiny.build(name)
        plan = ModularOptimizationManager().plan(model, ["tensor_compression"])
        told = {site.path for site in plan.steps[0].sites}
        for path, module in model.named_modules():
            if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
                assert path in told, (name, path)


def test_vision_head_and_embeddings_are_kept() -> None:
    case = Case("qwen3_vl")
    case.apply("tensor_compression")
    compressed = [path for path, module in case.model.named_modules() if isinstance(module, Int8Linear)]
    assert compressed
    assert not [path for path in compressed if "visual" in path]
    assert isinstance(case.model.get_output_embeddings(), nn.Linear)


def test_a_layer_that_shares_its_weights_or_carries_hooks_is_passed_over() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    model[2].register_forward_hook(lambda *_: None)
    plan = ModularOptimizationManager().plan(model, ["tensor_compression"])
    reasons = {site.path: site.skip for site in plan.steps[0].sites}
    assert "shares its weights" in reasons["0"]
    assert "shares its weights" in reasons["1"]
    assert "hooks" in reasons["2"]
    assert reasons["3"] is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [(lambda: nn.Linear(8, 8), "the model itself"), (lambda: nn.Sequential(nn.Linear(0, 4)), "is empty")],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_bare_linear_and_an_empty_weight_are_passed_over(model: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(NoEffect, match=reason):
        ModularOptimizationManager().apply_optimizations(model(), ["tensor_compression"])


def test_a_module_that_two_parents_hold_is_compressed_once_for_both() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"one": nn.Sequential(shared), "two": nn.Sequential(shared)})
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"])
    assert model["one"][0] is model["two"][0]
    assert isinstance(model["one"][0], Int8Linear)
    manager.remove_optimizations(model)
    assert model["one"][0] is model["two"][0] is shared


def test_what_is_compressed_already_is_told() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0] = Int8Linear.from_linear(model[0])
    with pytest.raises(NoEffect):
        ModularOptimizationManager().apply_optimizations(model, ["tensor_compression"])


def test_applying_again_gives_the_same_compressed_bytes() -> None:
    case = Case("llama")
    case.apply("tensor_compression")
    first = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    case.manager.remove_optimizations(case.model)
    case.apply("tensor_compression")
    assert all(torch.equal(first[name], tensor) for name, tensor in case.model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(tiny.TINY))
def test_compression_works_and_is_undone_on_a_gpu(name: str) -> None:
    model = tiny.build(name, dtype=torch.bfloat16).cuda()
    before = tiny.logits(model, name)
    manager = ModularOptimizationManager()
    manager.apply_optimizations(model, ["tensor_compression"])
    assert (tiny.logits(model, name) - before).float().pow(2).mean() < 0.1 * before.float().pow(2).mean()
    manager.remove_optimizations(model)
    assert torch.equal(tiny.logits(model, name), before)
