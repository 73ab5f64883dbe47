"""Pinned memory is as large as asked for, and given back."""

from __future__ import annotations

import gc

import pytest
import torch

from inference_pio.streaming.pinned import Pinned


@pytest.mark.gpu
def test_memory_is_pinned_exactly_and_given_back() -> None:
    pinned = Pinned(5_000_001)
    assert pinned.bytes.is_pinned()
    assert pinned.bytes.numel() == 5_000_001
    assert pinned.bytes.untyped_storage().nbytes() < 5_000_001 + 2 * 4096
    pinned.bytes.fill_(7)
    assert (pinned.bytes.to("cuda", non_blocking=True) == 7).all()
    torch.cuda.synchronize()
    address = pinned.bytes.data_ptr()
    keep = pinned.bytes
    del pinned
    gc.collect()
    assert not keep.is_pinned()
    assert keep.data_ptr() == address


def test_memory_that_no_gpu_copies_from_needs_no_driver() -> None:
    plain = Pinned(100, registered=False)
    assert plain.bytes.shape == (100,)
    assert plain.bytes.data_ptr() % 4096 == 0
