"""The loss of a forward with labels, a piece of its logits at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.pieces import Pieces
from inference_pio.compat import LOSS, library_loss
from inference_pio.kernels.token_loss import IGNORED, token_loss
from inference_pio.undo.journal import Journal

ENDS = "get_output_embeddings"


def why_no_loss(model: nn.Module) -> str | None:
    """Why a model's forward makes no loss of next tokens that can be taken apart, or None.

    >>> why_no_loss(nn.Linear(2, 2))
    'its forward makes no loss of next tokens by the library'
    """
    if library_loss(model) is None:
        return "its forward makes no loss of next tokens by the library"
    return "it has no head that leads to its vocabulary" if getattr(model, ENDS)() is None else None


def make_losses_in_pieces(journal: Journal, model: nn.Module, tokens: int) -> None:
    """From now on, a forward with labels widens the logits of so many tokens at a time."""
    journal.set(model, LOSS, LossInPieces(library_loss(model), tokens))


def loss_of(model: nn.Module) -> LossInPieces | None:
    """What stands in for a model's loss, if it is made in pieces."""
    found = model.__dict__.get(LOSS)
    return found if isinstance(found, LossInPieces) else None


class LossInPieces:
    """Called as the library's loss is. What is learned from goes to the library's own, all logits at once."""

    def __init__(self, whole: Any, tokens: int) -> None:
        self.whole, self.pieces = whole, Pieces(tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> LossInPieces:
        return LossInPieces(self.whole, self.pieces.tokens)

    def __call__(
        self, logits: Tensor, labels: Tensor | None, vocab_size: int, num_items_in_batch: Any = None,
        ignore_index: int = IGNORED, shift_labels: Tensor | None = None, **others: Any,
    ) -> Tensor:  # fmt: skip
        rows = logits.reshape(-1, vocab_size)
        if torch.is_grad_enabled() and logits.requires_grad:
            self.pieces.left["gradients are recorded"] += 1
            found: Tensor = self.whole(
                logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **others
            )  # fmt: skip
            return found
        targets = next_tokens(labels, ignore_index) if shift_labels is None else shift_labels
        if len(rows) > self.pieces.tokens:
            self.pieces.cut(-(-len(rows) // self.pieces.tokens))
        count = num_items_in_batch.to(rows.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
        wanted = targets.reshape(-1).to(rows.device)
        return token_loss(rows, wanted, self.pieces.tokens, ignored=ignore_index, count=count)


def next_tokens(labels: Tensor | None, ignored: int = IGNORED) -> Tensor:
    """What each token is to be followed by; nothing, for the last."""
    assert labels is not None
    return nn.functional.pad(labels, (0, 1), value=ignored)[..., 1:]
