from __future__ import annotations

from inference_pio.measure.spread import Spread


def test_an_even_number_of_samples_has_its_median_between_the_middle_two():
    spread = Spread((4.0, 1.0, 3.0, 10.0))
    assert (spread.low, spread.median, spread.high) == (1.0, 3.5, 10.0)


def test_the_samples_keep_their_order_in_json():
    assert Spread((2.0, 1.0)).to_json() == {"median": 1.5, "low": 1.0, "high": 2.0, "samples": [2.0, 1.0]}
