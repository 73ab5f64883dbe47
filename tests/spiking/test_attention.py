"""Spiking attention as a module of a model: asked through the library's interface, refused where it does not know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.attention import naive_attention
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.attention import SPIKES, SpikingAttention, attend_with_spikes

CODE = Code("radix", 255, second=True)
SHAPE = HeadShape(heads=4, key_heads=2, head_dim=8, value_dim=6)


def attending() -> tuple[Any, Any, Any, Any]:
    module = nn.Module()
    neurons = SpikingAttention.shaped(SHAPE, CODE, torch.device("cpu"))
    for buffer in neurons.buffers():
        buffer.fill_(3 / CODE.levels)
    module.add_module(SPIKES, neurons)
    made = torch.Generator().manual_seed(0)
    sizes = ((4, 8), (2, 8), (2, 6))
    return module, *(torch.randn(2, heads, 5, width, generator=made) for heads, width in sizes)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("the dense function was asked")


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_attention_and_the_dense_function_is_not_asked(causal: bool) -> None:
    module, *tensors = attending()
    out, weights = attend_with_spikes(never, module, *tensors, None, is_causal=causal, scaling=0.4)
    wanted = naive_attention(*tensors, causal=causal, scale=0.4).transpose(1, 2)
    assert weights is None
    assert out.is_contiguous()
    assert (out - wanted).abs().max() < 0.03
    assert set(module._modules[SPIKES].tally.layers) == {
        f"SpikingAttention.{side}" for side in ("query", "key", "value", "share")
    }


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 30.0}, "softcap"),
    ],
)
def test_what_it_does_not_know_is_refused(rest: dict[str, Any], told: str) -> None:
    module, *tensors = attending()
    with pytest.raises(RefusedOnOptimized, match=told):
        attend_with_spikes(never, module, *tensors, None, **rest)
    with pytest.raises(RefusedOnOptimized, match="adds numbers to the scores"):
        attend_with_spikes(never, module, *tensors, torch.full((1, 1, 5, 5), 0.5))
