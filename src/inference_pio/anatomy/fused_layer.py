"""Decoder layers that norm before each part: the addition after attention and the norm behind it are one kernel."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.call_guards import library_forward, serves, why_not_replaced
from inference_pio.anatomy.fused_norm import added_and_normed, why_no_rms_norm
from inference_pio.anatomy.stand_in import WIDTH, Linear, Norm, differs, drawn, stand_in

FIRST_NORM, ATTENTION, SECOND_NORM, MLP = "input_layernorm", "self_attn", "post_attention_layernorm", "mlp"
NAMES = (FIRST_NORM, ATTENTION, SECOND_NORM, MLP)


def looks_like_a_layer(module: nn.Module) -> bool:
    """Whether a module has the parts of a decoder layer."""
    return all(isinstance(module._modules.get(name), nn.Module) for name in NAMES)


def why_no_fused_layer(module: nn.Module) -> str | None:
    """Why the addition after attention is not fused with the norm behind it; None if it can be."""
    kind = type(module)
    if reason := why_not_replaced(module) or _why_other_form(kind):  # type: ignore[arg-type]
        return reason
    norm = why_no_rms_norm(module.get_submodule(SECOND_NORM))
    return None if norm is None else f"the norm after its attention is passed over: {norm}"


@functools.cache
def _why_other_form(kind: type[nn.Module]) -> str | None:
    names = inspect.unwrap(kind.forward).__code__.co_names
    if foreign := [name for name in names if name not in NAMES]:
        return f"its forward does more than a layer that norms before each part ({', '.join(foreign[:3])})"

    def run(forward: Any, dtype: torch.dtype) -> torch.Tensor:
        parts: dict[str, nn.Module] = {name: Norm(WIDTH, seed, dtype) for seed, name in enumerate(NAMES[::2])}
        parts |= {ATTENTION: _Attention(dtype), MLP: Linear(WIDTH, WIDTH, 3, dtype)}
        given = {"position_embeddings": (), "attention_mask": None}
        out: torch.Tensor = forward(stand_in(kind, parts), drawn(1, 3, WIDTH, seed=4, dtype=dtype), **given)
        return out

    return differs(lambda dtype: run(layer_forward, dtype), lambda dtype: run(kind.forward, dtype))


class _Attention(nn.Module):
    """Something in attention's place."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.mix = Linear(WIDTH, WIDTH, 2, dtype)

    def forward(self, hidden_states: torch.Tensor, attention_mask: None, **rest: Any) -> tuple[torch.Tensor, None]:
        return self.mix(hidden_states), None


def layer_forward(self: nn.Module, hidden_states: torch.Tensor, *given: Any, **named: Any) -> Any:
    """The forward of a layer whose two parts are called as they are."""
    if given or not serves(self, hidden_states):
        return library_forward(self, hidden_states, *given, **named)
    first, attend, second, mlp = (self._modules[name] for name in NAMES)
    named.setdefault("attention_mask", None)
    attended, _ = attend(hidden_states=first(hidden_states), **named)  # type: ignore[misc]
    normed, summed = added_and_normed(second, attended, hidden_states)  # type: ignore[arg-type]
    return summed + mlp(normed)  # type: ignore[misc]
