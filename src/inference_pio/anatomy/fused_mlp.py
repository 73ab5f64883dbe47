"""Gated MLPs, `down(silu(gate(x)) * up(x))`: told by the bits their class computes, their gate served by one kernel."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from inference_pio.anatomy.call_guards import is_watched, library_forward, serves, why_not_replaced
from inference_pio.anatomy.merged_linears import Multiply, merged_linear
from inference_pio.anatomy.stand_in import WIDTH, Linear, differs, drawn, stand_in
from inference_pio.kernels import few_rows
from inference_pio.kernels.gated import silu_mul

GATE_UP = ("gate_proj", "up_proj")
DOWN, ACTIVATION = "down_proj", "act_fn"


def looks_gated(module: nn.Module) -> bool:
    """Whether a module has the layers of a gated MLP."""
    return all(isinstance(module._modules.get(name), nn.Module) for name in (*GATE_UP, DOWN))


def why_no_gated_mlp(module: nn.Module) -> str | None:
    """Why the kernel cannot serve an MLP that looks gated; None if it can."""
    activation = module._modules.get(ACTIVATION)
    if activation is None or not _is_silu(type(activation)):  # type: ignore[arg-type]
        return "its activation is not SiLU"
    return why_not_replaced(module) or _why_other_bits(type(module))  # type: ignore[arg-type]


@functools.cache
def _is_silu(kind: type[nn.Module]) -> bool:
    def theirs(dtype: torch.dtype) -> torch.Tensor:
        out: torch.Tensor = kind.forward(stand_in(kind, {"inplace": False}), drawn(3, WIDTH, seed=0, dtype=dtype))
        return out

    return differs(lambda dtype: nn.functional.silu(drawn(3, WIDTH, seed=0, dtype=dtype)), theirs) is None


@functools.cache
def _why_other_bits(kind: type[nn.Module]) -> str | None:
    def small(dtype: torch.dtype) -> nn.Module:
        parts = {name: Linear(WIDTH, 24, seed, dtype) for seed, name in enumerate(GATE_UP)}
        return stand_in(kind, parts | {DOWN: Linear(24, WIDTH, 2, dtype), ACTIVATION: nn.SiLU()})

    def run(forward: Any, dtype: torch.dtype) -> torch.Tensor:
        out: torch.Tensor = forward(small(dtype), drawn(3, WIDTH, seed=3, dtype=dtype))
        return out

    return differs(lambda dtype: run(mlp_forward, dtype), lambda dtype: run(kind.forward, dtype))


def gate_up_of(mlp: nn.Module) -> list[nn.Module]:
    """The two layers that read an MLP's input."""
    return [mlp.get_submodule(name) for name in GATE_UP]


def mlp_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The forward of an MLP whose gate is one kernel."""
    if not _plain(self, given, named):
        return library_forward(self, *given, **named)
    gate, up = (self._modules[name] for name in GATE_UP)
    return self._modules[DOWN](silu_mul(gate(given[0]), up(given[0])))  # type: ignore[misc]


def merged_mlp_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The same where gate and up are one product, if they lie side by side."""
    return _merged(self, given, named, F.linear)


def few_rows_mlp_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The same by our kernel where rows are few."""
    return _merged(self, given, named, few_rows.linear)


def _merged(self: nn.Module, given: tuple[Any, ...], named: dict[str, Any], multiply: Multiply) -> Any:
    if not _plain(self, given, named):
        return library_forward(self, *given, **named)
    both = merged_linear([self._modules[name] for name in GATE_UP], given[0], multiply)  # type: ignore[misc]
    return mlp_forward(self, *given) if both is None else self._modules[DOWN](silu_mul(both))  # type: ignore[misc]


def _plain(mlp: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    fits = not named and len(given) == 1 and serves(mlp, given[0])
    return fits and not is_watched(mlp._modules[ACTIVATION])  # type: ignore[arg-type]
