from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from inference_pio.contract.spread import spread


@given(st.integers(0, 50), st.integers(1, 50))
def test_what_is_spread_lies_even(count: int, total: int) -> None:
    found = spread(min(count, total), total)
    gaps = [right - left for left, right in itertools.pairwise((-1, *found))]
    assert len(set(found)) == min(count, total)
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert not found or found[-1] == total - 1
