"""The proof holds where spikes are their counts, fails where one bit differs, and is refused in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.kernels.spikes import Code
from inference_pio.spiking.linear import SpikingLinear
from inference_pio.spiking.module import at_once
from inference_pio.spiking.proof import prove_equal, why_no_proof


class Wrong(SpikingLinear):
    """One bit of one number differs from what is counted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = super().forward(x)
        return made if at_once() else torch.nextafter(made, made + (torch.arange(made.numel()).view_as(made) == 1))


def net(kind: Any = SpikingLinear) -> nn.Module:
    layer = kind(nn.Linear(6, 4), torch.full((6,), 0.1, dtype=torch.float64), Code("radix", 15))
    return nn.Sequential(nn.Linear(5, 6), layer)


def test_equal_bits_are_told_with_their_number() -> None:
    assert prove_equal(net(), {"input": torch.randn(3, 5)}) == {
        "equal": True, "numbers": {"outputs": 12}, "steps": 4, "coding": "radix",
    }  # fmt: skip


def test_one_bit_is_enough_to_fail() -> None:
    with pytest.raises(InvalidModel, match="spikes and counts differ"):
        prove_equal(net(Wrong), {"input": torch.randn(3, 5)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    assert why_no_proof(net()) is None
    with pytest.raises(InvalidSetting, match=str(dtype).removeprefix("torch.")):
        prove_equal(net().to(dtype), {"input": torch.randn(3, 5).to(dtype)})
