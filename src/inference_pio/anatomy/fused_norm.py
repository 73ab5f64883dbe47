"""RMSNorms of the library's kind: told by the bits their class computes, and served by one kernel."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from inference_pio.anatomy.call_guards import computes_by, is_watched, library_forward, serves, why_not_replaced
from inference_pio.anatomy.stand_in import EPS, WIDTH, differs, drawn, stand_in
from inference_pio.kernels.rms_norm import add_rms_norm, rms_norm

EPS_NAMES = ("variance_epsilon", "eps")


def why_no_rms_norm(module: nn.Module) -> str | None:
    """Why a module is no RMSNorm that the kernel can serve; None if it is one."""
    weights = dict(module.named_parameters(recurse=False))
    if list(weights) != ["weight"] or weights["weight"].dim() != 1 or module._modules:
        return "it is no norm with one weight (a LayerNorm, for one, has a bias too)"
    if eps_of(module) is None:
        return "it is no norm whose epsilon is known"
    return why_not_replaced(module) or _why_other_bits(type(module))  # type: ignore[arg-type]


def eps_of(norm: nn.Module) -> float | None:
    """The epsilon of a norm, by the name its forward uses; None where that is not told."""
    eps = getattr(norm, _eps_name(type(norm)) or "", None)  # type: ignore[arg-type]
    return eps if isinstance(eps, float) else None


@functools.cache
def _eps_name(kind: type[nn.Module]) -> str | None:
    names = inspect.unwrap(kind.forward).__code__.co_names
    found = [name for name in EPS_NAMES if name in names]
    return found[0] if len(found) == 1 else None


@functools.cache
def _why_other_bits(kind: type[nn.Module]) -> str | None:
    def theirs(dtype: torch.dtype) -> torch.Tensor:
        weight = nn.Parameter(drawn(WIDTH, seed=0, dtype=dtype), requires_grad=False)
        norm = stand_in(kind, {"weight": weight, **dict.fromkeys(EPS_NAMES, EPS)})
        out: torch.Tensor = kind.forward(norm, drawn(3, WIDTH, seed=1, dtype=dtype))
        return out

    def ours(dtype: torch.dtype) -> torch.Tensor:
        return rms_norm(drawn(3, WIDTH, seed=1, dtype=dtype), drawn(WIDTH, seed=0, dtype=dtype), EPS)

    return differs(ours, theirs)


def norm_forward(self: nn.Module, *given: Any, **named: Any) -> Any:
    """The forward of a norm that the kernel serves."""
    if named or len(given) != 1 or not serves(self, given[0]):
        return library_forward(self, *given, **named)
    return rms_norm(given[0], self._parameters["weight"], eps_of(self))  # type: ignore[arg-type]


def is_readable(norm: nn.Module) -> bool:
    """Whether a norm's weight may be read in place of a call: it computes by our forward, and nobody watches."""
    return computes_by(norm, norm_forward) and not is_watched(norm)


def added_and_normed(norm: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`residual + x`, and what a norm makes of it: (normed, summed), in one kernel if the norm may be read."""
    if is_readable(norm):
        return add_rms_norm(x, residual, norm._parameters["weight"], eps_of(norm))  # type: ignore[arg-type]
    summed = residual + x
    return norm(summed), summed
