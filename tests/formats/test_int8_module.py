"""Ordinary calls on int8 modules: casts, checkpoints of the original, questions after the weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.formats.int8_linear import Int8Linear


@pytest.fixture
def layer() -> Int8Linear:
    return Int8Linear.from_linear(nn.Linear(64, 48))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_casting_a_model_never_rounds_a_scale(layer: Int8Linear, dtype: torch.dtype) -> None:
    codes, scale = layer.weight_int8, layer.weight_scale.clone()
    model = nn.Sequential(layer).to(dtype)
    assert torch.equal(layer.weight_scale, scale)
    assert layer.weight_scale.dtype is torch.bfloat16
    assert layer.weight_int8 is codes
    assert layer.bias.dtype is dtype
    assert model(torch.ones(2, 64, dtype=dtype)).dtype is dtype


def test_moving_to_another_device_moves_all_of_it(layer: Int8Linear) -> None:
    layer.to("meta", torch.float16)
    assert all(tensor.is_meta for tensor in (layer.weight_int8, layer.weight_scale, layer.bias))
    assert layer.weight_scale.dtype is torch.bfloat16
    layer.to_empty(device="cpu")
    assert layer.weight_scale.device.type == "cpu"


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_of_the_original_is_refused_by_name(layer: Int8Linear, strict: bool) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(RefusedOnOptimized, match=r"0\.weight: .*reset_model_optimizations\(model\) before"):
        model.load_state_dict(nn.Sequential(nn.Linear(64, 48)).state_dict(), strict=strict)


def test_asking_for_the_weight_says_what_there_is_instead(layer: Int8Linear) -> None:
    assert getattr(layer, "weight", None) is None
    with pytest.raises(AttributeError, match=r"no 'weight': .*dequantize\(\) gives the weights"):
        _ = layer.weight
    with pytest.raises(AttributeError, match="no attribute 'wieght'"):
        _ = layer.wieght
