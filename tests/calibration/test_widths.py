"""Channels go where they cost least, whole blocks at a time, until the share that was asked for is gone."""

from __future__ import annotations

import pytest
import torch

from inference_pio.calibration.widths import Curve, allocate_widths


def gone(curves: dict[str, Curve], widths: dict[str, int]) -> int:
    return sum((one.width - widths[path]) * one.parameters for path, one in curves.items())


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("align", [1, 4, 8])
def test_the_share_is_reached_and_passed_by_one_block_at_most(ratio: float, align: int) -> None:
    chance = torch.Generator().manual_seed(0)
    curves = {
        name: Curve(torch.rand(width, generator=chance).sort().values, parameters, align)
        for name, width, parameters in (("a", 50, 3), ("b", 64, 10), ("c", 17, 1))
    }
    widths = allocate_widths(curves, ratio)
    wanted = ratio * sum(one.width * one.parameters for one in curves.values())
    assert all(width == curves[name].width or (width % align == 0 and width >= align) for name, width in widths.items())
    assert wanted <= gone(curves, widths) < wanted + align * 10


def test_equal_modules_share_alike_and_a_dear_one_keeps_its_own() -> None:
    losses = torch.arange(1.0, 17.0)
    one, dear = Curve(losses, 2, 4), Curve(100 * losses, 2, 4)
    assert allocate_widths({"a": one, "b": one}, 0.5) == {"a": 8, "b": 8}
    assert allocate_widths({"a": one, "b": dear}, 0.25) == {"a": 8, "b": 16}


def test_parameters_count_and_not_channels() -> None:
    losses = torch.arange(1.0, 17.0)
    found = allocate_widths({"small": Curve(losses, 1, 4), "large": Curve(losses, 10, 4)}, 0.3)
    assert found["large"] < found["small"] == 16


def test_a_block_behind_a_dear_one_is_never_taken_before_it() -> None:
    steep = Curve(torch.tensor([9.0, 0.0, 0.0, 0.0]), 1)
    assert allocate_widths({"a": steep, "b": Curve(torch.full((4,), 5.0), 1)}, 0.3) == {"a": 4, "b": 1}


def test_every_module_keeps_something() -> None:
    free = Curve(torch.zeros(8), 1, 2)
    assert allocate_widths({"a": free, "b": free}, 0.99) == {"a": 2, "b": 2}
