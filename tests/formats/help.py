"""What tests of formats share: every format that rounds, with sizes that it takes, and how near it comes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.formats.compressed_experts import CompressedExperts
from inference_pio.formats.compressed_linear import CompressedLinear
from inference_pio.formats.known import known_formats

ALL_FORMATS = list(known_formats())
FORMATS = [name for name in ALL_FORMATS if not known_formats()[name].linear.exact]
EACH_FORMAT = pytest.mark.parametrize("name", FORMATS)
GROUP = 32
STEP = {"int8": 0.004, "fp8": 0.037, "int4": 0.12}
"""The largest error of a weight, as a share of the largest weight beside it."""


def linear_of(name: str, layer: nn.Module) -> CompressedLinear:
    layer = layer.bfloat16() if known_formats()[name].linear.exact else layer
    return known_formats()[name].linear.from_linear(layer, group=GROUP)


def experts_of(name: str, experts: nn.Module) -> CompressedExperts:
    return known_formats()[name].experts.from_experts(experts, group=GROUP)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int = 64, outputs: int = 48, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs, bias=bias)
