"""The quantized twin of a spiking model: the same rounded numbers, multiplied at once, not added spike by spike."""

from __future__ import annotations

from typing import Any

from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.spiking.module import SpikingModule, from_counts_at_once


class QuantizedTwin:
    """Called as its model is, `generate` too; it shares all tensors with it, and its answers are the same to the bit.

    Raises InvalidModel for a model that does not compute with spikes.
    """

    def __init__(self, model: nn.Module) -> None:
        if not any(isinstance(module, SpikingModule) for module in model.modules()):
            raise InvalidModel(
                f"this {type(model).__name__} does not compute with spikes: apply snn_conversion to it first."
            )
        self.model: Any = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with from_counts_at_once():
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        with from_counts_at_once():
            return self.model.generate(*args, **kwargs)
