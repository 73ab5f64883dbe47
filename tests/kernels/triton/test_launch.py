"""Launches come from a table that knows the GPU's limits; splits depend on the capacity, never on what it holds."""

from __future__ import annotations

import pytest
import torch

from inference_pio.kernels.triton.launch import (
    AMPERE,
    HEAD_DIMS,
    HOPPER,
    MOST_SPLITS,
    PAGE,
    Limits,
    choose_decode_launch,
    choose_latent_launch,
    choose_rotated_launch,
    device_limits,
    on_device,
)

CONSUMER = Limits(89, 99 * 1024, 128)
LATE_CONSUMER = Limits(120, 99 * 1024, 170)


@pytest.mark.parametrize("limits", [HOPPER, AMPERE, CONSUMER])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_decode_programs_all_run_at_the_same_time(limits: Limits, head_dim: int) -> None:
    launch = choose_decode_launch(limits, 1, 8, head_dim, 2**17)
    buffers = (launch.stages - 1) * 64 * head_dim * 2 * 2
    together = limits.shared_bytes // buffers * limits.multiprocessors
    assert limits.multiprocessors * 0.9 < launch.splits * 8 <= together


def test_small_caches_and_large_batches_get_few_splits() -> None:
    assert choose_decode_launch(HOPPER, 1, 8, 128, 100).splits == 2
    assert choose_decode_launch(HOPPER, 1, 8, 128, 1).splits == 1
    assert choose_decode_launch(HOPPER, 256, 8, 128, 2**17).splits == 1
    assert choose_decode_launch(HOPPER, 1, 1, 128, 2**20).splits == MOST_SPLITS


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("limits", [AMPERE, HOPPER, CONSUMER, LATE_CONSUMER], ids=str)
def test_a_token_and_those_before_it_have_a_split_each_at_least(limits: Limits, head_dim: int) -> None:
    for batch, key_heads, capacity in ((1, 8, 32768), (1, 8, PAGE), (1, 1, 2**20), (32, 8, 4096), (500, 8, 1)):
        launch = choose_rotated_launch(limits, batch, key_heads, head_dim, capacity)
        others = choose_decode_launch(limits, batch, key_heads, head_dim, capacity)
        assert 2 <= launch.splits <= MOST_SPLITS
        assert launch.splits - others.splits == (0 if others.splits == MOST_SPLITS else 1)
        assert launch.stages == others.stages


@pytest.mark.parametrize("limits", [HOPPER, AMPERE, CONSUMER])
@pytest.mark.parametrize(("width", "rope"), [(64, 32), (256, 64), (512, 64)])
@pytest.mark.parametrize("heads", [4, 20, 128])
def test_latent_programs_fill_the_gpu_and_fit_its_shared_memory(
    limits: Limits, width: int, rope: int, heads: int
) -> None:
    launch = choose_latent_launch(limits, 1, heads, width, rope, 2**17)
    assert PAGE % launch.block == 0
    held = ((launch.stages - 1) * launch.block + launch.rows) * (width + rope) * 2
    assert held <= limits.shared_bytes
    assert limits.multiprocessors * 0.7 < launch.splits * -(-heads // launch.rows) <= limits.multiprocessors


def test_small_latent_caches_and_large_batches_get_few_splits() -> None:
    assert choose_latent_launch(HOPPER, 1, 20, 512, 64, 100).splits == 2
    assert choose_latent_launch(HOPPER, 300, 20, 512, 64, 2**17).splits == 1


def test_the_cpu_stands_in_for_an_h100() -> None:
    assert device_limits(torch.device("cpu")) == HOPPER
    with on_device(torch.zeros(1)) as nothing:
        assert nothing is None


@pytest.mark.gpu
def test_gpu_limits_are_read_off_the_device() -> None:
    limits = device_limits(torch.device("cuda", 0))
    assert limits.capability >= 80
    assert limits.shared_bytes >= 99 * 1024
    assert limits.multiprocessors == torch.cuda.get_device_properties(0).multi_processor_count
