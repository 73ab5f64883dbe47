"""A fold with powers of two in full weights changes no bit; where it changes answers, it is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inference_pio.calibration.fold_check import CHANGES, by_layer, holding, scales_of_modules
from inference_pio.calibration.folds import Fold, find_folds
from inference_pio.calibration.held_out import HeldOut
from inference_pio.calibration.source import CalibrationSource
from inference_pio.undo.fingerprint import fingerprint
from tests import tiny
from tests.calibration.test_folds import layers_of

LAYERS = [name for name in tiny.HF_NAMES if name != "gpt2"]


def judge_of(model: nn.Module, **given: torch.Tensor) -> HeldOut:
    return HeldOut(model, CalibrationSource("it", (given,)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_known_models_every_fold_holds_to_the_bit(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name, dtype)
    given, before = tiny.inputs(name, model), fingerprint(model)
    folds = find_folds(model, layers_of(model), given)
    found = holding(model, folds, judge_of(model, **given), bar=0.0)
    assert found == folds
    assert sum(fold.left is None for fold in found) >= 4
    assert before.differences(fingerprint(model)) == []


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(32) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (32,), self.weight)


class Reader(nn.Module):
    """Its second block adds what the norm gives to what the layer makes of it, which no layer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm() for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](self.norms[0](x))
        normed = self.norms[1](x)
        return normed + self.layers[1](normed)


def test_a_fold_that_changes_answers_is_left_with_the_reason_and_the_others_hold() -> None:
    model, x = Reader(), torch.randn(5, 32)
    folds = [Fold(f"norms.{number}", (f"layers.{number}",)) for number in range(2)]
    together = [Fold("norms.1", ("layers.1",)), Fold("layers.0", ("layers.1",), left="for a reason")]
    found = holding(model, [*folds, together[1]], judge_of(model, x=x), bar=1e-9)
    assert [fold.left for fold in found] == [None, CHANGES, "for a reason"]
    assert list(by_layer(found)) == ["norms.0"]


def test_a_module_in_two_folds_takes_the_scales_of_both_in() -> None:
    norm, rows, own = Fold("n", ("v", "x")), Fold("v", ("o",), head=2, repeats=2), Fold("x", ("x",))
    scales = {norm: torch.ones(3), rows: torch.tensor([1.0, 2.0, 1.0, 2.0]), own: torch.ones(2, 5)}
    found = scales_of_modules(scales)
    assert set(found) == {"n", "v", "x", "o"}
    assert found["v"].rows.tolist() == [1.0, 2.0]
    assert found["v"].columns is found["n"].rows is found["x"].columns is scales[norm]
    assert found["x"].inner is scales[own]
    assert found["o"].columns is scales[rows]
