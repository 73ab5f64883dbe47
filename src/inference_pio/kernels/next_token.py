"""The best token of each row of logits, put where the next step finds it; the plain truth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def naive_next_token(
    logits: Tensor, tokens: Tensor, given: Tensor, positions: Tensor, counts: Sequence[Tensor]
) -> None:
    """Write the best of each row of `logits` [M, V] to `tokens` [M] and `given` [M]; one more stands in all elements of
    `positions` and of each of `counts`. Of equals the first is best, and what is no number is above all.

    >>> import torch
    >>> tokens, given, positions, made = (torch.zeros(2, dtype=torch.int64) for _ in range(4))
    >>> naive_next_token(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]), tokens, given, positions, [made])
    >>> tokens.tolist(), given.tolist(), positions.tolist(), made.tolist()
    ([1, 0], [1, 0], [1, 1], [1, 1])
    """
    tokens.copy_(logits.argmax(-1))
    given.copy_(tokens)
    for counted in (positions, *counts):
        counted += 1
