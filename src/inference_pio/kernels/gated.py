"""The gate of a gated MLP with every rounding of the library: the plain truth first."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inference_pio.kernels.elementwise_backend import TRITON, choose_for


def naive_silu_mul(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """SiLU from its definition in float32, rounded to the dtype, then times `up`, rounded again."""
    gate, up = _both(gate, up)
    wide = gate.float()
    return (wide / (1.0 + torch.exp(-wide))).to(gate.dtype) * up


def choose_gated_backend(gate: torch.Tensor, up: torch.Tensor | None = None) -> str:
    """ "triton" where its kernel serves these tensors, else "torch"."""
    return choose_for(gate, up)


def silu_mul(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """`silu(gate) * up` for two tensors [..., I], or for one [..., 2I] that holds gate and up side by side.

    >>> silu_mul(torch.tensor([0.0, 10.0, 3.0, 2.0]))
    tensor([ 0.0000, 19.9991])
    """
    if choose_gated_backend(gate, up) == TRITON:
        from inference_pio.kernels.triton.gated import silu_mul as fused

        return fused(gate, up)
    gate, up = _both(gate, up)
    activated = F.silu(gate)
    learned = activated.requires_grad or up.requires_grad
    return activated * up if learned or activated.dtype != up.dtype else activated.mul_(up)


def _both(gate, up):
    return gate.chunk(2, -1) if up is None else (gate, up)
