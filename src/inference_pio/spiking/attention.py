"""Spiking attention of a model, through the library's attention interface: one more module in each that attends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inference_pio.anatomy.attention_function import Attend
from inference_pio.compat import ONLY_THE_LIBRARY_KNOWS
from inference_pio.errors import RefusedOnOptimized
from inference_pio.kernels.attention_backends import HeadShape
from inference_pio.kernels.spikes import Code
from inference_pio.kernels.spiking_attention import Counted, Thresholds, spiking_attention, visible_keys
from inference_pio.spiking.module import SpikingModule, at_once, without_gradient

SPIKES = "inference_pio_spikes"
"""The pattern's name, and the name under which an attention module holds its neurons."""


class SpikingAttention(SpikingModule):
    """The neurons of queries, keys and values of one attention module: a threshold for each key head and channel.

    Query heads that share keys share the thresholds of their queries.
    """

    def __init__(self, thresholds: Thresholds, code: Code) -> None:
        super().__init__(code)
        for name, tensor in vars(thresholds).items():
            self.register_buffer(name, tensor)

    @classmethod
    def shaped(cls, shape: HeadShape, code: Code, device: torch.device) -> SpikingAttention:
        """The same without values: a plan's, or one that a file is about to fill."""
        widths = (shape.head_dim, shape.head_dim, shape.value_dim)
        ones = [torch.ones(shape.key_heads, width, dtype=torch.float64, device=device) for width in widths]
        return cls(Thresholds(*ones), code)

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(*(self._buffers[name] for name in ("query", "key", "value")))  # type: ignore[arg-type]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
        """[B, S, H, Dv], as the library wants it."""
        with torch.no_grad():
            made = spiking_attention(
                query, key, value, self.thresholds, self.code, visible, scale, at_once=at_once(),
                note=None if at_once() else self._count,
            )  # fmt: skip
        return without_gradient(made.transpose(1, 2).contiguous(), query, key, value)

    def _count(self, counted: Counted) -> None:
        """Of the dense products each value of a query meets every key in sight, each share every channel of a value."""
        self.tally.add(
            f"{self.path}.{counted.name}", activations=counted.activations, spikes=counted.spikes,
            accumulates=counted.accumulates, multiplies=counted.multiplies,
            neuron_steps=counted.activations * self.code.steps * (2 if self.code.second else 1),
            results=counted.results,
        )  # fmt: skip


def attend_with_spikes(
    attend: Attend, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """The pattern, in the form of `anatomy.attention_function`; the dense function under it is never asked."""
    neurons: Any = module._modules[SPIKES]
    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    visible = visible_keys(mask, query.shape[2], key.shape[2], bool(causal), query.device)
    if reason := _why_refused(visible, rest):
        raise RefusedOnOptimized(
            f"spiking attention does not know {reason}: take snn_conversion back first, or leave attention out of its "
            "targets."
        )
    scale = rest.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    return neurons.attend(query, key, value, visible, scale), None


def _why_refused(visible: Tensor | None, rest: Mapping[str, Any]) -> str | None:
    if visible is None:
        return "a mask that adds numbers to the scores"
    if rest.get("output_attentions"):
        return "output_attentions=True, since weights of attention are spikes here"
    if rest.get("dropout"):
        return "dropout"
    return next((name for name in sorted(ONLY_THE_LIBRARY_KNOWS) if rest.get(name) is not None), None)
