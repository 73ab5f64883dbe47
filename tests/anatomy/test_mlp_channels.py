"""Inner channels are found in every family, and narrowing them is what zeros at their places would give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.anatomy.mlp_channels import EXPERT_WIDTH, MLP, InnerChannels, inner_channels
from inference_pio.calibration.twins import twin_of
from tests import tiny

UNITS = {
    "llama": {MLP}, "qwen3": {MLP}, "qwen3_vl": {MLP}, "qwen3_moe": {MLP, EXPERT_WIDTH},
    "glm4_moe": {MLP, EXPERT_WIDTH}, "glm4_moe_lite": {MLP, EXPERT_WIDTH},
}  # fmt: skip


def found_in(model: nn.Module) -> list[InnerChannels]:
    return [one for one in inner_channels(model) if isinstance(one, InnerChannels)]


@pytest.mark.parametrize("name", UNITS)
def test_each_family_has_its_units(name: str) -> None:
    model = tiny.build(name)
    found = found_in(model)
    assert {one.unit for one in found} == UNITS[name]
    for one in found:
        assert model.get_submodule(one.path) is one.module
        assert one.down_weights.shape[0] == one.copies
        assert one.down_weights.shape[2] == one.width


@pytest.mark.parametrize("name", ["gpt2", "plain"])
def test_others_have_none(name: str) -> None:
    assert found_in(tiny.build(name)) == []


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "glm4_moe"])
def test_a_narrow_module_gives_what_zeros_in_the_wide_one_give(name: str) -> None:
    for one in found_in(tiny.build(name)):
        chance = torch.Generator().manual_seed(0)
        kept = torch.stack([torch.randperm(one.width, generator=chance)[:8].sort().values for _ in range(one.copies)])
        places = kept[:, None].expand(-1, one.down_weights.shape[1], -1)
        down = one.down_weights.gather(2, places)
        narrow = one.narrowed(kept, down)
        assert {name: weight.shape for name, weight in narrow.items()}.keys() == one.weights.keys()
        zeros = torch.zeros_like(one.down_weights).scatter(2, places, down)
        wide = twin_of(one.module, {one.down_name: zeros if one.stacked else zeros[0]})
        given = (torch.randn(7, tiny.HIDDEN, generator=chance),)
        if one.stacked:
            index = torch.randint(0, one.copies, (7, 2), generator=chance)
            given += (index, torch.rand(7, 2, generator=chance))  # type: ignore[assignment]
        torch.testing.assert_close(twin_of(one.module, narrow)(*given), wide(*given), rtol=1e-4, atol=1e-5)


def test_reasons_are_told_for_what_is_held_otherwise() -> None:
    model = tiny.build("qwen3_vl")
    reasons = [one[1] for one in inner_channels(model) if isinstance(one, tuple)]
    assert all(isinstance(reason, str) and reason for reason in reasons)
    model = tiny.build("llama")
    model.model.layers[0].mlp.down_proj.forward = lambda x: x
    model.model.layers[1].mlp.act_fn = nn.Tanh()
    told = [one for one in inner_channels(model) if isinstance(one, tuple)]
    assert ("model.layers.1.mlp", "LlamaMLP does not gate by SiLU") in told
    model.model.layers[2].mlp.up_proj = nn.Linear(tiny.HIDDEN, 100)
    assert ("model.layers.2.mlp", "its layers have biases") in list(inner_channels(model))
