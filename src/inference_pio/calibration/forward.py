"""Forwards over calibration batches that end as soon as the watched layers have been reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.pieces import whole_calls
from inference_pio.calibration.rows import Rows
from inference_pio.calibration.source import CalibrationSource
from inference_pio.measure.target import input_device, supported

Progress = Callable[[str, float], None]


class _ReachedAll(Exception):
    """The last watched layer has been reached: the rest of the forward says nothing that is asked."""


def run_batches(
    model: nn.Module, source: CalibrationSource, rows: Rows, paths: Sequence[str], progress: Progress | None
) -> None:
    """Run every batch, reporting to `rows`; the first to its end, to learn how often each layer is called."""
    calls: dict[str, int] = {}
    for number, batch in enumerate(source.batches):
        rows.begin(_mask(batch))
        try:
            _forward(model, batch, rows, paths, calls)
        finally:
            rows.end()
        calls = calls or {path: rows.calls[path] for path in paths}
        if progress:
            progress("calibration", (number + 1) / len(source.batches))


def forward(model: nn.Module, batch: Mapping[str, Any], **wishes: Any) -> None:
    """One forward without gradients, its tensors on the model's device; `wishes` are passed on where they are known.

    What works piece by piece works whole meanwhile: layers are watched call by call.
    """
    device = input_device(model)
    given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    with torch.no_grad(), whole_calls():
        model(**{**supported(model, use_cache=False, **wishes), **given})


def _forward(
    model: nn.Module, batch: Mapping[str, Any], rows: Rows, paths: Sequence[str], calls: Mapping[str, int]
) -> None:
    def stop(module: nn.Module, *_: object) -> None:
        if all(rows.calls[path] >= calls[path] for path in paths):
            raise _ReachedAll

    handles = [model.get_submodule(path).register_forward_pre_hook(stop) for path in paths] if calls else []
    try:
        forward(model, batch)
    except _ReachedAll:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _mask(batch: Mapping[str, Any]) -> Tensor | None:
    mask = batch.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
