"""A twin computes with other weights; what comes to the original later does not come to it."""

from __future__ import annotations

import torch
from torch import nn

from inference_pio.anatomy.prunable import Prunable
from inference_pio.anatomy.prunable_units import prunable_units
from inference_pio.calibration.stood_in import stood_in
from inference_pio.calibration.twins import pruned_twin, twin_of
from tests import tiny


def test_a_twin_stands_in_for_its_original_and_leaves_it_alone() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()))
    before = model(torch.ones(1, 2))
    twin = twin_of(model[0], {"0.weight": torch.full((2, 2), 3.0)})
    with stood_in(model, {"0": twin}):  # a hook on the original, which the twin must not call
        assert model(torch.ones(1, 2)).tolist() == [[6.0, 6.0]]
    assert torch.equal(model(torch.ones(1, 2)), before)
    assert twin[1] is model[0][1]


def test_several_weights_of_one_child_and_of_the_module_itself() -> None:
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    twin = twin_of(module, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert twin(torch.ones(2)).tolist() == [2.0, 2.0, 2.0]
    assert not twin.weight.requires_grad
    both = twin_of(nn.Sequential(module), {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)})
    assert both(torch.ones(2)).tolist() == [3.0, 3.0, 3.0]
    assert module.weight.shape == (2, 2)


def test_a_pruned_twin_has_the_numbers_and_buffers_of_a_smaller_module() -> None:
    model = tiny.build("glm4_moe")
    (one,) = [one for one in prunable_units(model, ["experts"]) if isinstance(one, Prunable) and one.unit == "experts"]
    twin = pruned_twin(one, one.first(5), 5)
    assert (twin.gate.num_experts, twin.experts.num_experts) == (5, 5)
    assert twin.gate.e_score_correction_bias.shape == (5,)
    assert (one.module.gate.num_experts, one.module.experts.num_experts) == (8, 8)
    assert one.module.gate.e_score_correction_bias.shape == (8,)
    assert twin(torch.ones(1, 3, tiny.HIDDEN)).isfinite().all()
