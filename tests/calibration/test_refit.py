"""Layers that are fitted again undo what the layers before them lose, and leave the model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.side_by_side import side_by_side
from inference_pio.calibration.factors import Factors, layers_of
from inference_pio.calibration.refit import refit
from inference_pio.calibration.source import CalibrationSource
from inference_pio.calibration.stood_in import stood_in
from inference_pio.undo.fingerprint import fingerprint


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5)).eval()


def rows(count: int, size: int) -> CalibrationSource:
    chance = torch.Generator().manual_seed(1)
    batches = tuple({"input": torch.randn(size, 8, generator=chance)} for _ in range(count))
    return CalibrationSource("rows", batches)


def factors(model: Any) -> dict[str, Factors]:
    """The first layer gives twice what it gave; the second is as it was."""
    unit = torch.eye(8)
    return {
        "0": Factors(unit, 2 * model[0].weight.detach(), None),
        "1": Factors(unit, model[1].weight.detach().clone(), None),
    }


@pytest.mark.parametrize("biased", [True, False])
def test_each_layer_makes_up_for_what_is_wrong_before_it(biased: bool) -> None:
    model = chain()
    if not biased:
        for layer in model:
            layer.bias = None
    groups, source = side_by_side(model, ["0", "1"]), rows(16, 64)
    before = fingerprint(model)
    found = refit(model, groups, factors(model), source)
    assert before.differences(fingerprint(model)) == []
    with torch.no_grad():
        x = torch.randn(7, 8)
        wanted = model(x)
        with stood_in(model, layers_of(model, groups, found)):
            torch.testing.assert_close(model(x), wanted, rtol=0.05, atol=0.05)
        with stood_in(model, layers_of(model, groups, factors(model))):
            assert (model(x) - wanted).abs().max() > 0.3


def test_few_rows_change_little_and_what_is_whole_is_left() -> None:
    model = chain()
    groups = side_by_side(model, ["0", "1"])
    only = {"1": factors(model)["1"]}
    found = refit(model, groups, only, rows(1, 2))
    assert set(found) == {"1"}
    torch.testing.assert_close(found["1"].out_of, only["1"].out_of, rtol=1e-4, atol=1e-4)


class Choosing(nn.Module):
    """A row goes through one of two layers, as the layer before says."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.seldom, self.often = nn.Linear(8, 8), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        made = self.router(input)
        seldom = made[:, 0] > 0
        out = made.new_zeros(len(made), 5)
        for chosen, layer in ((seldom, self.seldom), (~seldom, self.often)):
            if chosen.any():
                out[chosen] = layer(made[chosen])
        return out


def test_layers_that_are_given_other_rows_now_or_none_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model, unit = Choosing().eval(), torch.eye(8)
    with torch.no_grad():
        model.router.weight.copy_(unit)
        model.router.bias.zero_()
    blind = unit.clone()
    blind[0, 0] = 0
    found = {"router": Factors(blind, 2 * unit, None)}
    found |= {name: Factors(unit, model.get_submodule(name).weight.detach(), None) for name in ("seldom", "often")}
    changing = rows(8, 64).batches
    never = tuple({"input": torch.full((16, 8), value)} for value in (-1.0, -2.0))
    for batches, refitted in ((changing, {"router"}), (never, {"router", "often"})):
        made = refit(model, side_by_side(model, list(found)), found, CalibrationSource("rows", batches))
        assert {name for name in found if not torch.equal(made[name].out_of, found[name].out_of)} == refitted
