"""Codes and factors side by side compute the sum of what each stands for, and are one layer to all who look."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from inference_pio.errors import RefusedOnOptimized
from inference_pio.formats.coded_residual import CodedResidual
from inference_pio.formats.factored_linear import FactoredLinear, IntoFew
from inference_pio.formats.int4 import Int4Linear
from inference_pio.formats.int8 import Int8Linear


def layer(kind: type[Int4Linear] | type[Int8Linear]) -> CodedResidual:
    torch.manual_seed(0)
    codes = kind.from_linear(nn.Linear(64, 48, bias=False), 32)
    return CodedResidual(codes, FactoredLinear(IntoFew(nn.Linear(64, 8, bias=False)), nn.Linear(8, 48)))


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_it_computes_the_product(kind: type[Int4Linear], lead: tuple[int, ...]) -> None:
    made, x = layer(kind), torch.randn(*lead, 64)
    wanted = nn.functional.linear(x, made.product(), made.factors.out_of.bias)
    torch.testing.assert_close(made(x), wanted, rtol=1e-2, atol=1e-2)  # int4 is multiplied in half precision
    assert torch.equal(made(x), made.codes(x) + made.factors(x))
    torch.testing.assert_close(made(input=x), made(x))
    assert not torch.allclose(made.product(), made.codes.dequantize())


def test_it_has_no_weight_and_takes_none() -> None:
    made = layer(Int8Linear)
    assert (made.in_features, made.out_features) == (64, 48)
    assert repr(made).startswith("CodedResidual(\n  in_features=64, out_features=48")
    with pytest.raises(AttributeError, match="in codes and two factors"):
        _ = made.weight
    with pytest.raises(RefusedOnOptimized, match="codes and two factors"):
        made.load_state_dict({"weight": torch.zeros(48, 64)}, strict=False)
    made.load_state_dict(copy.deepcopy(made).state_dict())
