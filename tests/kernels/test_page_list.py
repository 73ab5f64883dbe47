"""A list of pages says the same as a boolean for each of them."""

from __future__ import annotations

import torch

from inference_pio.kernels.page_list import PageList


def test_what_stands_behind_the_count_is_not_listed() -> None:
    counts = torch.tensor([[0, 2], [3, 1]], dtype=torch.int32)
    indices = torch.tensor([[[5, 1, 1], [0, 4, 2]], [[0, 1, 5], [3, 9, 9]]], dtype=torch.int32)
    kept = PageList(counts, indices).kept(6)
    assert [[head.nonzero().flatten().tolist() for head in row] for row in kept] == [[[], [0, 4]], [[0, 1, 5], [3]]]
