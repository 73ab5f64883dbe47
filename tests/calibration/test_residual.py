"""What codes leave of weights, and what they count, is what their layers hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.anatomy.side_by_side import side_by_side
from inference_pio.calibration.factors import factors_at, factors_to_come, layers_of
from inference_pio.calibration.residual import Residual, held
from inference_pio.formats.coded_residual import CodedResidual
from inference_pio.kernels.low_rank import spectrum


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(128, 48), nn.Linear(128, 16)
        self.k_proj = nn.Linear(128, 16, bias=False)


PATHS = ("q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_codes_and_what_they_leave_are_the_weights(name: str, dtype: torch.dtype) -> None:
    model, residual = Block().to(dtype), Residual(name)
    (one,) = side_by_side(model, PATHS)
    codes = residual.codes(model, one)
    torch.testing.assert_close(held(codes) + residual.left(model, one), one.weight(model).float())
    assert residual.left(model, one).abs().max() > 0
    assert residual.numbers(model, one) * dtype.itemsize == sum(
        buffer.nbytes for layer in codes for buffer in layer.buffers()
    )


@pytest.mark.parametrize("pivots", [True, False])
def test_at_full_rank_layers_are_what_they_were(pivots: bool) -> None:
    model, residual = Block(), Residual("int4")
    groups = side_by_side(model, PATHS)
    left = residual.left(model, groups[0])
    factors = {"q_proj": factors_at(spectrum(left), 80, pivots, left)}
    made = layers_of(model, groups, factors, residual)
    for path, layer in made.items():
        assert isinstance(layer, CodedResidual)
        own = model.get_submodule(path)
        assert layer.factors.out_of.bias is own.bias
        torch.testing.assert_close(layer.product(), own.weight, rtol=1e-4, atol=1e-5)
    to_come = layers_of(model, groups, factors_to_come(model, groups, {"q_proj": 80}, pivots), residual)
    for path, layer in made.items():
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in layer.state_dict().items()}
        assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in to_come[path].state_dict().items()}


def test_layers_that_groups_do_not_divide_are_told() -> None:
    assert Residual("int8").why_not(100) is None
    assert "do not divide its 100 inputs" in str(Residual("int4").why_not(100))
    assert [Residual("int4").group(inputs) for inputs in (2560, 192, 96)] == [128, 64, 32]
