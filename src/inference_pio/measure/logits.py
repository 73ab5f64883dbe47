"""What a model says of one window of tokens: the logits of every token that has another after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inference_pio.errors import MeasureError
from inference_pio.measure.target import input_device


def window_logits(model: nn.Module, tokens: Tensor, window: int) -> Tensor:
    """Logits [length - 1, vocabulary] in the model's own dtype for `tokens[window]` of tokens [windows, length].

    Raises MeasureError where the model gives no such logits, or gives NaN or infinity, and says where.
    """
    with torch.no_grad():
        output = model(input_ids=tokens[window : window + 1].to(input_device(model)))
    logits = _logits_of(output)
    wanted = (1, tokens.shape[1])
    if not isinstance(logits, Tensor) or logits.dim() != 3 or tuple(logits.shape[:2]) != wanted:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MeasureError(
            f"{type(model).__name__} gave no logits [1, {wanted[1]}, vocabulary] for input_ids, but {shape}: "
            "quality is measured on models that predict the next token"
        )
    _check_vocabulary(logits, model, tokens)
    _check_finite(logits[0], model, tokens, window)
    return logits[0, :-1]


def check_tokens(tokens: Tensor) -> None:
    """Refuse what is not windows of token ids."""
    if tokens.dim() != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2 or tokens.is_floating_point():
        raise MeasureError(
            f"tokens to evaluate on must be whole numbers [windows, window] with windows of 2 or more, "
            f"not {list(tokens.shape)} of {str(tokens.dtype).removeprefix('torch.')}"
        )


def _logits_of(output: object) -> object:
    if isinstance(output, tuple | list) and output:
        return output[0]
    return getattr(output, "logits", output)


def _check_vocabulary(logits: Tensor, model: nn.Module, tokens: Tensor) -> None:
    highest = int(tokens.max())
    if highest >= logits.shape[-1]:
        raise MeasureError(
            f"the tokens go up to {highest} and {type(model).__name__} predicts {logits.shape[-1]} different ones: "
            "give tokens of this model's own tokenizer"
        )


def _check_finite(logits: Tensor, model: nn.Module, tokens: Tensor, window: int) -> None:
    """Minus infinity alone is an answer: an impossible token. A row of nothing else is not."""
    highest = logits.amax(-1)  # NaN spreads into the maximum
    bad = ~highest.isfinite()
    if not bool(bad.any()):
        return
    position = int(bad.nonzero()[0])
    raise MeasureError(
        f"{type(model).__name__} gives {float(highest[position])} in its logits at window {window}, "
        f"position {position} (token {int(tokens[window, position])}), "
        f"the first of {int(bad.sum())} such positions in this window: "
        "its weights or its arithmetic overflow, and nothing can be said of its quality"
    )
