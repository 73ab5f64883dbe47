from __future__ import annotations

from typing import Any

import pytest

from inference_pio.measure.html.change import Change, change_of
from inference_pio.measure.html.quantities import DECODE, FIRST, PERPLEXITY, WEIGHTS, Quantity


def change(quantity: Quantity, ratio: Any, interval: Any = None) -> Change:
    found = change_of(quantity, {quantity.ratio: ratio, "intervals": {quantity.ratio: interval}})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("quantity", "ratio", "kind", "text"),
    [
        (DECODE, 1.5, "gain", "50% faster"),
        (DECODE, 0.5, "loss", "50% slower"),
        (FIRST, 0.5, "gain", "50% shorter"),
        (FIRST, 1.5, "loss", "50% longer"),
        (WEIGHTS, 0.6, "gain", "40% less"),
        (WEIGHTS, 1.001, "same", "the same"),
        (PERPLEXITY, 1.001, "loss", "0.10% higher"),
        (DECODE, "inf", "gain", "inf% faster"),
    ],
)
def test_a_gain_and_a_loss_are_told_by_the_better_direction(
    quantity: Quantity, ratio: Any, kind: str, text: str
) -> None:
    found = change(quantity, ratio)
    assert (found.kind, found.text) == (kind, text)


def test_a_change_is_sure_where_its_interval_leaves_one_out() -> None:
    assert change(DECODE, 1.5, [1.4, 1.8]).sure
    assert not change(DECODE, 0.86, [0.75, 1.19]).sure
    assert change(DECODE, 0.86, [0.75, 1.19]).range == "0.75–1.19×"
    assert change(WEIGHTS, 0.6).sure
    assert change(WEIGHTS, 0.6).range == ""


def test_what_was_not_compared_is_none() -> None:
    assert change_of(PERPLEXITY, {"perplexity_ratio": None}) is None
    assert change_of(DECODE, {}) is None
