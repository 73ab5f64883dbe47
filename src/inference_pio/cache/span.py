"""Which tokens of a cache are true, as kernels read it on the device: from `starts` to `length`."""

from __future__ import annotations

import torch

from inference_pio.errors import InvalidSetting


class Span:
    """What all layers of a cache share: `length`, int32 [1], and `starts`, int32 [B], or None without padding.

    `length` is that of the layer that was written last, which is where a kernel that follows the write needs it; after
    a forward all layers agree.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.length: torch.Tensor | None = None
        self.starts: torch.Tensor | None = None

    @torch.inference_mode(False)
    def place(self, device: torch.device) -> None:
        """Lie on the device that the tokens lie on."""
        if self.length is None or self.length.device != device:
            self.length = torch.full((1,), self.tokens, dtype=torch.int32, device=device)
        if self.starts is not None:
            self.starts = self.starts.to(device)

    def pad(self, starts: torch.Tensor | None) -> None:
        """Let the rows of what comes next start there."""
        self.starts = starts if starts is None or self.length is None else starts.to(self.length.device)

    def reach(self, tokens: int) -> None:
        """Tell the device where a layer ends now: one small write a forward, by the first of its layers."""
        if tokens != self.tokens and self.length is not None:
            self.length.fill_(tokens)
        self.tokens = tokens

    def select(self, rows: torch.Tensor) -> None:
        if self.starts is not None:
            self.starts = self.starts.index_select(0, rows.to(self.starts.device))


def starts_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """The first true token of each row of a mask [B, tokens] that is padded on the left, int32 [B].

    >>> starts_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    tensor([2, 0], dtype=torch.int32)
    """
    seen = attention_mask != 0
    if attention_mask.dim() != 2 or bool((seen[:, :-1] & ~seen[:, 1:]).any()):
        raise InvalidSetting(
            f"attention_mask of shape {tuple(attention_mask.shape)}: a cache's rows are padded on the left, zeros "
            "before ones, [batch, tokens]. Set tokenizer.padding_side = 'left'."
        )
    return (~seen).sum(1).int()
