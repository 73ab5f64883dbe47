"""Products with weights that are codes: gradients reach what is multiplied with them, and never the codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`x` [..., K] times what codes and scales stand for, [N, K]: [..., N] in the dtype of `x`."""
Weights = Callable[[Tensor, Tensor, torch.dtype], Tensor]
"""The weights that codes and scales stand for, [N, K]."""


def frozen_linear(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, product: Product, weights: Weights
) -> Tensor:
    """`product(x, codes, scale)` plus a bias; its backward multiplies with `weights(codes, scale, dtype)`."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        y = product(x, codes, scale)
    elif torch.compiler.is_compiling():  # a compiler makes its own backward, and warns at a handwritten one
        y = F.linear(x, weights(codes, scale, x.dtype))
    else:
        y = _Frozen.apply(x, codes, scale, product, weights)
    return y if bias is None else (y + bias).to(y.dtype)


class _Frozen(torch.autograd.Function):
    """Backward makes the weights anew, so that a graph holds no float weights."""

    @staticmethod
    def forward(x, codes, scale, product, weights):
        return product(x, codes, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:3])
        ctx.weights = inputs[4]

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.weights(*ctx.saved_tensors, grad.dtype), None, None, None, None


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in a dtype. Asking first costs 0.1 us, a `to` that does nothing 0.9."""
    return x if x.dtype is dtype else x.to(dtype)


def remade_linear(x: Tensor, make: Callable[[torch.dtype], Tensor], bias: Tensor | None = None) -> Tensor:
    """`F.linear` with the weights that `make` makes for a dtype; its backward makes them anew, and gives them none."""
    trains = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if not trains or torch.compiler.is_compiling():
        return F.linear(x, make(x.dtype), bias)
    y: Tensor = _Remade.apply(x, bias, make)
    return y


class _Remade(torch.autograd.Function):
    """As `_Frozen`, for weights that are made exactly; the bias belongs to the product, whose rounding it changes."""

    @staticmethod
    def forward(x, bias, make):
        return F.linear(x, make(x.dtype), bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.make = inputs[2]

    @staticmethod
    def backward(ctx, grad):
        to_x, to_bias, _ = ctx.needs_input_grad
        x_grad = grad @ ctx.make(grad.dtype) if to_x else None
        return x_grad, grad.flatten(0, -2).sum(0) if to_bias else None, None
