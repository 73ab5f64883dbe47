"""Sizes are read as people write them, and what is none is told with an example."""

from __future__ import annotations

from typing import Any

import pytest

from inference_pio.contract.byte_size import bytes_in, in_words
from inference_pio.errors import InvalidSetting


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [(4096, 4096), ("4GB", 4 * 10**9), ("0.5 gib", 2**29), ("100 B", 100), ("12.5%", 125), ("0%", 0), (" 2 kb ", 2000)],
)
def test_sizes_are_read_as_they_are_written(size: int | str, nbytes: int) -> None:
    assert bytes_in(size, 1000) == nbytes


@pytest.mark.parametrize("size", ["", "GB", "4 apples", "-1", "4GB each", "1e9", 0, -5, True, "0.4 B"])
def test_what_is_no_size_is_told_with_an_example(size: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"no size|at least one byte"):
        bytes_in(size, 1000)


def test_sizes_are_shown_in_units_that_fit() -> None:
    assert [in_words(n) for n in (999, 1000, 10**6, 10**9)] == ["999 bytes", "1.0 kB", "1.0 MB", "1.00 GB"]
