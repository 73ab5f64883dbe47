from __future__ import annotations

from typing import Any

import pytest

from inference_pio.contract.byte_size import bytes_of, in_words


@pytest.mark.parametrize(
    ("size", "count"),
    [(1, 1), ("1", 1), ("12 B", 12), ("4GB", 4 * 10**9), ("4gb", 4 * 10**9), (" 1.5 GiB ", 3 * 2**29), ("0.5KB", 500)],
)
def test_sizes_are_read(size: int | str, count: int) -> None:
    assert bytes_of(size) == count


@pytest.mark.parametrize("size", [0, -1, True, 1.5, None, "", "GB", "4 gigs", "-4GB", "4GB or so", "0.2B", "1e9"])
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"no size|less than one byte"):
        bytes_of(size)


def test_bytes_are_told_with_the_unit_that_suits_them() -> None:
    assert [in_words(count) for count in (1, 999, 10**3, 2_340_000, 10**12)] == [
        "1 B", "999 B", "1 KB", "2.34 MB", "1 TB",
    ]  # fmt: skip
