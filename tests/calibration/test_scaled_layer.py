"""Twins with scales in their weights: the same products, up to what inputs and results are divided by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.calibration.scaled_layer import Scales, held_scales, replace_parameters, scaled
from inference_pio.undo.fingerprint import fingerprint
from inference_pio.undo.journal import Journal
from inference_pio.undo.vault import Vault
from tests import tiny


def powers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.exp2(torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_by_powers_of_two_a_linear_layer_gives_the_same_bits(dtype: torch.dtype) -> None:
    layer = nn.Linear(16, 8, dtype=dtype)
    columns, rows, x = powers(16), powers(8, seed=1), torch.randn(3, 16).to(dtype)
    twin = scaled(layer, Scales(columns=columns, rows=rows))
    assert torch.equal(twin((x.float() / columns).to(dtype)) * rows.to(dtype), layer(x))
    assert torch.equal(scaled(layer, Scales(rows=rows))(x) * rows.to(dtype), layer(x))
    assert torch.equal(scaled(layer, Scales(columns=columns))((x.float() / columns).to(dtype)), layer(x))
    assert twin.weight is not layer.weight
    assert scaled(layer, Scales(columns=columns)).bias is layer.bias
    assert scaled(layer, Scales(columns=columns), torch.float64).weight.dtype is torch.float64
    assert scaled(layer, Scales(rows=rows), torch.float64).bias.dtype is dtype


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "glm4_moe_lite"])
def test_experts_scale_inside_without_a_trace_and_take_inputs_divided(name: str) -> None:
    experts = tiny.build(name, torch.bfloat16).model.layers[1].mlp.experts
    count, _, inner = experts.down_proj.shape
    columns, within = powers(64), powers(count, inner, seed=1)
    x, index = torch.randn(5, 64).bfloat16(), torch.randint(0, count, (5, 2))
    weights = torch.rand(5, 2).bfloat16()
    with torch.no_grad():
        wanted = experts(x, index, weights)
        assert torch.equal(scaled(experts, Scales(inner=within))(x, index, weights), wanted)
        twin = scaled(experts, Scales(columns=columns, inner=within))
        assert torch.equal(twin((x.float() / columns).bfloat16(), index, weights), wanted)


def test_a_twin_has_no_hooks_of_the_original() -> None:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: 1 / 0)
    x = torch.ones(1, 4)
    assert torch.equal(scaled(layer, Scales())(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_a_norm_holds_what_its_dtype_can_and_says_what_that_is() -> None:
    weight = torch.tensor([1.0, 3.0, 0.0, -2.0], dtype=torch.bfloat16)
    wished = torch.tensor([1.3, 0.7, 5.0, 2.0])
    held = held_scales(weight, wished)
    norm = nn.RMSNorm(4, dtype=torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(weight)
    twin = scaled(norm, Scales(rows=held))
    assert torch.equal(twin.weight.float() * held, weight.float())
    assert held[2] == 1
    assert (held[[0, 1, 3]] / wished[[0, 1, 3]] - 1).abs().max() < 2**-8


def test_only_other_parameters_are_put_in_place_and_are_taken_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    before, bias = fingerprint(model), model[0].bias
    journal = Journal(model, Vault("device"))

    def fail_after_putting_them() -> None:
        with journal.step("scales"):
            replace_parameters(journal, model[0], scaled(model[0], Scales(columns=powers(4))))
            assert before.differences(fingerprint(model)) != []
            assert model[0].bias is bias
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_putting_them()
    assert before.differences(fingerprint(model)) == []
