"""A linear layer whose inputs are told by spikes: it adds weights of whole numbers, and never multiplies."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inference_pio.errors import InvalidModel
from inference_pio.kernels.spikes import Code, counts, potentials, spikes_in, trains
from inference_pio.kernels.spiking_product import from_counts, from_spikes, power_of_two, whole_weights
from inference_pio.spiking.module import SpikingModule, at_once, check_channels, without_gradient


class SpikingLinear(SpikingModule):
    """`input` [..., in_features] -> [..., out_features] in its dtype; the bias is the original's own Parameter."""

    original_weights = ("weight",)

    def __init__(self, linear: nn.Module, threshold: Tensor, code: Code) -> None:
        super().__init__(code)
        if not isinstance(linear, nn.Linear | Conv1D):
            raise InvalidModel(f"{type(linear).__name__} has no spiking form: an nn.Linear or a Conv1D is needed.")
        weight = linear.weight.detach()
        weight = weight if isinstance(linear, nn.Linear) else weight.t()  # a Conv1D keeps [in, out]
        self.out_features, self.in_features = int(weight.shape[0]), int(weight.shape[1])
        whole, exponent = whole_weights(weight, threshold, code.reach)
        self.register_buffer("whole", whole)
        self.register_buffer("exponent", exponent)
        self.register_buffer("threshold", threshold)
        self.register_parameter("bias", linear._parameters["bias"])
        self.train(linear.training)

    @classmethod
    def shaped(cls, linear: nn.Module, code: Code) -> Self:
        """The same without values: a plan's, or one that a file is about to fill."""
        weight: Any = linear.weight
        channels = weight.shape[1 if isinstance(linear, nn.Linear) else 0]
        return cls(linear, torch.ones(channels, dtype=torch.float64, device=weight.device), code)

    def forward(self, input: Tensor) -> Tensor:
        check_channels(self, input, -1, self.in_features)
        with torch.no_grad():
            made = self._computed(input)
        return without_gradient(made, input)

    def _computed(self, x: Tensor) -> Tensor:
        held = potentials(x, self._buffers["threshold"], self.code)  # type: ignore[arg-type]
        whole = self._buffers["whole"].double().T  # type: ignore[union-attr]
        made = spiking_product(held, self.code, whole)
        if not at_once():
            self._count(held)
        made = made * power_of_two(self._buffers["exponent"])  # type: ignore[arg-type]
        return (made if self.bias is None else made + self.bias).to(x.dtype)

    def _count(self, held: Tensor) -> None:
        rows = held.numel() // held.shape[-1]
        fired = spikes_in(counts(held), self.code).sum()
        self.tally.add(
            self.path, activations=rows * self.in_features, spikes=fired, accumulates=fired * self.out_features,
            multiplies=rows * self.in_features * self.out_features, neuron_steps=neuron_steps(held, self.code),
            results=rows * self.out_features,
        )  # fmt: skip

    def extra_repr(self) -> str:
        told = f"{self.code.coding}, levels={self.code.levels}, steps={self.code.steps}"
        return f"in_features={self.in_features}, out_features={self.out_features}, {told}"


def neuron_steps(held: Tensor, code: Code) -> int:
    """How often the potentials of such neurons are looked at."""
    return held.numel() * code.steps * (2 if code.second else 1)


def spiking_product(held: Tensor, code: Code, whole: Tensor) -> Tensor:
    """What spikes of neurons that hold `held` [..., n] add up of `whole` [n, out]; at once where that is asked for."""
    if at_once():
        return from_counts(counts(held), lambda fired: fired @ whole)
    return from_spikes(trains(held, code), lambda spikes: spikes @ whole)
