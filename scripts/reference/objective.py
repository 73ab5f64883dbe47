"""What training minimizes: the next token where it can be known, and balanced experts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .retrieval import CAPTION, ECHO, RECALL, TEXT

RECALL_WEIGHT = 4.0
Z_WEIGHT = 1e-4
BALANCE_WEIGHT = 0.01
BIAS_STEP = 0.002
KINDS = (TEXT, RECALL, CAPTION, ECHO)


def token_loss(logits: torch.Tensor, answers: torch.Tensor, kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss over rows of logits [n, vocabulary], and per kind the sums (loss, hits, count) [4, 3]."""
    logits = logits.float()
    total = logits.logsumexp(dim=-1)
    losses = total - logits.gather(1, answers[:, None])[:, 0]
    of_kind = torch.stack([kinds == kind for kind in KINDS]).float()
    weights = of_kind.sum(0) + of_kind[1] * (RECALL_WEIGHT - 1)
    loss = (weights * (losses + Z_WEIGHT * total**2)).sum() / weights.sum()
    with torch.no_grad():
        hits = (logits.argmax(dim=-1) == answers).float()
        sums = torch.stack([of_kind @ losses, of_kind @ hits, of_kind.sum(1)], dim=1)
    return loss, sums


def balance_loss(routers: list[Any]) -> torch.Tensor | float:
    """The load-balancing loss of routers without a correction bias: the share of tokens times the mean probability."""
    losses = []
    for router in routers:
        if not hasattr(router, "e_score_correction_bias"):
            share = _share(router)
            losses.append(len(share) * (share * F.softmax(router.logits.float(), dim=-1).mean(0)).sum())
    return BALANCE_WEIGHT * sum(losses)


@torch.no_grad()
def nudge_biases(routers: list[Any]) -> None:
    """GLM's balance without a loss: the correction bias of an expert rises while it is chosen too rarely."""
    for router in routers:
        if hasattr(router, "e_score_correction_bias"):
            share = _share(router)
            router.e_score_correction_bias.add_(torch.sign(share.mean() - share) * BIAS_STEP)


@torch.no_grad()
def _share(router: Any) -> torch.Tensor:
    chosen = router.logits.new_zeros(router.logits.shape, dtype=torch.float32).scatter(1, router.chosen, 1.0)
    return chosen.sum(0) / router.chosen.numel()
