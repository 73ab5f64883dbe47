"""Fused experts of a mixture-of-experts layer, held as codes with scales; what they are, a format says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from inference_pio.errors import InvalidModel
from inference_pio.formats.compressed_linear import GROUP
from inference_pio.formats.compressed_module import CompressedModule
from inference_pio.kernels.elementwise_backend import TRITON
from inference_pio.kernels.few_experts import choose_few_experts_backend, few_experts
from inference_pio.kernels.row_codes import inputs_of

MODULE_STATE = frozenset(vars(nn.Module()))
REFUSED = {
    "is_transposed": "its experts are stored transposed, [experts, in, out]",
    "has_bias": "its experts have biases",
    "has_post_expert_norm": "its experts end in a norm",
}


def experts_layout(module: nn.Module) -> str | None:
    """Why fused experts have no compressed form; None where `CompressedExperts` knows their layout.

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


def gate_is_silu(experts: Any) -> bool:
    """Whether experts gate by SiLU, told by what their class computes, of large numbers too: some cut these off."""
    gate = torch.cat([torch.linspace(-9, 9, 19, device="cpu"), torch.tensor([-1e4, 1e4], device="cpu")])
    up = gate.flip(-1) + 0.5
    found = experts.experts_class._apply_gate(experts, torch.cat([gate, up])[None])
    wanted = (F.silu(gate) * up)[None]
    return isinstance(found, torch.Tensor) and found.shape == wanted.shape and torch.allclose(found, wanted)


class CompressedExperts(CompressedModule):
    """The same call and the same result, up to rounding, as the fused experts it is made from.

    `forward(hidden_states [T, H], top_k_index [T, k], top_k_weights [T, k]) -> [T, H]`; only experts that were hit
    are computed, each once for all its tokens. An index of E or more stands for an expert that lives elsewhere.
    """

    original_weights = ("gate_up_proj", "down_proj")
    experts_class: Any
    gates_by_silu = False
    """Whether what the class does between the two products is `silu(gate) * up`, which kernels do."""

    @classmethod
    def from_experts(
        cls, experts: nn.Module, group: int = GROUP,
        quantize: Callable[[str, torch.Tensor], tuple[torch.Tensor, ...]] | None = None,
    ) -> Self:  # fmt: skip
        """The compressed form of fused experts; on the meta device, a module of the right shapes and no values.

        `quantize` makes codes and scales of the weight of a name ("gate_up_proj", "down_proj"), in the place of
        rounding to nearest. Raises InvalidModel for a layout that `experts_layout` refuses, and for weights that the
        format cannot hold.
        """
        of_them = None if next(experts.parameters()).is_meta else cls.why_not_module(experts)
        if reason := experts_layout(experts) or cls.why_not_experts(experts, group) or of_them:
            raise InvalidModel(f"{type(experts).__name__} has no {cls.format} form: {reason}.")
        module = cls()
        module.experts_class = type(experts)  # its gating function is called on this module, which has its settings
        for name, value in vars(experts).items():
            if name not in MODULE_STATE:
                setattr(module, name, value)
        for name, child in experts.named_children():
            module.add_module(name, child)
        for name in cls.original_weights:
            weight = getattr(experts, name).detach()
            made = quantize(name, weight) if quantize else cls.quantize(weight, group)
            module.hold(name.removesuffix("_proj"), *made)
        module.gates_by_silu = gate_is_silu(module)
        return module.train(experts.training)

    @classmethod
    def why_not_experts(cls, experts: nn.Module, group: int) -> str | None:
        """Why experts of a known layout have no such form, and the way out."""
        reasons = (cls.why_not(getattr(experts, name).shape[-1], group) for name in cls.original_weights)
        return next((reason for reason in reasons if reason), None)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """`gate_up_proj` and `down_proj` as the codes stand for them; exact in float32."""
        gate_up, down = (self.dequantized(*self.held(name), dtype) for name in ("gate_up", "down"))
        return gate_up, down

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        if self.gates_by_silu:
            found = few_experts(hidden_states, self._pair("gate_up"), self._pair("down"), top_k_index, top_k_weights)
            if found is not None:
                return found
        return self._expert_by_expert(hidden_states, top_k_index, top_k_weights)

    def takes_two_launches(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether kernels compute what up to 8 tokens chose, all experts at once."""
        return self.gates_by_silu and choose_few_experts_backend(device, dtype) == TRITON

    def _expert_by_expert(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Each expert that was hit, once for all its tokens."""
        tokens, slots = top_k_index.shape
        chosen, order = top_k_index.reshape(-1).sort(stable=True)
        hit, counts = torch.stack(torch.unique_consecutive(chosen, return_counts=True)).tolist()
        rows, experts = hidden_states[order // slots], len(self.held("down")[0])
        results = [
            self._expert(expert, mine) if 0 <= expert < experts else torch.zeros_like(mine)  # one that lives elsewhere
            for expert, mine in zip(hit, torch.split(rows, counts), strict=True)
        ] or [rows]
        weighted = torch.cat(results) * top_k_weights.reshape(-1)[order, None]
        return weighted[order.argsort()].view(tokens, slots, rows.shape[-1]).sum(1).to(hidden_states.dtype)

    def _pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scale = self.held(name)
        return codes, scale

    def _expert(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        (gate_up, gate_up_scale), (down, down_scale) = self.held("gate_up"), self.held("down")
        hidden = self.experts_class._apply_gate(self, self.multiply(rows, gate_up[expert], gate_up_scale[expert]))
        return self.multiply(hidden, down[expert], down_scale[expert])

    def extra_repr(self) -> str:
        codes, scale = self.held("down")[:2]
        experts, hidden, intermediate = codes.shape[0], codes.shape[1], inputs_of(codes, scale)
        group = f", group={intermediate // scale.shape[1]}" if self.grouped else ""
        return f"experts={experts}, hidden={hidden}, intermediate={intermediate}{group}"
