from __future__ import annotations

import torch

from inference_pio.undo.parked import View, bytes_of, checksum_of


def test_the_bytes_of_a_tensor_are_those_of_its_whole_storage() -> None:
    whole = torch.arange(6, dtype=torch.int32)
    assert bytes_of(whole[2:3]).numel() == 24
    assert bytes_of(whole).data_ptr() == whole.data_ptr()
    assert checksum_of(bytes_of(whole[2:3])) == checksum_of(bytes_of(whole))
    assert checksum_of(torch.zeros(0, dtype=torch.uint8)) == 0


def test_a_view_knows_where_it_ends() -> None:
    assert View.of(torch.zeros(4, 4)[1:3, :2]).end_bytes == (4 + 4 + 2) * 4
    assert View.of(torch.zeros(0, 4)).end_bytes == 0
    assert View.of(torch.zeros(())).end_bytes == 4
