"""Thresholds are fitted to what was seen: fine where an error matters, high enough for what is rare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.anatomy.walk import attention_modules, experts
from inference_pio.errors import InvalidSetting
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.attention import SpikingAttention
from inference_pio.spiking.conv import SpikingConv2d
from inference_pio.spiking.convert import ROOM, balanced, spiking_form
from inference_pio.spiking.experts import SpikingExperts
from inference_pio.spiking.linear import SpikingLinear
from tests import tiny

CODE = Code("radix", 15, second=True)


def reached(seen: dict[str, Any]) -> Any:
    return lambda name, but: None if seen.get(name) is None else seen[name] * (0.5 if but else 1.0)


def test_with_second_neurons_every_channel_errs_alike_in_what_it_leads_to() -> None:
    nearly, size = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([3.0, 1.0, 2.0]).double()
    weighed = balanced(nearly, nearly * 2, size, CODE) * size
    assert torch.allclose(weighed, weighed[:1].expand(3))
    assert torch.allclose(balanced(2 * nearly, nearly * 2, size, CODE) * size, 2 * weighed)


def test_nothing_that_was_seen_is_beyond_what_can_be_told() -> None:
    nearly, largest = torch.tensor([1.0, 1.0]).double(), torch.tensor([1.0, 1e4]).double()
    assert balanced(nearly, largest, torch.ones(2).double(), CODE)[1] == ROOM * 1e4 / CODE.reach
    assert balanced(nearly, largest, torch.ones(2).double(), CODE.first).tolist() == [1 / 15, 1e4 / 15]


def test_silent_channels_get_an_ordinary_threshold() -> None:
    nearly = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).double()
    found = balanced(nearly, nearly, torch.ones(2, 3).double(), CODE.first)
    assert found[0].tolist() == [1 / 15] * 3


def test_each_kind_of_module_gets_its_form_with_and_without_values() -> None:
    model: Any = tiny.build("qwen3_moe")
    path, attention, _ = next(attention_modules(model))
    where, fused, _ = next(experts(model))
    sides = {"query": 4 * 16, "key": 2 * 16, "value": 2 * 16}
    seen = {f"{path}.{side}": torch.ones(width).double() for side, width in sides.items()}
    seen |= {f"{where}.gate_up": torch.ones(64).double(), f"{where}.down[3]": torch.ones(48).double()}
    seen |= {"linear": torch.ones(5).double(), "conv": torch.ones(4).double()}
    forms: list[tuple[str, Any, Any]] = [
        (path, attention, SpikingAttention), (where, fused, SpikingExperts), ("linear", nn.Linear(5, 3), SpikingLinear),
        ("conv", nn.Conv2d(4, 6, 3, groups=2), SpikingConv2d),
    ]  # fmt: skip
    for name, module, kind in forms:
        real, shaped = (spiking_form(name, module, CODE, 0.01, told) for told in (reached(seen), None))
        assert type(real) is type(shaped) is kind
        assert {key: (one.shape, one.dtype) for key, one in real.state_dict().items()} == {
            key: (one.shape, one.dtype) for key, one in shaped.state_dict().items()
        }
        assert all(one.isfinite().all() for one in real.state_dict().values())


def test_what_was_never_seen_is_refused() -> None:
    for told in ({}, {"linear": torch.zeros(5).double()}):
        with pytest.raises(InvalidSetting, match="linear was given nothing but zeros"):
            spiking_form("linear", nn.Linear(5, 3), CODE, 0.01, reached(told))
