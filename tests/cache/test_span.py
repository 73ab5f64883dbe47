"""What the device is told of a cache's tokens is what the host knows."""

from __future__ import annotations

import pytest
import torch

from inference_pio.cache.span import Span, starts_of
from inference_pio.errors import InvalidSetting


def test_the_length_lies_on_the_device_and_stays_where_it_is() -> None:
    span = Span()
    span.reach(3)
    span.place(torch.device("cpu"))
    assert span.length is not None
    assert (span.length.tolist(), span.length.dtype) == ([3], torch.int32)
    place = span.length.data_ptr()
    span.reach(70)
    span.place(torch.device("cpu"))
    assert (span.length.tolist(), span.length.data_ptr(), span.tokens) == ([70], place, 70)


def test_starts_are_those_of_a_mask_padded_on_the_left() -> None:
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 0, 0]])
    starts = starts_of(mask)
    assert (starts.tolist(), starts.dtype) == ([2, 0, 3], torch.int32)
    span = Span()
    span.pad(starts)
    span.select(torch.tensor([2, 0]))
    assert span.starts is not None
    assert span.starts.tolist() == [3, 2]
    span.pad(None)
    assert span.starts is None


@pytest.mark.parametrize("mask", [[[1, 1, 0]], [[0, 1, 0]], [1, 1]], ids=str)
def test_other_masks_are_refused(mask: list[int]) -> None:
    with pytest.raises(InvalidSetting, match="padding_side = 'left'"):
        starts_of(torch.tensor(mask))
