"""What a model says on the part of a calibration text that nothing was taken from: the judge of what was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.calibration.source import Batch, CalibrationSource
from inference_pio.errors import InvalidModel, InvalidSetting
from inference_pio.measure.divergence import token_divergences
from inference_pio.measure.target import input_device, supported

ONE_IN = 8
MOST_TOKENS = 4096


def parted(source: CalibrationSource) -> tuple[CalibrationSource, CalibrationSource]:
    """The part to learn from and the part to judge by: one batch in eight, spread evenly, few of long ones.

    Raises InvalidSetting for a source of one batch, of which no part can be held out.
    """
    count = len(source.batches)
    if count < 2:
        raise InvalidSetting(
            f"{source.name} is a single window of {source.tokens} tokens, and a part must be held out to judge by: "
            "give a longer calibration text, or calibration='none'."
        )
    longest = max((_tokens(batch) for batch in source.batches), default=1)
    wanted = max(1, min(count // ONE_IN, MOST_TOKENS // max(longest, 1)))
    held = {(2 * place + 1) * count // (2 * wanted) for place in range(wanted)}
    learned = tuple(batch for place, batch in enumerate(source.batches) if place not in held)
    judged = tuple(batch for place, batch in enumerate(source.batches) if place in held)
    return CalibrationSource(source.name, learned), CalibrationSource(f"{source.name}, held out", judged)


def _tokens(batch: Batch) -> int:
    ids = batch.get("input_ids")
    return ids.numel() if isinstance(ids, Tensor) else 0


class HeldOut:
    """The original's answers; `divergence` is how far the model as it computes now is from them.

    KL in nats per token for a model that gives logits, the mean squared difference for others. Raises InvalidModel for
    a model whose answers are no numbers, from which everything is equally far.
    """

    def __init__(self, model: nn.Module, source: CalibrationSource) -> None:
        self.source = source
        self._answers = [_answer(model, batch) for batch in source.batches]
        if any(bool(answers.isnan().any()) for answers, _ in self._answers):
            raise InvalidModel(
                f"this {type(model).__name__} answers {source.name} with NaN: check the checkpoint, its embeddings and "
                f"norms too, and whether {self._answers[0][0].dtype} holds its activations. Nothing was touched."
            )

    def divergence(self, model: nn.Module) -> float:
        """The mean over all rows that are no padding."""
        parts = [
            _differences(answer, _answer(model, batch), _rows(batch, answer))
            for batch, answer in zip(self.source.batches, self._answers, strict=True)
        ]
        return float(torch.cat(parts).mean())


def _answer(model: nn.Module, batch: Batch) -> tuple[Tensor, bool]:
    """What a model answers [rows, width], and whether it is logits."""
    device = input_device(model)
    given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    with torch.no_grad():
        result: Any = model(**{**supported(model, use_cache=False), **given})
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    found = logits if logits is not None else result if isinstance(result, Tensor) else result[0]
    return found.reshape(-1, found.shape[-1]).cpu(), logits is not None


def _rows(batch: Batch, answer: tuple[Tensor, bool]) -> Tensor:
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.numel() == answer[0].shape[0]:
        return mask.reshape(-1).bool().cpu()
    return torch.ones(answer[0].shape[0], dtype=torch.bool)


def _differences(before: tuple[Tensor, bool], after: tuple[Tensor, bool], rows: Tensor) -> Tensor:
    if before[1]:
        return token_divergences(before[0][rows], after[0][rows])
    return (before[0][rows].double() - after[0][rows].double()).square().mean(-1)
