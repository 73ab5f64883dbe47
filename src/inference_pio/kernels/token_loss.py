"""The loss of next tokens, a piece of the logits at a time: what is widened to float32 is never all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def naive_token_loss(
    logits: Tensor, targets: Tensor, *, ignored: int = IGNORED, count: Tensor | float | None = None
) -> Tensor:
    """Logits [N, V], targets [N]: the mean over those not ignored, or their sum over `count`."""
    loss = F.cross_entropy(logits.float(), targets, ignore_index=ignored, reduction="mean" if count is None else "sum")
    return loss if count is None else loss / count


def token_loss(
    rows: Tensor, targets: Tensor, tokens: int, *, logits_of: Callable[[Tensor], Tensor] | None = None,
    ignored: int = IGNORED, count: Tensor | float | None = None,
) -> Tensor:  # fmt: skip
    """The same of logits [N, V], `tokens` rows at a time; with `logits_of`, of what that makes of hidden states.

    The sum is kept in float64, so pieces lose nothing to the whole.
    """
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    for part, wanted in _parts(rows, targets, tokens):
        logits = part if logits_of is None else logits_of(part)
        total += F.cross_entropy(logits.float(), wanted, ignore_index=ignored, reduction="sum")
        del logits
    over = (targets != ignored).sum() if count is None else count
    return (total / over).float()


def _parts(rows: Tensor, targets: Tensor, tokens: int) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(rows.split(tokens), targets.split(tokens), strict=True)
