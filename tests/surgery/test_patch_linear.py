"""Patches that come one by one are multiplied, everything else is convolved, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from inference_pio.errors import NoEffect
from inference_pio.surgery.patch_linear import patch_forward
from tests import tiny
from tests.surgery.help import operate, relative
from tests.sweep import Case


@pytest.mark.parametrize("shape", [(7, 3, 2, 4, 4), (1, 3, 2, 4, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_is_the_convolution(shape: tuple[int, ...], bias: bool, dtype: torch.dtype, near: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(3, 13, (2, 4, 4), stride=(2, 4, 4), bias=bias).to(dtype)
    given = torch.randn(shape).to(dtype)
    with torch.no_grad():
        found, wanted = patch_forward(layer, given), layer(given)
    assert found.shape == wanted.shape
    assert relative(found, wanted) <= near


def test_larger_inputs_are_convolved() -> None:
    layer = nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4))
    given = torch.randn(2, 3, 4, 8, 8)
    assert torch.equal(patch_forward(layer, given), layer(given))


def test_the_patches_of_a_picture_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("qwen3_vl", torch.float32)
    receipt = operate(case.model, "patch_linear")
    assert [site.path for site in receipt.acted] == ["model.visual.patch_embed.proj"]
    assert set(case.model.state_dict()) == set(tiny.build("qwen3_vl").state_dict())
    monkeypatch.setattr(torch.nn.functional, "conv3d", None)
    found = tiny.logits(case.model, "qwen3_vl")
    assert not torch.equal(found, case.logits)
    assert relative(found, case.logits) <= 1e-5


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"stride": (1, 4, 4)}, "are not told apart"),
        ({"padding": 1}, "pads its input"),
        ({"groups": 3}, "groups or holes"),
        ({"dilation": 2}, "groups or holes"),
    ],
)
def test_other_convolutions_are_kept_with_the_reason(changed: dict[str, object], told: str) -> None:
    how: dict[str, object] = {"stride": (2, 4, 4), **changed}
    model = nn.Sequential(nn.Conv3d(3, 6, (2, 4, 4), **how))  # type: ignore[arg-type]
    with pytest.raises(NoEffect, match=told):
        operate(model, "patch_linear")


def test_a_forward_of_somebody_else_is_kept() -> None:
    model = nn.Sequential(nn.Conv3d(3, 6, 2, stride=2))
    model[0].forward = lambda given: given  # type: ignore[method-assign]
    with pytest.raises(NoEffect, match="overridden"):
        operate(model, "patch_linear")


def test_a_pruned_convolution_is_multiplied_as_it_is_now() -> None:
    case = Case("qwen3_vl", torch.float32)
    model: Any = case.model
    prune.random_unstructured(model.model.visual.patch_embed.proj, "weight", 0.5)
    before = tiny.logits(model, "qwen3_vl")
    operate(model, "patch_linear")
    assert relative(tiny.logits(model, "qwen3_vl"), before) <= 1e-5
