"""A convolution whose inputs are told by spikes, one threshold for each of its input channels."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_pio.kernels.spikes import Code, counts, potentials, spikes_in, trains
from inference_pio.kernels.spiking_product import from_counts, from_spikes, power_of_two, whole_weights
from inference_pio.spiking.linear import neuron_steps
from inference_pio.spiking.module import SpikingModule, at_once, check_channels, without_gradient


class SpikingConv2d(SpikingModule):
    """`input` [B, C, H, W], padded with zeros where it is padded; the bias is the original's own Parameter."""

    original_weights = ("weight",)

    def __init__(self, conv: nn.Conv2d, threshold: Tensor, code: Code) -> None:
        super().__init__(code)
        weight = conv.weight.detach()
        of_rows = threshold.view(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, 0)
        of_weights = of_rows.repeat_interleave(weight[0, 0].numel(), 1)
        whole, exponent = whole_weights(weight.flatten(1)[:, None], of_weights, code.reach)
        self.register_buffer("whole", whole.view_as(weight))
        self.register_buffer("exponent", exponent[:, 0])
        self.register_buffer("threshold", threshold)
        self.register_parameter("bias", conv._parameters["bias"])
        self.train(conv.training)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups

    @classmethod
    def shaped(cls, conv: nn.Conv2d, code: Code) -> Self:
        """The same without values: a plan's, or one that a file is about to fill."""
        return cls(conv, torch.ones(conv.in_channels, dtype=torch.float64, device=conv.weight.device), code)

    def forward(self, input: Tensor) -> Tensor:
        check_channels(self, input, -3, len(self._buffers["threshold"]))  # type: ignore[arg-type]
        with torch.no_grad():
            made = self._computed(input)
        return without_gradient(made, input)

    def _computed(self, x: Tensor) -> Tensor:
        held = potentials(x, self._buffers["threshold"][:, None, None], self.code)  # type: ignore[index]
        whole: Tensor = self._buffers["whole"].double()  # type: ignore[union-attr]

        def convolved(fired: Tensor) -> Tensor:
            return F.conv2d(fired, whole, None, self.stride, self.padding, self.dilation, self.groups)

        if at_once():
            made = from_counts(counts(held), convolved)
        else:
            made = from_spikes(trains(held, self.code), convolved)
            self._count(held, made)
        made = made * power_of_two(self._buffers["exponent"])[:, None, None]  # type: ignore[arg-type]
        return (made if self.bias is None else made + self.bias[:, None, None]).to(x.dtype)

    def _count(self, held: Tensor, made: Tensor) -> None:
        """Of additions as many as multiplications of the dense layer, times the share of values that fire."""
        fired = spikes_in(counts(held), self.code).sum()
        whole: Tensor = self._buffers["whole"]  # type: ignore[assignment]
        multiplies = made.numel() * whole[0].numel()
        self.tally.add(
            self.path, activations=held.numel(), spikes=fired, accumulates=fired * multiplies // held.numel(),
            multiplies=multiplies, neuron_steps=neuron_steps(held, self.code), results=made.numel(),
        )  # fmt: skip
