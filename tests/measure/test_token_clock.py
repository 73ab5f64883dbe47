from __future__ import annotations

import pytest
import torch

from inference_pio.errors import MeasureError
from inference_pio.measure.token_clock import TokenClock


def fed(stamps: list[float], counts: list[int]) -> TokenClock:
    times = iter(stamps)
    token_clock = TokenClock(lambda: next(times))
    token_clock.put(torch.zeros(1, 30, dtype=torch.int64))  # the prompt
    for count in counts:
        token_clock.put(torch.zeros(count, dtype=torch.int64))
    token_clock.end()
    return token_clock


def test_decode_speed_is_n_minus_one_over_last_minus_first():
    assert fed([10.0, 10.5, 11.0, 12.0], [1, 1, 1, 1]).tokens_per_s() == 3 / 2.0


def test_tokens_that_come_in_batches_count_from_after_the_first_delivery():
    assert fed([1.0, 2.0, 3.0], [3, 2, 4]).tokens_per_s() == 6 / 2.0


def test_tokens_that_all_come_at_once_have_no_speed():
    with pytest.raises(MeasureError, match="arrive one after another"):
        fed([5.0], [8]).tokens_per_s()


def test_a_wrong_number_of_tokens_is_told():
    token_clock = fed([1.0, 2.0], [1, 1])
    token_clock.check(2)
    with pytest.raises(MeasureError, match="gave 2 tokens to the streamer where 3 were asked"):
        token_clock.check(3)
