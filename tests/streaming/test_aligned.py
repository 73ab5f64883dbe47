"""Memory stands where it is asked to stand, and a part keeps the whole."""

from __future__ import annotations

import pytest
import torch

from inference_pio.streaming.aligned import BLOCK, aligned_bytes, part_of, up_to


@pytest.mark.parametrize("nbytes", [1, 63, 4096, 100_000])
@pytest.mark.parametrize("residue", [0, 8, 64, 4095])
def test_memory_begins_where_it_is_asked_to(nbytes: int, residue: int) -> None:
    found = aligned_bytes(nbytes, residue)
    assert found.data_ptr() % BLOCK == residue
    assert (found.numel(), found.untyped_storage().nbytes()) == (nbytes, nbytes)
    assert not found.is_inference()


def test_a_part_shares_the_memory_of_the_whole_and_keeps_it() -> None:
    whole = torch.arange(100, dtype=torch.uint8)
    part = part_of(whole.untyped_storage(), 10, 5)
    whole[12] = 77
    del whole
    assert part.tolist() == [10, 11, 77, 13, 14]


def test_memory_made_inside_inference_mode_is_ordinary() -> None:
    with torch.inference_mode():
        assert not aligned_bytes(8).is_inference()


def test_multiples_are_those_at_or_above() -> None:
    assert [up_to(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]
