"""Fused experts of a mixture-of-experts layer that compute with spikes; the router before them stays as it is."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from inference_pio.errors import InvalidModel
from inference_pio.formats.compressed_experts import MODULE_STATE, experts_layout
from inference_pio.kernels.spikes import Code, counts, potentials, spikes_in
from inference_pio.kernels.spiking_product import power_of_two, whole_weights
from inference_pio.spiking.linear import neuron_steps, spiking_product
from inference_pio.spiking.module import SpikingModule, at_once, without_gradient


class SpikingExperts(SpikingModule):
    """The library's call of fused experts: `forward(hidden_states [T, H], top_k_index [T, k], top_k_weights [T, k])`.

    A token's hidden state is told once, by neurons that all experts share; each has its own before its last matrix.
    Only experts that were hit are computed. An index of E or more stands for an expert that lives elsewhere.
    """

    original_weights = ("gate_up_proj", "down_proj")
    experts_class: Any

    @classmethod
    def from_experts(cls, experts: nn.Module, given: Tensor, inner: Tensor, code: Code) -> Self:
        """With thresholds of the hidden state [H], and of each expert's inner channels [E, I]."""
        if reason := experts_layout(experts):
            raise InvalidModel(f"{type(experts).__name__} has no spiking form: {reason}.")
        module = cls(code)
        module.experts_class = type(experts)  # its gating function is called on this module, which has its settings
        for name, value in vars(experts).items():
            if name not in MODULE_STATE:
                setattr(module, name, value)
        for name, child in experts.named_children():
            module.add_module(name, child)
        for name, threshold in (("gate_up", given), ("down", inner)):
            whole, exponent = whole_weights(getattr(experts, f"{name}_proj").detach(), threshold, code.reach)
            module.register_buffer(f"{name}_whole", whole)
            module.register_buffer(f"{name}_exponent", exponent)
            module.register_buffer(f"{name}_threshold", threshold)
        return module.train(experts.training)

    @classmethod
    def shaped(cls, experts: nn.Module, code: Code) -> Self:
        """The same without values: a plan's, or one that a file is about to fill."""
        down: Any = experts.down_proj
        count, hidden, inner = down.shape
        given, own = (torch.ones(size, dtype=torch.float64, device=down.device) for size in ((hidden,), (count, inner)))
        return cls.from_experts(experts, given, own, code)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        with torch.no_grad():
            made = self._computed(hidden_states, top_k_index, top_k_weights)
        return without_gradient(made, hidden_states, top_k_weights)

    def _computed(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        tokens, slots = top_k_index.shape
        chosen, order = top_k_index.reshape(-1).sort(stable=True)
        held = potentials(hidden_states, self._tensor("gate_up_threshold"), self.code)
        if not at_once():
            self._count_told(held)
        held, results, start = held[order // slots], [], 0
        for expert, count in enumerate(self._tokens_per_expert(chosen)):
            if count:
                results.append(self._expert(expert, held[start : start + count], hidden_states.dtype))
                start += count
        width = hidden_states.shape[-1]
        results.append(hidden_states.new_zeros(tokens * slots - start, width))  # experts that live elsewhere
        weighted = torch.cat(results) * top_k_weights.reshape(-1)[order, None]
        return weighted[order.argsort()].view(tokens, slots, width).sum(1).to(hidden_states.dtype)

    def _tokens_per_expert(self, chosen: Tensor) -> list[int]:
        experts = self._tensor("down_whole").shape[0]
        counted: list[int] = torch.bincount(chosen.clamp(max=experts), minlength=experts + 1)[:experts].tolist()
        return counted

    def _expert(self, expert: int, held: Tensor, dtype: torch.dtype) -> Tensor:
        gate_up = self._product("gate_up", expert, held).to(dtype)
        hidden = self.experts_class._apply_gate(self, gate_up)
        inner = potentials(hidden, self._tensor("down_threshold")[expert], self.code)
        if not at_once():
            self._count_inner(held, inner)
        return self._product("down", expert, inner).to(dtype)

    def _product(self, name: str, expert: int, held: Tensor) -> Tensor:
        whole, exponent = self._tensor(f"{name}_whole")[expert], self._tensor(f"{name}_exponent")[expert]
        return spiking_product(held, self.code, whole.double().T) * power_of_two(exponent)

    def _tensor(self, name: str) -> Tensor:
        return self._buffers[name]  # type: ignore[return-value]

    def _count_told(self, held: Tensor) -> None:
        fired, hidden = spikes_in(counts(held), self.code).sum(), self._tensor("down_whole").shape[1]
        self.tally.add(
            f"{self.path}.gate_up", activations=held.shape[0] * hidden, spikes=fired,
            neuron_steps=neuron_steps(held, self.code),
        )  # fmt: skip

    def _count_inner(self, held: Tensor, inner: Tensor) -> None:
        rows, hidden = held.shape[0], self._tensor("down_whole").shape[1]
        wide = self._tensor("gate_up_whole").shape[1]
        told, fired = (spikes_in(counts(one), self.code).sum() for one in (held, inner))
        self.tally.add(
            f"{self.path}.gate_up", accumulates=told * wide, multiplies=rows * hidden * wide, results=rows * wide
        )
        self.tally.add(
            f"{self.path}.down", activations=rows * wide // 2, spikes=fired, accumulates=fired * hidden,
            multiplies=rows * hidden * wide // 2, neuron_steps=neuron_steps(inner, self.code), results=rows * hidden,
        )  # fmt: skip

    def extra_repr(self) -> str:
        experts, hidden = self._tensor("down_whole").shape[:2]
        told = f"{self.code.coding}, levels={self.code.levels}, steps={self.code.steps}"
        return f"experts={experts}, hidden={hidden}, {told}"
