"""Launches of products of a few rows: what none can be is told, and what they are not for."""

from __future__ import annotations

import pytest
import torch

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.gemv_launch import GemvLaunch
from inference_pio.kernels.triton.launch import AMPERE, HOPPER


def test_a_gpu_that_cannot_overlap_or_a_dtype_that_no_unit_takes_is_told() -> None:
    with pytest.raises(InvalidSetting, match=r"for bfloat16, and x is torch\.float16"):
        GemvLaunch(16, 128, 1, stages=3).require(HOPPER, torch.float16)
    with pytest.raises(InvalidSetting, match=r"from compute capability 9\.0 on, and this GPU has 8\.0"):
        GemvLaunch(1, 512, 1, dependent=True).require(AMPERE, torch.bfloat16)


def test_parts_are_whole_groups_and_columns_of_the_units() -> None:
    launch = GemvLaunch(4, 128, 1, stages=2, parts=4)
    launch.require(HOPPER, torch.bfloat16, 128, batch=2, inputs=9728)
    for batch, inputs, group in ((1, 640, 128), (3, 9728, 128), (1, 9728, 0)):
        with pytest.raises(InvalidSetting, match=r"is not for .*: a part is whole groups of 128"):
            launch.require(HOPPER, torch.bfloat16, group, batch=batch, inputs=inputs)


NO_LAUNCHES = [
    GemvLaunch(3, 512, 1), GemvLaunch(1, 0, 1), GemvLaunch(1, 64, 4), GemvLaunch(8, 128, 1, stages=3),
    GemvLaunch(16, 128, 1, stages=7), GemvLaunch(1, 512, 1, stages=-1), GemvLaunch(4, 128, 1, stages=2, parts=3),
    GemvLaunch(4, 128, 1, parts=4), GemvLaunch(4, 128, 1, stages=2, parts=2), GemvLaunch(16, 128, 1, stages=2, parts=4),
    GemvLaunch(4, 256, 1, stages=2, parts=4), GemvLaunch(4, 128, 1, stages=3, parts=4),
    GemvLaunch(16, 128, 1, stages=2, parts=0),
]  # fmt: skip


@pytest.mark.parametrize("launch", NO_LAUNCHES, ids=str)
def test_a_launch_that_is_none_is_told(launch: GemvLaunch) -> None:
    with pytest.raises(InvalidSetting, match="is no launch"):
        launch.require(HOPPER, torch.bfloat16)
