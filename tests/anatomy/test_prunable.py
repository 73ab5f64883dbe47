"""Units are cut out of weights in one way, whatever they are, and numbers that tell them are found by value."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from inference_pio.anatomy.prunable import ReadUnits, said_by
from inference_pio.anatomy.prunable_units import prunable_units
from tests import tiny


def test_a_configuration_is_asked_by_name_and_by_value() -> None:
    config = SimpleNamespace(width=8, other=8, flag=True, depth=4)
    assert said_by(config, ("width", "depth", "flag", "none"), 8, 6) == {"width": 6}
    assert said_by(config, ("width",), 8, 8) == {}


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe"])
def test_first_units_are_those_that_narrowing_to_them_gives(name: str) -> None:
    for one in prunable_units(tiny.build(name), ["kv_heads"]):
        assert isinstance(one, ReadUnits)
        kept = torch.arange(1).expand(one.copies, -1)
        narrow = one.narrowed(kept, one.down_weights[..., : one.block])
        assert one.down_weights.shape[-1] == one.width * one.block
        for key, weight in one.first(1).items():
            assert torch.equal(weight, narrow[key])
        spread = one.spread(kept, one.down_weights[..., : one.block])
        assert torch.equal(spread[..., : one.block], one.down_weights[..., : one.block])
        assert not spread[..., one.block :].any()
        assert one.nbytes == sum(weight.nbytes for weight in one.weights.values())
