"""The plain truth of the next token: the first of the best, and what it counts."""

from __future__ import annotations

import math

import torch

from inference_pio.kernels.next_token import naive_next_token


def test_the_first_of_the_best_is_put_and_everything_counts_one() -> None:
    rows = [[0.0, 2.0, 2.0], [-math.inf, -math.inf, -math.inf], [math.inf, math.nan, math.nan], [-1.0, -0.0, 0.0]]
    tokens, given = torch.full((4,), 9), torch.full((4, 3), 9)
    positions, made, counts = (torch.arange(size, dtype=torch.int32) for size in (4, 1, 2))
    naive_next_token(torch.tensor(rows), tokens, given[:, 1], positions, [made, counts])
    assert tokens.tolist() == [1, 0, 1, 1]
    assert given.tolist() == [[9, 1, 9], [9, 0, 9], [9, 1, 9], [9, 1, 9]]
    assert (positions.tolist(), made.tolist(), counts.tolist()) == ([1, 2, 3, 4], [1], [1, 2])
