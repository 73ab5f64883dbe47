"""Launches of attention with many queries come from tables that know the GPU's limits."""

from __future__ import annotations

import pytest

from inference_pio.errors import InvalidSetting
from inference_pio.kernels.triton.flash_launch import RolesLaunch, choose_flash_launch, choose_roles_launch
from inference_pio.kernels.triton.launch import AMPERE, HEAD_DIMS, HOPPER, Limits

CONSUMER = Limits(89, 99 * 1024, 128)
LATE_CONSUMER = Limits(120, 99 * 1024, 170)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_copy_engine_is_used_where_there_is_one_and_it_can_address_the_keys(head_dim: int) -> None:
    assert choose_flash_launch(HOPPER, head_dim).described
    assert not choose_flash_launch(HOPPER, head_dim, aligned=False).described
    for limits in (AMPERE, CONSUMER, LATE_CONSUMER):
        assert not choose_flash_launch(limits, head_dim).described


def test_an_unknown_width_is_refused_by_name() -> None:
    with pytest.raises(InvalidSetting, match=r"heads of 80: known are \[64, 128, 256\]"):
        choose_flash_launch(HOPPER, 80)


def test_only_hopper_has_the_instructions_of_warps_with_roles() -> None:
    assert choose_roles_launch(HOPPER, 64) is not None
    for limits in (AMPERE, CONSUMER, LATE_CONSUMER, Limits(100, HOPPER.shared_bytes, 148), Limits(90, 99 * 1024, 66)):
        assert choose_roles_launch(limits, 128) is None


def test_lists_fit_steps_of_one_block_or_of_two() -> None:
    launch = RolesLaunch(128, 128, 2)
    assert [launch.takes_lists(128, block) for block in (32, 64, 128, 256)] == [False, True, True, False]
    assert not launch.takes_lists(64, 64)
