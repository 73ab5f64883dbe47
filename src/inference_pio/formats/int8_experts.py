"""Fused experts of a mixture-of-experts layer, held as int8 codes with one scale a row of each expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.formats.int8_module import Int8Module
from inference_pio.kernels.int8 import dequantize_rows, int8_linear, quantize_rows

MODULE_STATE = frozenset(vars(nn.Module()))
REFUSED = {
    "is_transposed": "its experts are stored transposed, [experts, in, out]",
    "has_bias": "its experts have biases",
    "has_post_expert_norm": "its experts end in a norm",
}


def experts_layout(module: nn.Module) -> str | None:
    """Why fused experts have no int8 form; None where `Int8Experts` knows their layout.

    Known: `gate_up_proj` [E, 2I, H] holding gate, then up, and `down_proj` [E, H, I], with the library's own gating
    function or the class's.

    >>> experts_layout(nn.Linear(2, 2))
    'it holds no fused gate_up_proj and down_proj'
    """
    parameters = dict(module.named_parameters(recurse=False))
    if not {"gate_up_proj", "down_proj"} <= parameters.keys():
        return "it holds no fused gate_up_proj and down_proj"
    if not hasattr(type(module), "_apply_gate") or not getattr(module, "has_gate", False):
        return "it does not follow the library's interface of gated experts"
    for attribute, reason in REFUSED.items():
        if getattr(module, attribute, False):
            return reason
    if not getattr(module, "is_concatenated", True):
        return "gate and up are interleaved row by row"
    if len(parameters) > 2 or list(module.buffers()):
        return "it holds more tensors than gate_up_proj and down_proj"
    return _shapes(parameters["gate_up_proj"].shape, parameters["down_proj"].shape)


def _shapes(gate_up: torch.Size, down: torch.Size) -> str | None:
    fits = len(gate_up) == len(down) == 3 and gate_up == (down[0], 2 * down[2], down[1])
    return None if fits else f"its shapes {tuple(gate_up)} and {tuple(down)} are not [E, 2I, H] and [E, H, I]"


class Int8Experts(Int8Module):
    """The same call and the same result, up to rounding, as the fused experts it is made from.

    `forward(hidden_states [T, H], top_k_index [T, k], top_k_weights [T, k]) -> [T, H]`; only experts that were hit
    are computed, each once for all its tokens. An index of E or more stands for an expert that lives elsewhere.
    """

    original_weights = ("gate_up_proj", "down_proj")
    gate_up_int8: torch.Tensor
    gate_up_scale: torch.Tensor
    down_int8: torch.Tensor
    down_scale: torch.Tensor
    experts_class: Any

    @classmethod
    def from_experts(cls, experts: nn.Module) -> Int8Experts:
        """The int8 form of fused experts; on the meta device, a module of the right shapes and no values.

        Raises InvalidModel for a layout that `experts_layout` refuses.
        """
        if reason := experts_layout(experts):
            raise InvalidModel(f"{type(experts).__name__} has no int8 form: {reason}.")
        module = cls()
        module.experts_class = type(experts)  # its gating function is called on this module, which has its settings
        for name, value in vars(experts).items():
            if name not in MODULE_STATE:
                setattr(module, name, value)
        for name, child in experts.named_children():
            module.add_module(name, child)
        for name in ("gate_up", "down"):
            codes, scale = quantize_rows(getattr(experts, f"{name}_proj"))
            module.register_buffer(f"{name}_int8", codes)
            module.register_buffer(f"{name}_scale", scale)
        return module.train(experts.training)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """`gate_up_proj` and `down_proj` as the codes stand for them; exact in float32."""
        gate_up = dequantize_rows(self.gate_up_int8, self.gate_up_scale, dtype)
        return gate_up, dequantize_rows(self.down_int8, self.down_scale, dtype)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        tokens, slots = top_k_index.shape
        chosen, order = top_k_index.reshape(-1).sort(stable=True)
        rows = hidden_states[order // slots]
        results, start = [], 0
        for expert, count in enumerate(self._tokens_per_expert(chosen)):
            if count:
                results.append(self._expert(expert, rows[start : start + count]))
                start += count
        results.append(rows.new_zeros(tokens * slots - start, rows.shape[-1]))  # experts that live elsewhere
        weighted = torch.cat(results) * top_k_weights.reshape(-1)[order, None]
        return weighted[order.argsort()].view(tokens, slots, rows.shape[-1]).sum(1).to(hidden_states.dtype)

    def _tokens_per_expert(self, chosen: torch.Tensor) -> list[int]:
        experts = self.gate_up_int8.shape[0]
        counts: list[int] = torch.bincount(chosen.clamp(max=experts), minlength=experts + 1)[:experts].tolist()
        return counts

    def _expert(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        gate_up = int8_linear(rows, self.gate_up_int8[expert], self.gate_up_scale[expert])
        hidden = self.experts_class._apply_gate(self, gate_up)
        return int8_linear(hidden, self.down_int8[expert], self.down_scale[expert])

    def extra_repr(self) -> str:
        experts, hidden, intermediate = self.down_int8.shape
        return f"experts={experts}, hidden={hidden}, intermediate={intermediate}"
